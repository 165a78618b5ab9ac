"""EndpointSlices of Kubernetes, as a list and a watch tell of them, into endpoints; pure.

Source: the API group ``discovery.k8s.io/v1``, and "API concepts" (watches, bookmarks) of the
Kubernetes documentation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tidegate.errors import ConfigurationError, InvalidAnswer
from tidegate.gateway.discovery.source import LARGEST_SET, too_many
from tidegate.gateway.endpoints import Endpoint, Traits

_FAMILIES = ("IPv4", "IPv6")


@dataclass(frozen=True, slots=True)
class _Candidate:
    """One endpoint of a slice, ready or not."""

    endpoint: Endpoint
    ready: bool
    ending: bool
    """It is being stopped, but still answers."""
    target: tuple[str, str, str] | None
    """What runs there: kind, namespace and name."""

    @property
    def four(self) -> bool:
        return not self.endpoint.address.startswith("[")


@dataclass(frozen=True, slots=True)
class _Slice:
    candidates: tuple[_Candidate, ...]
    wrong: tuple[str, ...]
    """What was left out of it, in words."""


@dataclass(slots=True)
class SliceSet:
    """All slices of one service, kept up to date by events.

    Raises:
        InvalidAnswer: (every method) what came is no EndpointSlice.
        ConfigurationError: (every method) there are too many endpoints.
    """

    port: str | None
    """Name or number of the port; ``None``: the only one."""
    traits: Traits
    version: str = ""
    """The resource version up to which this is known."""
    _slices: dict[str, _Slice] = field(default_factory=dict)
    _count: int = 0

    def add_page(self, page: Mapping[str, Any]) -> str:
        """Take one page of a list; return where the next one begins, or ``""``."""
        metadata = _mapping(page.get("metadata"), "metadata")
        items = page.get("items") or []
        if not isinstance(items, list):
            raise InvalidAnswer("a list of EndpointSlices without items")
        for item in items:
            self._put(_mapping(item, "an item"))
        self.version = _text(metadata, "resourceVersion")
        following = metadata.get("continue") or ""
        return following if isinstance(following, str) else ""

    def apply(self, kind: str, value: Mapping[str, Any]) -> bool:
        """Take one event of a watch, ``ADDED``, ``MODIFIED``, ``DELETED`` or ``BOOKMARK``.

        Returns:
            Whether the endpoints may be others now.
        """
        metadata = _mapping(value.get("metadata"), "metadata")
        version = _text(metadata, "resourceVersion")
        if kind in ("ADDED", "MODIFIED"):
            self._put(value)
        elif kind == "DELETED":
            self._drop(_text(metadata, "name"))
        elif kind != "BOOKMARK":
            raise InvalidAnswer(f"an event of the unknown type {kind[:40]!r}")
        self.version = version
        return kind != "BOOKMARK"

    def endpoints(self) -> tuple[list[Endpoint], str | None]:
        """Return the endpoints that are to get calls, and what is wrong, in words.

        Those that are ready; if none is, those that are being stopped but still answer. Of a pod
        that has addresses of both families, the IPv4 one. A slice may still, or already, name an
        endpoint that another one names, too: it is there once.
        """
        candidates = [c for each in self._slices.values() for c in each.candidates]
        chosen = [c for c in candidates if c.ready] or [c for c in candidates if c.ending]
        with_four = {c.target for c in chosen if c.four and c.target is not None}
        kept = [c.endpoint for c in chosen if c.four or c.target not in with_four]
        wrong = list(dict.fromkeys(w for each in self._slices.values() for w in each.wrong))
        if not self._slices:
            wrong = ["there are no such EndpointSlices"]
        elif candidates and not chosen:
            wrong.insert(0, f"none of {len(candidates)} endpoints is ready")
        elif not candidates and not wrong:
            wrong = ["its EndpointSlices are empty"]
        return kept, "; ".join(wrong[:3]) or None

    def _put(self, value: Mapping[str, Any]) -> None:
        name = _text(_mapping(value.get("metadata"), "metadata"), "name")
        found = _slice(name, value, self.port, self.traits)
        self._drop(name)
        self._slices[name] = found
        self._count += len(found.candidates)
        if max(self._count, len(self._slices)) > LARGEST_SET:
            raise ConfigurationError(too_many())

    def _drop(self, name: str) -> None:
        old = self._slices.pop(name, None)
        self._count -= 0 if old is None else len(old.candidates)


def _slice(name: str, value: Mapping[str, Any], wanted: str | None, traits: Traits) -> _Slice:
    family = value.get("addressType")
    endpoints = value.get("endpoints") or []
    if not isinstance(endpoints, list):
        raise InvalidAnswer(f"the EndpointSlice {name} without a list of endpoints")
    if not endpoints:
        return _Slice((), ())
    if family not in _FAMILIES:
        return _Slice((), (f"{name} has addresses of the type {str(family)[:20]}, not of IP",))
    try:
        port = _port(name, value.get("ports") or [], wanted)
    except ValueError as error:
        return _Slice((), (str(error),))
    found, wrong = [], []
    for endpoint in endpoints[: LARGEST_SET + 1]:
        try:
            found.append(_candidate(_mapping(endpoint, "an endpoint"), port, traits))
        except ConfigurationError as error:
            wrong.append(f"{name}: {error}")
    return _Slice(tuple(found), tuple(wrong[:3]))


def _candidate(value: Mapping[str, Any], port: int, traits: Traits) -> _Candidate:
    addresses = value.get("addresses")
    if not isinstance(addresses, list) or not addresses or not isinstance(addresses[0], str):
        raise InvalidAnswer("an endpoint without addresses")
    conditions = _mapping(value.get("conditions") or {}, "conditions")
    # What is not said counts as ready, and as serving when it is ready.
    ready = conditions.get("ready") is not False
    serving = conditions.get("serving")
    ending = conditions.get("terminating") is True
    target = _target(value.get("targetRef"))
    return _Candidate(
        # Of several addresses all are the same endpoint; the first one is the one to use.
        traits.at(addresses[0], port, name="" if target is None else target[2]),
        ready and not ending,
        ending and (ready if serving is None else serving is True),
        target,
    )


def _target(value: object) -> tuple[str, str, str] | None:
    if not isinstance(value, Mapping):
        return None
    kind, space, name = (str(value.get(key, "")) for key in ("kind", "namespace", "name"))
    return (kind, space, name) if name else None


def _port(name: str, ports: object, wanted: str | None) -> int:
    """Return the port that is wanted of a slice.

    Raises:
        ValueError: it has no such port, or more than one.
    """
    known = dict(_tcp_ports(ports))
    if wanted is None:
        if len(known) != 1:
            raise ValueError(f"{name} has {_listed(known)}: say which port, by name or number")
        return next(iter(known.values()))
    if wanted.isascii() and wanted.isdigit():
        # Without any ports, of a service that names none, every number will do.
        if known and int(wanted) not in known.values():
            raise ValueError(
                f"{name} has {_listed(known)}, not {wanted[:20]}: give the port of the pods"
            )
        return int(wanted)
    if wanted not in known:
        raise ValueError(f"{name} has {_listed(known)}, not {wanted[:64]}")
    return known[wanted]


def _tcp_ports(ports: object) -> Iterator[tuple[str, int]]:
    for port in ports if isinstance(ports, list) else ():
        value = _mapping(port, "a port")
        number = value.get("port")
        if value.get("protocol", "TCP") in ("TCP", None) and isinstance(number, int):
            yield str(value.get("name") or ""), number


def _listed(known: Mapping[str, int]) -> str:
    if not known:
        return "no port"
    shown = [f"{name[:64] or 'one without a name'} ({n})" for name, n in known.items()]
    return f"the ports {', '.join(shown[:5])}"


def _mapping(value: object, what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidAnswer(f"{what} of an EndpointSlice is a {type(value).__name__}")
    return value


def _text(metadata: Mapping[str, Any], key: str) -> str:
    value = metadata.get(key)
    if not isinstance(value, str) or not 0 < len(value) <= 1024:
        raise InvalidAnswer(f"an EndpointSlice without {key}")
    return value
