"""The nodes that have announced themselves, and for how long each is believed: pure.

The rules:

- A node is known from its first announcement until its *lease* ends, which each announcement
  renews, or until it leaves. Known is not trusted: a model that a node does not call ready is no
  endpoint, and Envoy gives an endpoint calls only after a health check of its own.
- A node whose lease has ended is dropped *while others are heard*. When nobody is heard, it is
  most likely not the nodes that are gone: the way to this gateway is broken, or the gateway's own
  controller was paused. Then all stay as they were last known (they are *silent*), and health
  checks go on to tell which of them answer calls. As soon as one is heard again, the others get
  one more lease to be heard too. One that is silent and does not pass these checks either, for
  half a minute, is forgotten: it will announce itself when it is back.
- An address belongs to the node that announced it last: one that was started again under
  another name takes the place of what it was before.
- What a node sends late does not undo that it has left, or was started anew: announcements carry
  which *instance* of the node they are of.
- The more nodes there are, the longer the leases, so that announcements are never more than a
  hundred a second.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from tidegate.errors import InvalidInput, QueueFull, TidegateError
from tidegate.gateway.endpoints import Endpoint
from tidegate.protocols.registration import (
    Announcement,
    Grant,
    read_announcement,
    read_name,
    written,
)

MOST_NODES = 10_000
MOST_PLACES = 200_000
"""Models of all nodes together, each counted once for each node."""
_MOST_A_SECOND = 100.0
"""Announcements."""
_RENEWED = 0.3
"""The part of a lease after which it is to be renewed."""
_HEARD = 2.0
"""Renewals: when the last announcement of anybody is older, nobody is heard. Less than a lease
without a renewal, or nodes that fell silent together would be dropped one by one."""
_UNWELL = 30.0
"""Seconds after which a silent node that fails its health checks, too, is forgotten."""
_MOST_LEFT = 10_000
"""Nodes that have left, of which late announcements are still refused."""
_LONGEST_LEASE = 3600.0


@dataclass(slots=True)
class _Node:
    """One node; times are those of the registry's caller."""

    name: str
    said: Announcement
    seen: float
    """When it was last heard."""
    lease: float
    until: float
    """When its lease ends."""
    endpoints: tuple[tuple[str, Endpoint], ...]
    """Those of the models that it calls ready, by the models' names."""
    rival: str = ""
    """Which other node announces the same address, in turns with it."""
    unwell: float | None = None
    """Since when it is silent and fails all health checks."""


class Registry:
    """The nodes that are known now.

    :attr:`revision` grows with each change of what :meth:`models` returns; time alone changes
    that, too, when a lease ends: see :meth:`expire`.
    """

    def __init__(self, lease: float = 5.0, most_nodes: int = MOST_NODES) -> None:
        """Nodes are known for ``lease`` seconds after each announcement, or for longer."""
        self._lease = lease
        self._most_nodes = most_nodes
        self._nodes: dict[str, _Node] = {}
        self._by_address: dict[str, str] = {}
        self._places = 0
        self._displaced: dict[str, tuple[str, str]] = {}
        """Which node, and instance of it, had each address before that which has it now."""
        self._left: dict[tuple[str, str], float] = {}
        """Until when announcements of an instance that has left are refused."""
        self._heard = float("-inf")
        """When anybody was heard last."""
        self._earliest = float("inf")
        """No lease ends before."""
        self._models: dict[str, tuple[Endpoint, ...]] | None = None
        self.revision = 0
        """Tells one set of endpoints from the one before it."""

    def grant(self) -> Grant:
        """Return what an announcement is worth now."""
        renew = max(self._lease * _RENEWED, len(self._nodes) / _MOST_A_SECOND)
        return Grant(min(renew / _RENEWED, _LONGEST_LEASE), renew)

    def register(self, name: str, said: Announcement, now: float) -> Grant:
        """Take an announcement; return what it is worth.

        Raises:
            InvalidInput: what sends it has left already, or its address cannot be called.
            QueueFull: there are too many nodes, or models of nodes.
        """
        if said.instance and self._left.get((name, said.instance), now) > now:
            raise InvalidInput(
                f"{name} has left: what was sent before that is not taken; a node that was "
                "started again names another 'instance'"
            )
        known = self._nodes.get(name)
        self._check_room(name, known, said)
        if known is not None and _same(known.said, said):
            endpoints = known.endpoints
        else:
            endpoints = _endpoints(name, said)
            self._change()
        if known is not None:
            self._drop(known)
        # Before it is heard: that says nothing of those who should have been heard before it.
        self.expire(now)
        self._hear(now)
        other = self._nodes.get(self._by_address.get(said.address, ""))
        if other is not None:
            self._drop(other)
            self._change()
        rival = self._displace(other or known, name, said)
        self._by_address[said.address] = name
        self._places += len(said.models)
        grant = self.grant()
        until = now + grant.lease
        self._nodes[name] = _Node(name, said, now, grant.lease, until, endpoints, rival)
        self._earliest = min(self._earliest, until)
        return grant

    def _displace(self, before: _Node | None, name: str, said: Announcement) -> str:
        """Note who had an address before; return who that is, if they take it in turns."""
        if before is None or (before.name, before.said.instance) == (name, said.instance):
            self._displaced.pop(said.address, None)
            return ""
        back = self._displaced.get(said.address) == (name, said.instance)
        if len(self._displaced) >= self._most_nodes:
            self._displaced.clear()
        self._displaced[said.address] = before.name, before.said.instance
        return before.name if back else ""

    def _check_room(self, name: str, known: _Node | None, said: Announcement) -> None:
        if known is None and len(self._nodes) >= self._most_nodes:
            raise QueueFull(
                f"there are {len(self._nodes)} nodes already, and no room for {name}; join "
                "another gateway"
            )
        places = self._places + len(said.models) - (len(known.said.models) if known else 0)
        if places > MOST_PLACES:
            raise QueueFull(
                f"the nodes would have {places} models, counted for each node, and {MOST_PLACES} "
                "is the most; join another gateway"
            )

    def leave(self, name: str, now: float, instance: str = "") -> bool:
        """Forget a node at once; return whether it was known.

        With ``instance``, only if it is that one which is known.
        """
        self._left = {key: until for key, until in self._left.items() if until > now}
        known = self._nodes.get(name)
        if instance and len(self._left) < _MOST_LEFT:
            self._left[name, instance] = now + self.grant().lease
        if known is None or (instance and known.said.instance not in ("", instance)):
            return False
        self._drop(known)
        self._change()
        self.expire(now)
        self._hear(now)
        return True

    def expire(self, now: float) -> tuple[str, ...]:
        """Drop the nodes whose leases have ended, if others are heard; return their names."""
        if now < self._earliest:
            return ()
        over = [
            node
            for node in self._nodes.values()
            if node.until <= now and now - self._heard <= _HEARD * _RENEWED * node.lease
        ]
        for node in over:
            self._drop(node)
            self._change()
        self._look_ahead()
        return tuple(node.name for node in over)

    def silent(self, now: float) -> dict[str, str]:
        """Return the nodes that are kept though their leases have ended, and their addresses."""
        if now < self._earliest:
            return {}
        over = (node for node in self._nodes.values() if node.until <= now)
        return {node.name: node.said.address for node in over}

    def note_unwell(self, names: Collection[str], now: float) -> tuple[str, ...]:
        """Take which of the silent nodes pass no health check now; return who is forgotten."""
        gone = []
        for name in self.silent(now):
            node = self._nodes[name]
            if name not in names:
                node.unwell = None
            elif node.unwell is None:
                node.unwell = now
            elif now - node.unwell >= _UNWELL:
                gone.append(node)
        for node in gone:
            self._drop(node)
            self._change()
        self._look_ahead()
        return tuple(node.name for node in gone)

    def models(self, now: float) -> Mapping[str, tuple[Endpoint, ...]]:
        """Return the endpoints of each model that a node calls ready, by the nodes' names."""
        self.expire(now)
        if self._models is None:
            found: dict[str, list[Endpoint]] = {}
            for name in sorted(self._nodes):
                for model, endpoint in self._nodes[name].endpoints:
                    found.setdefault(model, []).append(endpoint)
            self._models = {model: tuple(found[model]) for model in sorted(found)}
        return self._models

    def tasks(self, now: float) -> Mapping[str, str]:
        """Return the model of each task's id; of several models the first by name."""
        self.expire(now)
        found: dict[str, str] = {}
        for node in self._nodes.values():
            for model in node.said.models:
                for task in model.tasks if model.ready else ():
                    found[task] = min(model.name, found.get(task, model.name))
        return found

    def describe(self, now: float) -> list[dict[str, Any]]:
        """Return what is known of each node in short, for people; times in seconds.

        Nothing changes by looking: who follows :meth:`expire` is to hear of each node that goes.
        """
        return [_description(self._nodes[name], now) for name in sorted(self._nodes)]

    def describe_node(self, name: str, now: float) -> dict[str, Any] | None:
        """Return all that is known of one node; ``None``: nothing is."""
        node = self._nodes.get(name)
        if node is None:
            return None
        said = written(node.said)
        said.pop("instance")
        return _description(node, now) | said

    def dump(self) -> dict[str, Any]:
        """Return all nodes as a document, from which :meth:`restore` makes another registry."""
        return {
            "nodes": [
                {"name": node.name, "said": written(node.said)} for node in self._nodes.values()
            ]
        }

    def restore(self, data: object, now: float) -> None:
        """Know the nodes of a :meth:`dump` again, each for a whole lease.

        What cannot be read is left out: it came from a file.
        """
        nodes = data.get("nodes") if isinstance(data, dict) else None
        for node in nodes if isinstance(nodes, list) else ():
            try:
                name = read_name(str(node["name"]))
                self.register(name, read_announcement(node["said"]), now)
            except (TidegateError, LookupError, TypeError):
                continue
        # They have not been heard: when none of them comes back, all stay.
        self._heard = float("-inf")

    def _hear(self, now: float) -> None:
        """Somebody is heard: let those that were kept while nobody was be heard, too."""
        self._heard = now
        if now < self._earliest:
            return
        for node in self._nodes.values():
            if node.until <= now:
                node.until = now + node.lease
        self._look_ahead()

    def _look_ahead(self) -> None:
        self._earliest = min((node.until for node in self._nodes.values()), default=float("inf"))

    def _change(self) -> None:
        self._models = None
        self.revision += 1

    def _drop(self, node: _Node) -> None:
        del self._nodes[node.name]
        if self._by_address.get(node.said.address) == node.name:
            del self._by_address[node.said.address]
        self._places -= len(node.said.models)


def _description(node: _Node, now: float) -> dict[str, Any]:
    silent = node.until <= now
    reason = None
    if silent:
        reason = (
            "it is not heard; while no other node is, it stays as it was known last, unless it "
            "fails its health checks for half a minute, too"
        )
    elif node.rival:
        who = "another one of its name" if node.rival == node.name else node.rival
        reason = f"{who} announces its address, too; give each an --advertise of its own"
    said = node.said
    return {
        "name": node.name,
        "state": "silent" if silent else "registered",
        "reason": reason,
        "last_seen_s": round(max(0.0, now - node.seen), 3),
        "lease_left_s": round(max(0.0, node.until - now), 3),
        "address": said.address,
        "secure": said.secure,
        "weight": said.weight,
        "cores": said.cores,
        "version": said.version,
        "models_ready": len(node.endpoints),
        "models_not_ready": len(said.models) - len(node.endpoints),
    }


def _endpoints(name: str, said: Announcement) -> tuple[tuple[str, Endpoint], ...]:
    """Return the endpoints of the models that are ready.

    Raises:
        InvalidInput: its address is none that can be called.
    """
    # Most models of a node have the same versions, and an endpoint is checked when it is made.
    made: dict[tuple[frozenset[int], frozenset[str]], Endpoint] = {}
    found = []
    host = name.rpartition(":")[0].strip("[]")
    for model in said.models:
        key = frozenset(model.versions), frozenset(model.labels)
        if not model.ready or not model.versions:
            continue
        try:
            endpoint = made.get(key) or Endpoint(
                said.address,
                "tidegate",
                weight=said.weight,
                versions=key[0],
                labels=key[1],
                name=host,
                secure=said.secure,
            )
        except TidegateError as error:
            raise InvalidInput(str(error)) from error
        made[key] = endpoint
        found.append((model.name, endpoint))
    return tuple(found)


def _same(one: Announcement, other: Announcement) -> bool:
    """Say whether two announcements make the same endpoints, and are of the same instance."""
    return one.models == other.models and _apart_from_models(one) == _apart_from_models(other)


def _apart_from_models(said: Announcement) -> tuple[str, int, bool, str]:
    return said.address, said.weight, said.secure, said.instance
