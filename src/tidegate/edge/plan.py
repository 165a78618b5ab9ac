"""Which of Envoy's clusters there are for the pools of a gateway, and which calls go to each.

Servers of ours speak every protocol, others one: a call goes to those of its model's pool that
speak its protocol, and serve the version that it asks for. Clusters are as few as that allows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from tidegate.edge.names import POOL_PREFIX
from tidegate.edge.pools import (
    GatewayTopology,
    Pool,
    Protocol,
    RoutedModel,
    Server,
    Servers,
    TrafficPolicy,
)

PROTOCOLS: tuple[Protocol, ...] = (
    "tidegate",
    "open-inference",
    "tensorflow-serving",
    "seldon",
)
"""What servers may speak."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a call asks a model for: a version, a label or neither."""

    version: int | None = None
    label: str | None = None
    any_version: bool = False
    """A version that no server is known to have."""
    any_label: bool = False

    @property
    def suffix(self) -> str:
        """What follows the model's name in the routing header; a mark alone stands for any."""
        if self.version is not None or self.any_version:
            return f":{self.version or ''}"
        return f"@{self.label or ''}" if self.label is not None or self.any_label else ""

    def served_by(self, server: Server) -> bool:
        """Whether a server can be asked this."""
        if self.version is not None:
            return server.versions is None or self.version in server.versions
        if self.label is not None:
            return server.labels is None or self.label in server.labels
        if self.any_version:
            return server.versions is None
        return not self.any_label or server.labels is None


@dataclass(frozen=True, slots=True)
class PlannedCluster:
    """One of Envoy's clusters.

    Attributes:
        name: its name.
        pool: the name of the pool whose servers these are.
        model: the name of the model.
        servers: the servers.
        rest: whether it carries REST calls to other servers than ours, over HTTP/1.1 and to the
            place where those answer REST.
        traffic: how its calls travel.
        protocol: that of its calls.
        asked: what these servers, and not all of the pool, can be asked; else nothing.
        copies: whether its calls are copies, whose answers nobody waits for.
    """

    name: str
    pool: str
    model: str
    servers: Servers
    rest: bool
    traffic: TrafficPolicy
    protocol: Protocol = "tidegate"
    asked: Asked = Asked()
    copies: bool = False

    @property
    def ours(self) -> bool:
        """Whether all servers are Tidegate's."""
        return all(server.protocol == "tidegate" for server in self.servers.kinds)

    @property
    def secure(self) -> bool:
        """Whether any of them is spoken to over TLS."""
        return any(server.secure for server in self.servers.kinds)

    def place(self, server: Server) -> str:
        """Return where calls of this cluster reach ``server``: ``HOST:PORT``."""
        return server.rest if self.rest and server.rest is not None else server.address


class Plan:
    """The clusters of a gateway, by name, and what leads to them.

    Args:
        before: an earlier plan; what it holds of models that are the same is used again.

    Attributes:
        clusters: the clusters, by name.
        outlines: by the name of each model, all of it that routes depend on.
        pools: the name of the pool of each cluster.
    """

    def __init__(self, topology: GatewayTopology, before: Plan | None = None) -> None:
        self.clusters: dict[str, PlannedCluster] = {}
        self.outlines: dict[str, RoutedModel] = {}
        self._models: dict[str, tuple[RoutedModel, tuple[PlannedCluster, ...]]] = {}
        for name, model in topology.models.items():
            known = None if before is None else before._models.get(name)
            if before is not None and known is not None and known[0] is model:
                self.outlines[name] = before.outlines[name]
            else:
                known = (model, tuple(clusters_of(model)))
                self.outlines[name] = outline_of(model)
            self._models[name] = known
            for cluster in known[1]:
                self.clusters.setdefault(cluster.name, cluster)
        self.pools = {name: cluster.pool for name, cluster in self.clusters.items()}


def clusters_of(model: RoutedModel) -> Iterable[PlannedCluster]:
    """Return the clusters of a model; some may come twice."""
    for asked in asked_of(model):
        for pool in model.pools:
            if all(server.protocol == "tidegate" for server in pool.servers.kinds):
                ways: Iterable[tuple[Protocol, bool]] = [("tidegate", False)]
            else:
                ways = [(protocol, rest) for protocol in PROTOCOLS for rest in (False, True)]
            for protocol, rest in ways:
                cluster = cluster_for(model, pool, asked, protocol, rest=rest)
                if cluster is not None:
                    yield cluster


def shape_of(cluster: PlannedCluster) -> object:
    """Return what Envoy's cluster is made of; one that changes is built and checked anew."""
    traffic = cluster.traffic
    return (
        cluster.name,
        cluster.model,
        cluster.rest,
        cluster.protocol,
        cluster.asked,
        cluster.copies and (traffic.timeout,),
        (traffic.retry_budget, traffic.max_in_flight),
        (traffic.health_interval, traffic.health_path, traffic.known),
        {
            (s.secure, s.protocol == "tidegate" or s.rest is not None)
            for s in cluster.servers.kinds
        },
    )


def outline_of(model: RoutedModel) -> RoutedModel:
    """Return all of a model that its routes depend on: two servers of each kind are enough.

    They have no addresses, weights and verdicts, so the outlines of a model whose servers come and
    go are mostly equal.
    """

    def of(pool: Pool) -> Pool:
        servers = [s for s, count in pool.servers.kinds.items() for _ in range(min(count, 2))]
        return Pool(pool.name, Servers(sorted(servers, key=_order_of)))

    canary, mirror = model.canary, model.mirror
    return replace(
        model,
        pool=of(model.pool),
        canary=canary and (canary[0], of(canary[1])),
        mirror=mirror and (mirror[0], of(mirror[1])),
        headers=tuple(replace(each, pool=of(each.pool)) for each in model.headers),
    )


def _order_of(server: Server) -> tuple[object, ...]:
    versions, labels = server.versions, server.labels
    return (
        server.protocol,
        server.rest is None,
        server.secure,
        server.priority,
        versions is None,
        sorted(versions or ()),
        labels is None,
        sorted(labels or ()),
    )


def asked_of(model: RoutedModel) -> Iterable[Asked]:
    """Return everything that calls can ask a model for."""
    servers = [server for pool in model.pools for server in pool.servers.kinds]
    yield Asked()
    for version in sorted({v for s in servers for v in s.versions or ()}):
        yield Asked(version=version)
    for label in sorted({each for s in servers for each in s.labels or ()}):
        yield Asked(label=label)
    if any(server.versions is None for server in servers):
        yield Asked(any_version=True)
    if any(server.labels is None for server in servers):
        yield Asked(any_label=True)


def cluster_for(
    model: RoutedModel, pool: Pool, asked: Asked, protocol: Protocol, *, rest: bool
) -> PlannedCluster | None:
    """Return the cluster for calls of a protocol that go to ``pool``.

    ``protocol`` ``tidegate`` stands for those that only servers of ours speak. ``None``: no
    server of the pool can answer such a call.
    """

    def can(server: Server) -> bool:
        return server.speaks(protocol, rest=rest) and asked.served_by(server)

    servers = pool.servers.that(can)
    if not servers:
        return None
    ours = all(server.protocol == "tidegate" for server in servers.kinds)
    name = POOL_PREFIX + pool.name
    if all(asked.served_by(server) for server in pool.servers.kinds):
        asked = Asked()
    else:
        name += asked.suffix
    if not ours:
        name += f"|{protocol}|{'rest' if rest else 'grpc'}"
    elif not all(server.protocol == "tidegate" for server in pool.servers.kinds):
        name += "|ours"
    return PlannedCluster(
        name,
        pool.name,
        model.name,
        servers,
        rest and not ours,
        model.traffic,
        "tidegate" if ours else protocol,
        asked,
        model.mirror is not None and pool is model.mirror[1],
    )
