"""From what a gateway's controller says to what Envoy is told, without doing anything twice.

A gateway has thousands of servers, and some weights change four times a second: what is equal to
what it was is not built again.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from envoy.service.runtime.v3 import rtds_pb2
from google.protobuf import any_pb2

from tidegate.edge.access import guard
from tidegate.edge.ads import CLUSTERS, ENDPOINTS, LISTENERS, ROUTES, RUNTIME, SECRETS, Snapshot
from tidegate.edge.aside import aside_listener
from tidegate.edge.assignments import assignment, socket_address
from tidegate.edge.clusters import controller_cluster
from tidegate.edge.gateway_routes import gateway_route_configuration
from tidegate.edge.health_checks import CHECKS_PER_SECOND, Crowd
from tidegate.edge.listener import client_listener
from tidegate.edge.load_reports import LoadReport, place_of
from tidegate.edge.messages import packed
from tidegate.edge.names import ASIDE, CONTROLLER_CLUSTER, LISTENER
from tidegate.edge.names import ROUTES as ROUTES_NAME
from tidegate.edge.names import RUNTIME as RUNTIME_NAME
from tidegate.edge.plan import Plan, PlannedCluster, shape_of
from tidegate.edge.pools import GatewayTopology, Server, Servers
from tidegate.edge.retry_floors import RetryFloors
from tidegate.edge.server_clusters import server_cluster
from tidegate.edge.settings import EdgeSettings
from tidegate.edge.tls import (
    certificate_name,
    cluster_authorities,
    cluster_secret,
    endpoint_secrets,
    server_secrets,
)
from tidegate.edge.trust import ClientTls

_STEP = 10
"""Percent: changes of weights that are smaller do not change the retry budget."""
_ROOM = 120
"""Percent: calls in flight are not spread exactly by weight."""
_HELP = 5.0
"""Seconds for which servers help out that are no longer there, as in a controller's handover."""


@dataclass(frozen=True, slots=True)
class _Built:
    """One cluster, what it was made of and what became of it."""

    planned: PlannedCluster
    for_settings: object
    shape: object
    cluster: any_pb2.Any
    interval: float
    """Seconds between checks of a server, as the cluster says."""
    endpoints: any_pb2.Any
    believed: any_pb2.Any | None
    """The secret that says whom it believes, if that depends on its servers."""
    share: int
    addresses: Mapping[str, str]
    """The servers' addresses by where Envoy reaches them, if that is not the same."""
    leaving: tuple[Server, ...]
    """Servers that are no longer there, while those that are may not be ready yet."""
    until: float
    """When they are gone."""


class GatewayResources:
    """Makes the snapshots of one gateway, each from the one before."""

    def __init__(self) -> None:
        self._settings: EdgeSettings | None = None
        self._built: dict[str, _Built] = {}
        self._plan: Plan | None = None
        self._routes_for: GatewayTopology | None = None
        self._routes = any_pb2.Any()
        self._fixed: dict[str, Mapping[str, any_pb2.Any]] = {}
        self._floors = RetryFloors()
        self._values: Mapping[str, float] | None = None
        """What the runtime says."""
        self._runtime_of_values = any_pb2.Any()

    @property
    def plan(self) -> Plan | None:
        """The clusters of the last snapshot."""
        return self._plan

    @property
    def next_change(self) -> float:
        """When the same topology gives another snapshot."""
        return min((built.until for built in self._built.values()), default=math.inf)

    def snapshot(self, topology: GatewayTopology, settings: EdgeSettings, now: float) -> Snapshot:
        """Return all resources of an edge."""
        if settings != self._settings:
            self._settings = settings
            self._routes_for = None
            self._fixed = {
                LISTENERS: {
                    LISTENER: packed(client_listener(settings)),
                    ASIDE: packed(aside_listener(settings)),
                },
                CLUSTERS: {
                    CONTROLLER_CLUSTER: packed(controller_cluster(settings.controller_socket))
                },
                SECRETS: server_secrets(settings.tls),
            }
        self._plan = plan = Plan(topology, self._plan)
        sizes = {name: len(planned.servers) for name, planned in plan.clusters.items()}
        new = sum(size for name, size in sizes.items() if name not in self._built)
        crowd = Crowd(sum(sizes.values()), new)
        self._built = {
            name: self._build(planned, settings, crowd, now)
            for name, planned in plan.clusters.items()
        }
        secrets = dict(self._fixed[SECRETS])
        if any(each.secure for each in plan.clusters.values()):
            secrets.update(endpoint_secrets(settings.upstream_tls))
            secrets.update(
                (cluster_authorities(name), built.believed)
                for name, built in self._built.items()
                if built.believed is not None
            )
        clusters = dict(self._fixed[CLUSTERS])
        clusters.update((name, built.cluster) for name, built in self._built.items())
        return Snapshot(
            {
                CLUSTERS: clusters,
                ENDPOINTS: {name: built.endpoints for name, built in self._built.items()},
                SECRETS: secrets,
                LISTENERS: self._fixed[LISTENERS],
                ROUTES: {ROUTES_NAME: self._route(topology, plan, settings)},
                RUNTIME: {RUNTIME_NAME: self._runtime(plan)},
            }
        )

    def observe(self, report: LoadReport) -> any_pb2.Any | None:
        """Take what is in flight; return what Envoy's runtime is to be, if it changes."""
        if not self._floors.observe(report) or self._plan is None:
            return None
        return self._runtime(self._plan)

    def by_server(self, report: LoadReport) -> LoadReport:
        """Return ``report`` of the servers alone, by their addresses."""
        clusters = {}
        for name, endpoints in report.clusters.items():
            built = self._built.get(name)
            if built is not None:
                known = built.addresses
                clusters[name] = {known.get(p, p): load for p, load in endpoints.items()}
        return LoadReport(report.elapsed, clusters)

    def _build(
        self, planned: PlannedCluster, settings: EdgeSettings, crowd: Crowd, now: float
    ) -> _Built:
        for_settings = (settings.threads, settings.upstream_tls)
        before = self._built.get(planned.name)
        if before is not None and before.for_settings != for_settings:
            before = None
        leaving, until = _leaving(before, planned, now)
        if before is not None and before.planned is planned and before.leaving == leaving:
            return before
        shape = shape_of(planned)
        if before is not None and before.shape == shape:
            cluster, interval = before.cluster, before.interval
        else:
            cluster = packed(server_cluster(planned, settings, crowd))
            interval = crowd.interval(planned)
        asked = planned
        if leaving:
            asked = replace(planned, servers=Servers((*planned.servers, *leaving)))
        return _Built(
            planned,
            for_settings,
            shape,
            cluster,
            interval,
            assignment(asked),
            _believed(asked, settings.upstream_tls),
            _largest_share(planned),
            _addresses(asked),
            leaving,
            until,
        )

    def _route(self, topology: GatewayTopology, plan: Plan, settings: EdgeSettings) -> any_pb2.Any:
        wanted = replace(topology, models=plan.outlines)
        if wanted != self._routes_for:
            routes = gateway_route_configuration(wanted, settings)
            guard(routes, settings.api_keys)
            self._routes = packed(routes)
            self._routes_for = wanted
        return self._routes

    def _runtime(self, plan: Plan) -> any_pb2.Any:
        """Return what depends on how many servers there are and on what they do."""
        servers = sum(len(planned.servers) for planned in plan.clusters.values())
        checks = sum(len(b.planned.servers) / b.interval for b in self._built.values())
        # Clusters that were made when there were fewer servers ask too often. It holds back the
        # first check of a server, too.
        held_back = 1000 * servers // CHECKS_PER_SECOND if checks > CHECKS_PER_SECOND else 1
        values: dict[str, float] = {"health_check.min_interval": held_back}
        for name, built in self._built.items():
            traffic = built.planned.traffic
            prefix = f"circuit_breakers.{name}.default."
            if built.share > traffic.retry_budget:
                values[prefix + "retry_budget.budget_percent"] = built.share
            floor = self._floors.floors.get(name)
            if floor is not None:
                values[prefix + "retry_budget.min_retry_concurrency"] = floor
            if traffic.max_in_flight is not None:
                # As many as are served may wait.
                waiting = traffic.max_in_flight * len(built.planned.servers)
                values[prefix + "max_pending_requests"] = waiting
        if values != self._values:
            runtime = rtds_pb2.Runtime(name=RUNTIME_NAME)
            runtime.layer.update(values)
            self._values, self._runtime_of_values = values, packed(runtime)
        return self._runtime_of_values


def _leaving(
    before: _Built | None, planned: PlannedCluster, now: float
) -> tuple[tuple[Server, ...], float]:
    """Return which servers still help out, and until when.

    Servers get calls when they have passed a check. When all of a cluster are replaced at once, as
    those of a model's old version are, nobody could answer until then. Where a whole pool is
    replaced, the controller keeps the old ones in it (:mod:`tidegate.gateway.handover`), and this
    finds nothing to do.
    """
    if before is None:
        return (), math.inf
    if before.planned is planned:
        return (before.leaving, before.until) if now < before.until else ((), math.inf)
    here = {server.address for server in planned.servers}
    if before.leaving:
        leaving, until = before.leaving, before.until
    elif any(s.address in here for s in before.planned.servers if not s.ejected):
        return (), math.inf
    else:
        leaving, until = before.planned.servers, now + _HELP
    if now >= until:
        return (), math.inf
    last = max(server.priority for server in planned.servers) + 1
    kept = tuple(replace(s, priority=last) for s in leaving if s.address not in here)
    return kept, until if kept else math.inf


def _believed(planned: PlannedCluster, tls: ClientTls) -> any_pb2.Any | None:
    if tls.ca is None or not (planned.secure and tls.addresses_count):
        return None
    nameless = [s for s in planned.servers if s.secure and certificate_name(s.name) is None]
    places = {place for s in nameless for place in (s.address, s.rest) if place is not None}
    hosts = {socket_address(place).socket_address.address for place in places}
    return cluster_secret(planned.name, tls.ca, hosts)


def _addresses(planned: PlannedCluster) -> Mapping[str, str]:
    known = ((_reached_at(planned.place(server)), server.address) for server in planned.servers)
    return {place: address for place, address in known if place != address}


@functools.lru_cache(maxsize=2**15)
def _reached_at(place: str) -> str:
    """Return a place as Envoy writes it."""
    return place_of(socket_address(place))


def _largest_share(planned: PlannedCluster) -> int:
    """Return the share of the calls that the server with the most has, in percent of the others'.

    That many are to be tried again when it dies, and they are no longer in flight then.
    """
    weights = [server.weight for server in planned.servers if not server.ejected]
    if len(weights) < 2:
        return 100
    most = max(weights)
    others = sum(weights) - most
    return min(100, math.ceil(_ROOM * most / others / _STEP) * _STEP)
