"""What to send to one Envoy, and when: the aggregated discovery protocol without any I/O.

State of the world, one :class:`Session` for each stream. The order, which keeps every call
answered while clusters come and go:

1. clusters, old and new together, and their endpoints;
2. when those are acknowledged and warm: listeners and routes;
3. when those are acknowledged: clusters, new ones only.

Secrets are sent whenever Envoy asks for them: a listener or a cluster is not warm without its own.
So is the runtime, which Envoy wants before anything else, and on which nothing waits.

Of endpoints only those that have changed are sent: a gateway has thousands, and weights that
change several times a second.

A session without a target is silent. That matters: a controller that has just started must not
tell a serving Envoy that there is nothing.

Source: https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf import any_pb2

from tidegate.edge.names import OF_CLUSTERS

_PREFIX = "type.googleapis.com/envoy.config."
CLUSTERS = _PREFIX + "cluster.v3.Cluster"
ENDPOINTS = _PREFIX + "endpoint.v3.ClusterLoadAssignment"
LISTENERS = _PREFIX + "listener.v3.Listener"
ROUTES = _PREFIX + "route.v3.RouteConfiguration"
SECRETS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
RUNTIME = "type.googleapis.com/envoy.service.runtime.v3.Runtime"
TYPES = (RUNTIME, CLUSTERS, SECRETS, ENDPOINTS, LISTENERS, ROUTES)
"""The kinds of resources, in the order in which they are sent: whom to believe goes before whom to
connect to."""

_WHOLE = (CLUSTERS, LISTENERS)
"""Kinds of which a response names all there are: what it leaves out is removed."""
_OF_EACH = (ENDPOINTS, SECRETS)
"""Kinds of which each cluster may have its own: a response has those that changed."""

Resources = Mapping[str, any_pb2.Any]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All resources of an edge by kind and name; every kind of :data:`TYPES` is there.

    A cluster that has an entry among the endpoints is warm when Envoy has those.
    """

    resources: Mapping[str, Resources]


@dataclass(slots=True)
class _Channel:
    """One kind of resource on one stream; it exists from the first request on."""

    names: frozenset[str] = frozenset()
    nonce: str = ""
    acknowledged: bool = False
    """Whether the last response was acknowledged."""
    answered: bool = False
    """Whether it was acknowledged or refused."""
    owed: bool = True
    """Whether Envoy asked and has had no response since."""
    rejected: bool = False
    sent: dict[str, any_pb2.Any] = field(default_factory=dict)
    held: dict[str, any_pb2.Any] = field(default_factory=dict)
    """What Envoy has acknowledged."""

    def has(self, name: str, resource: any_pb2.Any) -> bool:
        """Whether Envoy has acknowledged just this."""
        held = self.held.get(name)
        return held is resource or held == resource

    def forget_all_but(self, names: frozenset[str]) -> None:
        self.sent = {n: r for n, r in self.sent.items() if n in names}
        self.held = {n: r for n, r in self.held.items() if n in names}


class Session:
    """One stream of one Envoy. Methods return the responses to send, in order.

    Args:
        believed: what this Envoy acknowledged on an earlier stream, if that is known. Old clusters
            stay until the routes have changed on a new stream, too.
        watched: whether somebody tells with :meth:`note_warm` that clusters are warm. One whose
            servers' health is checked is not when it has its endpoints.
    """

    def __init__(self, believed: Snapshot | None = None, watched: bool = False) -> None:
        self._believed = believed
        self._watched = watched
        self._warming = 0
        """Counts the responses with clusters that are new or changed."""
        self._warm = 0
        self._channels: dict[str, _Channel] = {}
        self._target: Snapshot | None = None
        self._last_nonce = 0
        self._rejection: str | None = None

    @property
    def settled(self) -> bool:
        """Whether Envoy has acknowledged the whole target, and nothing but it."""
        if self._target is None:
            return False
        clusters = self._channels.get(CLUSTERS)
        return (
            clusters is not None
            and not any(c.rejected for c in self._channels.values())
            and self._routes_hold()
            and clusters.held == self._target.resources[CLUSTERS]
            and clusters.acknowledged
        )

    @property
    def warming(self) -> int | None:
        """What to hand to :meth:`note_warm`, once Envoy has no cluster that warms."""
        if not self._watched or self._warm == self._warming or not self._clusters_known():
            return None
        return self._warming

    def note_warm(self, warming: int) -> list[discovery_pb2.DiscoveryResponse]:
        """Take notice that the clusters are warm that Envoy had when ``warming`` was read."""
        self._warm = max(self._warm, warming)
        return self._advance()

    def take_rejection(self) -> str | None:
        """Return what Envoy said when it refused something, once."""
        words, self._rejection = self._rejection, None
        return words

    def set_target(self, target: Snapshot) -> list[discovery_pb2.DiscoveryResponse]:
        """Lead Envoy to ``target``; what it refused before is tried again."""
        self._target = target
        self._rejection = None
        for channel in self._channels.values():
            if channel.rejected:
                channel.rejected, channel.owed = False, True
        return self._advance()

    def on_request(
        self, request: discovery_pb2.DiscoveryRequest
    ) -> list[discovery_pb2.DiscoveryResponse]:
        """Take what Envoy sent: a subscription, an acknowledgement or a refusal."""
        channel = self._channels.get(request.type_url)
        if channel is None:
            if request.type_url not in TYPES:
                return []
            channel = self._channels[request.type_url] = _Channel()
        elif request.response_nonce != channel.nonce:
            return []  # an answer to an older response; one to the last will come
        elif channel.answered or not channel.nonce:
            # A second request with this nonce is a new subscription, even with the same names:
            # a cluster that was added or changed warms until it is answered.
            channel.owed = True
        elif request.HasField("error_detail"):
            channel.rejected = channel.answered = True
            self._rejection = request.error_detail.message
        else:
            channel.acknowledged = channel.answered = True
            channel.held = dict(channel.sent)
        channel.names = frozenset(request.resource_names)
        if request.type_url not in _WHOLE:
            channel.forget_all_but(channel.names)
        return self._advance()

    def _advance(self) -> list[discovery_pb2.DiscoveryResponse]:
        """Send what is due now; each kind waits for those that it depends on."""
        if self._target is None:
            return []
        responses = []
        for kind in TYPES:
            channel = self._channels.get(kind)
            if channel is None or channel.rejected:
                continue
            if kind in (LISTENERS, ROUTES) and not self._clusters_warm():
                continue
            wanted = self._wanted(kind, channel)
            if channel.owed or self._differs(kind, channel, wanted):
                responses.append(self._respond(kind, channel, wanted))
        return responses

    def _wanted(self, kind: str, channel: _Channel) -> dict[str, any_pb2.Any]:
        assert self._target is not None
        target = self._target.resources
        if kind == LISTENERS:
            return dict(target[kind])
        if kind == CLUSTERS:
            if self._routes_hold():
                return dict(target[kind])
            return {**self._old_clusters(channel), **target[kind]}
        known = target[kind]
        if kind == ENDPOINTS:
            known = {**self._before(kind, channel), **known}
        return {name: known[name] for name in sorted(channel.names) if name in known}

    def _old_clusters(self, clusters: _Channel) -> dict[str, any_pb2.Any]:
        """Return those that serve: one that is still warming would warm for ever."""
        endpoints = self._channels.get(ENDPOINTS, _Channel())
        warm = self._before(ENDPOINTS, endpoints)
        return {n: r for n, r in self._before(CLUSTERS, clusters).items() if n in warm}

    def _before(self, kind: str, channel: _Channel) -> Resources:
        if not channel.held and self._believed is not None:
            return self._believed.resources[kind]
        return channel.held

    @staticmethod
    def _differs(kind: str, channel: _Channel, wanted: dict[str, any_pb2.Any]) -> bool:
        if kind in _WHOLE:
            return wanted != channel.sent
        return any(
            (sent := channel.sent.get(name)) is not resource and sent != resource
            for name, resource in wanted.items()
        )

    def _clusters_warm(self) -> bool:
        return self._clusters_known() and not (self._watched and self._warm < self._warming)

    def _clusters_known(self) -> bool:
        """Whether Envoy holds every cluster of the target, its endpoints and its secrets."""
        if self._target is None:
            return False
        target = self._target.resources
        # Envoy asks for the others when it has the listener.
        secrets = {n: r for n, r in target[SECRETS].items() if n.startswith(OF_CLUSTERS)}
        return (
            CLUSTERS in self._channels
            and self._has(CLUSTERS, target[CLUSTERS])
            and self._has(ENDPOINTS, target[ENDPOINTS])
            and self._has(SECRETS, secrets)
        )

    def _has(self, kind: str, wanted: Resources) -> bool:
        return not wanted or (kind in self._channels and _holds(self._channels[kind], wanted))

    def _routes_hold(self) -> bool:
        """Whether Envoy holds the listeners and routes of the target, so old clusters may go."""
        assert self._target is not None
        target = self._target.resources
        return self._clusters_warm() and all(
            self._has(kind, target[kind]) for kind in (SECRETS, LISTENERS, ROUTES)
        )

    def _respond(
        self, kind: str, channel: _Channel, wanted: dict[str, any_pb2.Any]
    ) -> discovery_pb2.DiscoveryResponse:
        if kind == CLUSTERS:
            self._await_endpoints_of_changed(channel, wanted)
        # A cluster that waits for its endpoints must find them in the answer, changed or not.
        whole = kind not in _OF_EACH or channel.owed
        self._last_nonce += 1
        channel.nonce = str(self._last_nonce)
        channel.acknowledged = channel.answered = channel.owed = False
        channel.sent = wanted
        # What Envoy has not acknowledged is sent again: it may have refused it.
        content = wanted if whole else {n: r for n, r in wanted.items() if not channel.has(n, r)}
        return discovery_pb2.DiscoveryResponse(
            version_info=_version(content),
            resources=[content[name] for name in sorted(content)],
            type_url=kind,
            nonce=channel.nonce,
        )

    def _await_endpoints_of_changed(
        self, clusters: _Channel, wanted: dict[str, any_pb2.Any]
    ) -> None:
        """A cluster that changed warms anew: its endpoints count as not sent."""
        if any(clusters.sent.get(name) != resource for name, resource in wanted.items()):
            self._warming += 1
        endpoints = self._channels.get(ENDPOINTS)
        if endpoints is None:
            return
        for name, old in clusters.sent.items():
            if name in wanted and wanted[name] != old and name in endpoints.sent:
                del endpoints.sent[name]
                endpoints.held.pop(name, None)


def _holds(channel: _Channel, wanted: Resources) -> bool:
    return all(channel.has(name, resource) for name, resource in wanted.items())


def _version(resources: dict[str, any_pb2.Any]) -> str:
    """Equal resources have equal versions, whichever controller sends them."""
    digest = hashlib.sha256()
    for name in sorted(resources):
        digest.update(resources[name].value)
    return digest.hexdigest()[:12]
