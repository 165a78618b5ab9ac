"""How a route sends a call on: deadlines, and what is asked of another server again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeAlias

from envoy.config.core.v3 import base_pb2
from envoy.config.route.v3 import route_components_pb2
from envoy.extensions.filters.http.buffer.v3 import buffer_pb2
from envoy.extensions.retry.host.previous_hosts.v3 import previous_hosts_pb2
from envoy.type.matcher.v3 import string_pb2
from google.protobuf import wrappers_pb2

from tidegate.edge.messages import packed, seconds
from tidegate.edge.names import (
    ASIDE,
    ASIDE_KEY_HEADER,
    BUFFER_FILTER,
    CLUSTER_HEADER,
    CONTROLLER_CLUSTER,
    KEY_HEADER,
)
from tidegate.edge.settings import EdgeSettings
from tidegate.protocols.routing import Routing

Routes: TypeAlias = "route_components_pb2.VirtualHost | route_components_pb2.RouteList"
"""What routes are added to; the first that fits counts."""

_RETRY_BACK_OFF = 0.005


def forward_to_controller(to: Routes) -> None:
    """Send to the controller what the routing script says is its."""
    route = to.routes.add(name="controller")
    route.match.prefix = "/"
    match_cluster(route, exact=CONTROLLER_CLUSTER)
    ask_controller(route)
    # The controller's calls change things: only what it has not seen is sent again.
    route.route.retry_policy.retry_on = "connect-failure,refused-stream,reset-before-request"
    route.route.retry_policy.num_retries.value = 1


def ask_controller(route: route_components_pb2.Route) -> None:
    """Let the controller answer."""
    forward(route)
    route.route.cluster = CONTROLLER_CLUSTER


def read_paths(routings: Iterable[Routing]) -> Iterator[str]:
    """Return the gRPC methods whose message the routing script reads."""
    for routing in routings:
        for method in routing.methods:
            if method.model or method.tags:
                yield method.path


def awaited_route(largest: int) -> route_components_pb2.Route:
    """Return a route on which nothing goes anywhere: it says how much of a message is held.

    The routing script waits for all of it, and finds another route. Without one, a message that
    is larger than its sender's window (see listener.py) would be refused. A later route can let
    more be held, and not less.
    """
    route = route_components_pb2.Route(name="awaited")
    route.match.prefix = "/"
    # A sender that falls silent is cut, as it is before its call has any route.
    route.route.cluster = CONTROLLER_CLUSTER
    route.request_body_buffer_limit.value = largest
    return route


def crowded_route() -> route_components_pb2.Route:
    """Return the route of calls that find no place to be read."""
    route = route_components_pb2.Route(name="crowded")
    route.match.prefix = "/"
    forward(route)
    route.route.cluster = ASIDE
    # What is removed is removed before this is added.
    route.request_headers_to_remove.append(ASIDE_KEY_HEADER)
    route.request_headers_to_add.add(
        header=base_pb2.HeaderValue(key=ASIDE_KEY_HEADER, value=f"%REQ({KEY_HEADER})%")
    )
    return route


def match_cluster(route: route_components_pb2.Route, **pattern: str) -> None:
    """Let a route fit what the routing script has found."""
    route.match.headers.add(name=CLUSTER_HEADER, string_match=string_pb2.StringMatcher(**pattern))


def forward_inference(route: route_components_pb2.Route) -> None:
    """Send a call to a server that serves a model; if it breaks off, to another one."""
    forward(route)
    retry_elsewhere(route)


def retry_elsewhere(route: route_components_pb2.Route) -> None:
    """Ask another server, once, when one cannot be reached or breaks off before it answers."""
    retry = route.route.retry_policy
    # Not "unavailable": it would run again what the model refused.
    retry.retry_on = "connect-failure,refused-stream,reset"
    retry.num_retries.value = 1
    retry.retry_back_off.base_interval.CopyFrom(seconds(_RETRY_BACK_OFF))
    retry.retry_back_off.max_interval.CopyFrom(seconds(_RETRY_BACK_OFF))
    predicate = retry.retry_host_predicate.add(name="envoy.retry_host_predicates.previous_hosts")
    predicate.typed_config.CopyFrom(packed(previous_hosts_pb2.PreviousHostsPredicate()))
    # The balancer draws again this often until the replica is another one. A dead replica has
    # the fewest calls in flight, so a few draws would often find nothing else.
    retry.host_selection_retry_max_attempts = 256


def body_limit(settings: EdgeSettings) -> buffer_pb2.Buffer:
    """Return the filter that waits for a whole body, and refuses one that is too long."""
    return buffer_pb2.Buffer(
        max_request_bytes=wrappers_pb2.UInt32Value(value=settings.max_message_size)
    )


def leave_out(route: route_components_pb2.Route, *filters: str) -> None:
    """Let a route's calls pass some filters by, which are not even made for them.

    It counts only for a route that is found before any filter has run: by path and headers as
    they came. A filter that is switched off in its own way costs 2 % of Envoy's time for a call.
    """
    off = packed(route_components_pb2.FilterConfig(disabled=True))
    for name in filters:
        route.typed_per_filter_config[name].CopyFrom(off)


def unbound(route: route_components_pb2.Route) -> None:
    """Let bodies of a route pass as they come: a stream has no end to wait for."""
    passed = buffer_pb2.BufferPerRoute(disabled=True)
    route.typed_per_filter_config[BUFFER_FILTER].CopyFrom(packed(passed))


def forward(route: route_components_pb2.Route) -> None:
    """The caller's deadline rules, and nothing else: an inference may take hours."""
    action = route.route
    action.timeout.CopyFrom(seconds(0))
    action.idle_timeout.CopyFrom(seconds(0))
    action.max_stream_duration.grpc_timeout_header_max.CopyFrom(seconds(0))
