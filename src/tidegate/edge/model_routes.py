"""The routes of one model behind a gateway: which servers get a call, and for how long."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from envoy.config.core.v3 import base_pb2
from envoy.config.route.v3 import route_components_pb2
from envoy.extensions.retry.priority.previous_priorities.v3 import previous_priorities_config_pb2
from envoy.type.v3 import percent_pb2

from tidegate.edge.dialects import FOREIGN, OURS, REWRITTEN, UNWRITTEN, Calls
from tidegate.edge.forwarding import ask_controller, retry_elsewhere, unbound
from tidegate.edge.limits import mark_model
from tidegate.edge.messages import packed, seconds
from tidegate.edge.names import CLUSTER_HEADER, POOL_PREFIX
from tidegate.edge.plan import PROTOCOLS, Asked, PlannedCluster, cluster_for
from tidegate.edge.pools import HeaderPool, Pool, RoutedModel, Server, TrafficPolicy
from tidegate.protocols import seldon
from tidegate.protocols.load_reports import ASK_HEADER, ASK_VALUE

_SHARES = 999_983
"""What shares of calls are parts of. A prime: Envoy draws one number for a call and takes its
remainders, so parts of a power of ten would make copies of just those calls that go one way."""
_MILLIONTHS = 10_000
"""In a percent."""
_NOT_BEGUN = "connect-failure,refused-stream,reset-before-request"
"""When a call is tried again that changes something."""
_OF_A_LONE_ONE = "refused-stream,reset-before-request"
_OWN_HEADERS = (
    CLUSTER_HEADER, ASK_HEADER, "x-envoy-external-address", "x-envoy-attempt-count",
)  # fmt: skip
"""What no server needs to know."""


@dataclass(frozen=True, slots=True)
class _Way:
    """Where calls go that ask a model for the same: to one pool, and a part to another."""

    model: RoutedModel
    asked: Asked
    named: bool
    bound: bool
    pool: Pool
    canary: tuple[float, Pool] | None = None
    header: HeaderPool | None = None

    @property
    def pools(self) -> tuple[Pool, ...]:
        """All that may get a call."""
        parts = (self.canary, self.model.mirror)
        return (self.pool, *(part[1] for part in parts if part is not None))

    def able(self, pool: Pool) -> tuple[Server, ...]:
        """Return the servers of a pool that can be asked this."""
        return tuple(server for server in pool.servers if self.asked.served_by(server))

    def cluster(self, pool: Pool, calls: Calls) -> PlannedCluster | None:
        """Return the cluster for calls that go to a pool."""
        return cluster_for(self.model, pool, self.asked, calls.protocol, rest=calls.rest)


def model_routes(
    model: RoutedModel, asked: Asked, *, named: bool = True, bound: bool = True
) -> route_components_pb2.RouteList:
    """Return the routes for calls of a model; the first that fits counts.

    ``named`` is whether they call it by its name, and not by a task or not at all; ``bound``
    whether what servers of ours bound themselves is bounded here, too, by waiting for all of it.
    """
    routes = route_components_pb2.RouteList()
    for header in model.headers:
        _add(routes, _Way(model, asked, named, bound, header.pool, header=header))
    pool, canary = model.pool, model.canary
    if canary is not None and asked != Asked():
        # Who asks for a version gets it from those who have it.
        if not any(map(asked.served_by, pool.servers)):
            pool = canary[1]
        canary = None
    _add(routes, _Way(model, asked, named, bound, pool, canary))
    return routes


def _add(routes: route_components_pb2.RouteList, way: _Way) -> None:
    if not way.pool.servers:
        _nobody(_route(routes, way), way.pool)
        return
    if not way.able(way.pool):
        _absent(_route(routes, way), way)
        return
    for calls in _kinds(way):
        main = way.cluster(way.pool, calls)
        if main is None:
            continue
        route = _route(routes, way)
        calls.fit(route.match)
        calls.rewrite(route.route)
        sharing = [main]
        if way.canary is None or (other := way.cluster(way.canary[1], calls)) is None:
            route.route.cluster = main.name
        else:
            _share(route.route, main, other, way.canary[0])
            sharing.append(other)
        _mirror(route.route, way, calls)
        _limit(route.route, way.model.traffic, rest=calls.rest)
        _retry(route, way.model.traffic, calls, sharing)
        read = not calls.rest and calls.protocol != "seldon"
        if read or not (way.bound or any(not cluster.ours for cluster in sharing)):
            unbound(route)  # the routing script has read and bounded it, or its servers bound it
        route.request_headers_to_remove.extend(_OWN_HEADERS)
        if main.ours:  # what is removed is removed before this is added
            route.request_headers_to_add.add(
                header=base_pb2.HeaderValue(key=ASK_HEADER, value=ASK_VALUE),
                append_action=base_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD,
            )
        if calls.protocol == "seldon" or not way.named:
            # Its messages do not name a model, and a server may have several.
            route.request_headers_to_add.add(
                header=base_pb2.HeaderValue(key=seldon.HEADER, value=way.model.name),
                append_action=base_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD,
            )
    if not _all_ours(way.able(way.pool)):
        _refuse(_route(routes, way), way)


def _kinds(way: _Way) -> Iterable[Calls]:
    """Return the kinds of calls that are told apart, the first that fits first."""
    if all(_all_ours(way.able(pool)) for pool in way.pools):
        return OURS
    # A message that names a task, and not the model, is one that only ours understand.
    ours = any(server.protocol == "tidegate" for server in way.able(way.pool))
    service = REWRITTEN if way.named or not ours else (UNWRITTEN,)
    return (*FOREIGN, *service, *OURS)


def _all_ours(servers: Iterable[Server]) -> bool:
    return all(server.protocol == "tidegate" for server in servers)


def _route(routes: route_components_pb2.RouteList, way: _Way) -> route_components_pb2.Route:
    """Add a route, whose name stands in the replies that Envoy makes."""
    route = routes.routes.add(name=f"model {way.model.name}")
    mark_model(route, way.model.name)
    route.match.prefix = "/"
    if way.header is not None:
        matcher = route.match.headers.add(name=way.header.header)
        if way.header.value is None:
            matcher.present_match = True
        else:
            matcher.string_match.exact = way.header.value
    return route


def _share(
    action: route_components_pb2.RouteAction,
    main: PlannedCluster,
    canary: PlannedCluster,
    percent: float,
) -> None:
    share = round(_SHARES * percent / 100)
    for cluster, weight in ((main, _SHARES - share), (canary, share)):
        action.weighted_clusters.clusters.add(name=cluster.name).weight.value = weight


def _mirror(action: route_components_pb2.RouteAction, way: _Way, calls: Calls) -> None:
    """Copy a part of the calls, for servers whose answers nobody waits for."""
    if way.model.mirror is None:
        return
    percent, pool = way.model.mirror
    cluster = way.cluster(pool, calls)
    if cluster is None or not percent:
        return
    policy = action.request_mirror_policies.add(cluster=cluster.name)
    policy.disable_shadow_host_suffix_append = True
    share = policy.runtime_fraction.default_value
    share.numerator = round(percent * _MILLIONTHS)
    share.denominator = percent_pb2.FractionalPercent.MILLION


def _limit(
    action: route_components_pb2.RouteAction, traffic: TrafficPolicy, *, rest: bool
) -> None:
    """The caller's deadline rules, but the model's timeout is the longest that there is."""
    longest = seconds(traffic.timeout or 0)
    action.timeout.CopyFrom(longest)
    action.idle_timeout.CopyFrom(seconds(0))
    if rest:
        action.max_stream_duration.grpc_timeout_header_max.CopyFrom(longest)
        if traffic.timeout is not None:
            action.max_stream_duration.max_stream_duration.CopyFrom(longest)
    else:
        # The old form of the same. It alone tells servers what is left of a deadline at each try,
        # and the new one would switch it off.
        action.max_grpc_timeout.CopyFrom(longest)


def _retry(
    route: route_components_pb2.Route,
    traffic: TrafficPolicy,
    calls: Calls,
    clusters: Sequence[PlannedCluster],
) -> None:
    """Ask another server, once; where there is no other, nothing that it may have begun."""
    retry_elsewhere(route)
    retry = route.route.retry_policy
    retry.num_retries.value = traffic.retries
    if traffic.per_try_timeout is not None:
        retry.per_try_timeout.CopyFrom(seconds(traffic.per_try_timeout))
    if calls.changes:
        retry.retry_on = _NOT_BEGUN
    if any(len(cluster.servers) == 1 for cluster in clusters):
        _retry_by_cluster(route.route, clusters)
    if any(server.priority for cluster in clusters for server in cluster.servers):
        # The first pool may have one server alone that is healthy.
        retry.retry_priority.name = "envoy.retry_priorities.previous_priorities"
        retry.retry_priority.typed_config.CopyFrom(
            packed(previous_priorities_config_pb2.PreviousPrioritiesConfig(update_frequency=1))
        )


def _retry_by_cluster(
    action: route_components_pb2.RouteAction, clusters: Sequence[PlannedCluster]
) -> None:
    """Ask a lone server again for less than is asked of others, where calls are shared out.

    A route has one policy. Envoy adds to it what a header of the call says: its own, since those
    that come from outside are dropped.
    """
    usual, action.retry_policy.retry_on = action.retry_policy.retry_on, _OF_A_LONE_ONE
    if not action.retry_policy.num_retries.value:
        return
    for cluster, share in zip(clusters, action.weighted_clusters.clusters):
        if len(cluster.servers) > 1:
            share.request_headers_to_add.add(
                header=base_pb2.HeaderValue(key="x-envoy-retry-on", value=usual),
                append_action=base_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD,
            )


def _nobody(route: route_components_pb2.Route, pool: Pool) -> None:
    """Answer for a model that nobody serves now: there is no such cluster, as replies say."""
    route.route.cluster = POOL_PREFIX + pool.name
    route.route.cluster_not_found_response_code = (
        route_components_pb2.RouteAction.SERVICE_UNAVAILABLE
    )


def _absent(route: route_components_pb2.Route, way: _Way) -> None:
    """Answer for a version or label that no server of the pool has."""
    if way.header is None:
        ask_controller(route)
        return
    route.route.cluster = "nobody"
    route.route.cluster_not_found_response_code = route_components_pb2.RouteAction.NOT_FOUND


def _refuse(route: route_components_pb2.Route, way: _Way) -> None:
    """Answer a call in a protocol that no server of the pool speaks."""
    servers = way.able(way.pool)
    spoken = []
    for protocol in PROTOCOLS:
        speaking = [server for server in servers if server.protocol == protocol]
        if speaking:
            rest = any(server.rest is not None for server in speaking)
            spoken.append(f"{protocol} over gRPC" + (" and REST" if rest else ""))
    route.direct_response.status = 501
    body = route.direct_response.body_format.text_format_source
    body.inline_string = (
        f"the endpoints of model {way.model.name} speak {'; '.join(spoken)}, and "
        "%REQ(:PATH):256% is no call of that"
    )
