"""Routes: what Envoy answers itself, and where the rest goes."""

from __future__ import annotations

import re

from envoy.config.core.v3 import base_pb2
from envoy.config.route.v3 import route_components_pb2, route_pb2
from envoy.extensions.filters.http.lua.v3 import lua_pb2
from envoy.extensions.retry.host.previous_hosts.v3 import previous_hosts_pb2
from envoy.type.matcher.v3 import string_pb2
from google.protobuf import wrappers_pb2

from tidegate.edge.limits import mark_model
from tidegate.edge.messages import PAGE_HEADERS, packed, seconds
from tidegate.edge.names import (
    CLUSTER_HEADER,
    CONTROLLER_CLUSTER,
    MODEL_PREFIX,
    ORIGIN_HEADER,
    ROUTES,
    ROUTING_FILTER,
    SOLE,
    TASK_PREFIX,
)
from tidegate.edge.settings import EdgeSettings
from tidegate.edge.topology import Topology
from tidegate.protocols.plain_http.paths import LIST

LIVE, READY, METADATA = "/v2/health/live", "/v2/health/ready", "/v2"
OWN_PATHS = (LIVE, READY)
"""Paths whose answers, whatever their status, are not error messages."""

_MIN_DIRECT_RESPONSE = 4096
_RETRY_BACK_OFF = 0.005
_GET = string_pb2.StringMatcher(safe_regex={"regex": "GET|HEAD"})
_TASK_IN_NAME = re.compile("-([0-9]{1,18})$")


def route_configuration(
    topology: Topology, settings: EdgeSettings
) -> route_pb2.RouteConfiguration:
    """Return all routes; they name no model, unless there is only one."""
    ready, server_metadata = topology.ready, topology.server_metadata
    largest = settings.max_message_size + MESSAGE_ROOM
    host = route_components_pb2.VirtualHost(
        name="all",
        domains=["*"],
        include_request_attempt_count=True,
        # A message can be sent again only while it is held, so all of it is.
        request_body_buffer_limit=wrappers_pb2.UInt64Value(value=largest),
    )
    if settings.origins:
        _tell_pages(host)
    if topology.sole is not None:
        for routing in settings.routings:
            for method in routing.methods:
                if not method.header:
                    # A replica does not see which model a header names.
                    _forward_unread(host, method.path, topology.sole)
    _answer(host, LIVE, 200, b'{"live":true}')
    _answer(host, READY, 200 if ready else 503, b'{"ready":%s}' % (b"true" if ready else b"false"))
    _answer(host, METADATA, 200, server_metadata)
    _answer(host, METADATA + "/", 200, server_metadata)
    _lead_on(host, "/", LIST)
    _forward_to_controller(host)
    _forward_labelled(host, topology)
    if settings.limits.of_models:
        _forward_limited(host, topology)
    _forward_to_model(host)
    _forward_named_otherwise(host, topology)
    _answer_nothing(host, "method %REQ(:PATH):256%").match.grpc.SetInParent()
    _answer_nothing(host, "%REQ(:METHOD)% %REQ(:PATH):256%")
    return route_pb2.RouteConfiguration(
        name=ROUTES,
        virtual_hosts=[host],
        # Dropped from what clients send before a route is looked up for the first time.
        internal_only_headers=[CLUSTER_HEADER, ORIGIN_HEADER],
        max_direct_response_body_size_bytes=wrappers_pb2.UInt32Value(
            value=max(_MIN_DIRECT_RESPONSE, len(server_metadata))
        ),
    )


MESSAGE_ROOM = 2**16
"""Bytes beside the message: the gRPC frame's head, and what is under way when it is full."""


def _tell_pages(host: route_components_pb2.VirtualHost) -> None:
    for name, value in PAGE_HEADERS:
        host.response_headers_to_add.add(header=base_pb2.HeaderValue(key=name, value=value))


def _answer(host: route_components_pb2.VirtualHost, path: str, status: int, body: bytes) -> None:
    route = host.routes.add(name=path)
    route.match.path = path
    route.match.headers.add(name=":method", string_match=_GET)
    route.direct_response.status = status
    route.direct_response.body.inline_bytes = body
    route.response_headers_to_add.add(
        header=base_pb2.HeaderValue(key="content-type", value="application/json"),
        append_action=base_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD,
    )
    other = host.routes.add(name=path)
    other.match.path = path
    other.direct_response.status = 405
    words = f"{path} takes GET, not %REQ(:METHOD)%"
    if path in OWN_PATHS:
        other.direct_response.body_format.json_format["error"] = words
    else:
        other.direct_response.body_format.text_format_source.inline_string = words
    other.response_headers_to_add.add(header=base_pb2.HeaderValue(key="allow", value="GET"))


def _lead_on(host: route_components_pb2.VirtualHost, path: str, to: str) -> None:
    """Lead a person from ``path`` to another one, whatever the name and scheme of the server."""
    route = host.routes.add(name=path)
    route.match.path = path
    route.match.headers.add(name=":method", string_match=_GET)
    route.direct_response.status = 302
    route.response_headers_to_add.add(
        header=base_pb2.HeaderValue(key="location", value=to),
        # Envoy has one of its own for this status, with the scheme that it sees.
        append_action=base_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD,
    )


def _answer_nothing(
    host: route_components_pb2.VirtualHost, what: str
) -> route_components_pb2.Route:
    route = host.routes.add(name="nothing")
    route.match.prefix = "/"
    route.direct_response.status = 404
    body = route.direct_response.body_format.text_format_source
    body.inline_string = f"there is no {what} here"
    return route


def _forward_unread(host: route_components_pb2.VirtualHost, path: str, key: str) -> None:
    """Send a gRPC method to the only model that there is, as its messages come.

    The routing script would take a quarter of Envoy's time for a small message.
    """
    route = host.routes.add(name=path)
    route.match.path = path
    route.match.grpc.SetInParent()
    _forward_inference(route)
    _lead_to(route, key)
    route.typed_per_filter_config[ROUTING_FILTER].CopyFrom(
        packed(lua_pb2.LuaPerRoute(disabled=True))
    )


def _forward_to_controller(host: route_components_pb2.VirtualHost) -> None:
    route = host.routes.add(name="controller")
    route.match.prefix = "/"
    _match_cluster(route, exact=CONTROLLER_CLUSTER)
    _forward(route)
    route.route.cluster = CONTROLLER_CLUSTER
    # The controller's calls change things: only what it has not seen is sent again.
    route.route.retry_policy.retry_on = "connect-failure,refused-stream,reset-before-request"
    route.route.retry_policy.num_retries.value = 1


def _forward_labelled(host: route_components_pb2.VirtualHost, topology: Topology) -> None:
    """Send calls to the versions that have labels; the controller answers for other labels."""
    for key in filter(lambda key: "@" in key, topology.clusters):
        route = host.routes.add(name=key)
        route.match.prefix = "/"
        _match_cluster(route, exact=MODEL_PREFIX + key)
        _forward_inference(route)
        _lead_to(route, key)
    route = host.routes.add(name="label")
    route.match.prefix = "/"
    _match_cluster(route, contains="@")
    _forward(route)
    route.route.cluster = CONTROLLER_CLUSTER


def _forward_limited(host: route_components_pb2.VirtualHost, topology: Topology) -> None:
    """Tell the models apart, so that each has a bucket, and names that are none have not."""
    for name in topology.models:
        for pattern in ({"exact": MODEL_PREFIX + name}, {"prefix": f"{MODEL_PREFIX}{name}:"}):
            route = _forward_to_model(host)
            del route.match.headers[:]
            _match_cluster(route, **pattern)
            mark_model(route, name)


def _forward_to_model(host: route_components_pb2.VirtualHost) -> route_components_pb2.Route:
    route = host.routes.add(name="model")
    route.match.prefix = "/"
    _match_cluster(route, prefix=MODEL_PREFIX)
    _forward_inference(route)
    route.route.cluster_header = CLUSTER_HEADER
    route.route.cluster_not_found_response_code = route_components_pb2.RouteAction.NOT_FOUND
    return route


def _forward_named_otherwise(host: route_components_pb2.VirtualHost, topology: Topology) -> None:
    """Send calls to the model that has a task, or that is the only one.

    The controller answers those that lead nowhere.
    """

    def forward(to: str, **pattern: str) -> None:
        route = host.routes.add(name=next(iter(pattern.values())))
        route.match.prefix = "/"
        _match_cluster(route, **pattern)
        _forward_inference(route)
        _lead_to(route, to)

    models = topology.models
    if len(models) == 1 and models[0] in topology.clusters:
        forward(models[0], exact=SOLE)
    for name in models:
        # A name goes before the task that it seems to name.
        task = _TASK_IN_NAME.search(name)
        if task is not None and name in topology.clusters:
            forward(name, exact=f"{TASK_PREFIX}{task[1]}/{name}")
    for task_id, name in topology.tasks.items():
        forward(name, prefix=f"{TASK_PREFIX}{task_id}/")
    for pattern in ({"exact": SOLE}, {"prefix": TASK_PREFIX}):
        route = host.routes.add(name="nobody")
        route.match.prefix = "/"
        _match_cluster(route, **pattern)
        _forward(route)
        route.route.cluster = CONTROLLER_CLUSTER


def _lead_to(route: route_components_pb2.Route, key: str) -> None:
    """Send calls to a key of the topology's clusters."""
    route.route.cluster = MODEL_PREFIX + key
    mark_model(route, re.split("[:@]", key)[0])


def _match_cluster(route: route_components_pb2.Route, **pattern: str) -> None:
    route.match.headers.add(name=CLUSTER_HEADER, string_match=string_pb2.StringMatcher(**pattern))


def _forward_inference(route: route_components_pb2.Route) -> None:
    _forward(route)
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


def _forward(route: route_components_pb2.Route) -> None:
    """The caller's deadline rules, and nothing else: an inference may take hours."""
    action = route.route
    action.timeout.CopyFrom(seconds(0))
    action.idle_timeout.CopyFrom(seconds(0))
    action.max_stream_duration.grpc_timeout_header_max.CopyFrom(seconds(0))
