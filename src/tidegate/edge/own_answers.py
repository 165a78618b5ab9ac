"""What Envoy answers itself, on nodes and on gateways alike."""

from __future__ import annotations

from envoy.config.core.v3 import base_pb2
from envoy.config.route.v3 import route_components_pb2, route_pb2
from envoy.type.matcher.v3 import string_pb2
from google.protobuf import wrappers_pb2

from tidegate.edge.forwarding import Routes
from tidegate.edge.messages import PAGE_HEADERS
from tidegate.edge.names import CLUSTER_HEADER, ROUTES
from tidegate.edge.settings import SMALL_MESSAGE_SIZE, EdgeSettings
from tidegate.protocols.plain_http.paths import LIST

LIVE, READY, METADATA = "/v2/health/live", "/v2/health/ready", "/v2"
OWN_PATHS = (LIVE, READY)
"""Paths whose answers, whatever their status, are not error messages."""
MESSAGE_ROOM = 2**16
"""Bytes beside the message: the gRPC frame's head, and what is under way when it is full."""

_MIN_DIRECT_RESPONSE = 4096
_GET = string_pb2.StringMatcher(safe_regex={"regex": "GET|HEAD"})


def virtual_host(settings: EdgeSettings) -> route_components_pb2.VirtualHost:
    """Return the one host there is, without routes."""
    # A message can be sent again only while it is held. A large one flows as fast as its server
    # takes it; what else a node holds, its routes say.
    largest = settings.retry_size if settings.gateway else SMALL_MESSAGE_SIZE
    host = route_components_pb2.VirtualHost(
        name="all",
        domains=["*"],
        request_body_buffer_limit=wrappers_pb2.UInt64Value(value=largest + MESSAGE_ROOM),
    )
    if settings.origins:
        _tell_pages(host)
    return host


def configuration(
    host: route_components_pb2.VirtualHost, server_metadata: bytes
) -> route_pb2.RouteConfiguration:
    """Return all routes: those of the one host."""
    return route_pb2.RouteConfiguration(
        name=ROUTES,
        virtual_hosts=[host],
        # Dropped from what clients send before a route is looked up for the first time.
        internal_only_headers=[CLUSTER_HEADER],
        max_direct_response_body_size_bytes=wrappers_pb2.UInt32Value(
            value=max(_MIN_DIRECT_RESPONSE, len(server_metadata))
        ),
    )


def answer_for_server(to: Routes, ready: bool, server_metadata: bytes) -> None:
    """Answer what is asked about the server as a whole."""
    _answer(to, LIVE, 200, b'{"live":true}')
    _answer(to, READY, 200 if ready else 503, b'{"ready":%s}' % (b"true" if ready else b"false"))
    _answer(to, METADATA, 200, server_metadata)
    _answer(to, METADATA + "/", 200, server_metadata)
    _lead_on(to, "/", LIST)


def answer_nothing(to: Routes) -> None:
    """Answer what nobody has."""
    _refuse(to, "method %REQ(:PATH):256%").match.grpc.SetInParent()
    _refuse(to, "%REQ(:METHOD)% %REQ(:PATH):256%")


def _tell_pages(host: route_components_pb2.VirtualHost) -> None:
    for name, value in PAGE_HEADERS:
        host.response_headers_to_add.add(header=base_pb2.HeaderValue(key=name, value=value))


def _answer(to: Routes, path: str, status: int, body: bytes) -> None:
    route = to.routes.add(name=path)
    route.match.path = path
    route.match.headers.add(name=":method", string_match=_GET)
    route.direct_response.status = status
    route.direct_response.body.inline_bytes = body
    route.response_headers_to_add.add(
        header=base_pb2.HeaderValue(key="content-type", value="application/json"),
        append_action=base_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD,
    )
    other = to.routes.add(name=path)
    other.match.path = path
    other.direct_response.status = 405
    words = f"{path} takes GET, not %REQ(:METHOD)%"
    if path in OWN_PATHS:
        other.direct_response.body_format.json_format["error"] = words
    else:
        other.direct_response.body_format.text_format_source.inline_string = words
    other.response_headers_to_add.add(header=base_pb2.HeaderValue(key="allow", value="GET"))


def _lead_on(to: Routes, path: str, place: str) -> None:
    """Lead a person from ``path`` to another one, whatever the name and scheme of the server."""
    route = to.routes.add(name=path)
    route.match.path = path
    route.match.headers.add(name=":method", string_match=_GET)
    route.direct_response.status = 302
    route.response_headers_to_add.add(
        header=base_pb2.HeaderValue(key="location", value=place),
        # Envoy has one of its own for this status, with the scheme that it sees.
        append_action=base_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD,
    )


def _refuse(to: Routes, what: str) -> route_components_pb2.Route:
    route = to.routes.add(name="nothing")
    route.match.prefix = "/"
    route.direct_response.status = 404
    body = route.direct_response.body_format.text_format_source
    body.inline_string = f"there is no {what} here"
    return route
