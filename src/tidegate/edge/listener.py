"""The listener: how clients are heard, bounded and logged."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from envoy.config.accesslog.v3 import accesslog_pb2
from envoy.config.core.v3 import address_pb2, protocol_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.extensions.access_loggers.file.v3 import file_pb2
from envoy.extensions.filters.http.lua.v3 import lua_pb2
from envoy.extensions.filters.http.router.v3 import router_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2 as hcm_pb2,
)
from google.protobuf import struct_pb2, wrappers_pb2
from google.protobuf.message import Message

from tidegate.edge.access import key_filter
from tidegate.edge.forwarding import body_limit
from tidegate.edge.limits import key_limiters, model_limiters
from tidegate.edge.local_replies import local_reply_config
from tidegate.edge.messages import TARGET, from_controller, packed, seconds
from tidegate.edge.names import (
    BUFFER_FILTER,
    KEY_FILTER,
    KEY_HEADER,
    KEY_LIMIT_FILTER,
    LISTENER,
    MODEL_LIMIT_FILTER,
    ORIGINS_FILTER,
    ROUTES,
    ROUTING_FILTER,
)
from tidegate.edge.own_answers import OWN_PATHS
from tidegate.edge.routing_script import origins_script, routing_script
from tidegate.edge.settings import EdgeSettings
from tidegate.edge.tls import listener_transport_socket

_HANDSHAKE_TIMEOUT = 10.0
_BUFFER = 2**20
"""Bytes of a call that are taken before its sender has to wait. They bound a body that is awaited
as a whole, too (see routing.lua), unless its route says otherwise. With more of them, a gateway
would send whole messages to a node before the ping by which it finds out whether the node lives.
"""
_CONNECTION_WINDOW = 2**28
"""Bytes on one connection: 256 calls have to wait for their servers before the others wait."""
_CALLS_OF_CLIENT, _CALLS_OF_GATEWAY = 2**11, 2**14
"""At a time on one connection. Each takes 15 KB of memory, also if nothing comes but its head; a
gateway, which comes to nodes, has all its clients' calls on a few connections."""
_Manager = hcm_pb2.HttpConnectionManager

_LOG_FIELDS = {
    "time": "%START_TIME%",
    "method": "%REQ(:METHOD)%",
    "path": "%REQ(:PATH):1024%",
    "protocol": "%PROTOCOL%",
    "target": TARGET,
    "status": "%RESPONSE_CODE%",
    "grpc_status": "%GRPC_STATUS%",
    "details": "%RESPONSE_CODE_DETAILS%",
    "flags": "%RESPONSE_FLAGS%",
    "duration_ms": "%DURATION%",
    "bytes_received": "%BYTES_RECEIVED%",
    "bytes_sent": "%BYTES_SENT%",
    "attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
    "replica": "%UPSTREAM_HOST%",
    "client": "%DOWNSTREAM_REMOTE_ADDRESS%",
    "request_id": "%REQ(X-REQUEST-ID)%",
    "traceparent": "%REQ(TRACEPARENT):64%",
    "user_agent": "%REQ(USER-AGENT):256%",
}


def client_listener(settings: EdgeSettings) -> listener_pb2.Listener:
    """Return the listener on the public address."""
    listener = listener_pb2.Listener(
        name=LISTENER,
        address=address_pb2.Address(
            socket_address=address_pb2.SocketAddress(
                address=settings.host, port_value=settings.port
            )
        ),
        per_connection_buffer_limit_bytes=wrappers_pb2.UInt32Value(value=_BUFFER),
        tcp_backlog_size=wrappers_pb2.UInt32Value(value=4096),
        # A port that somebody else holds is an error that names it, and never shared.
        enable_reuse_port=wrappers_pb2.BoolValue(value=False),
    )
    # gRPC clients keep one connection each: a few of them must not end up on one thread.
    listener.connection_balance_config.exact_balance.SetInParent()
    chain = listener.filter_chains.add()
    if settings.tls is not None:
        chain.transport_socket.CopyFrom(listener_transport_socket(settings.tls))
        # A client that connects and says nothing is no client.
        chain.transport_socket_connect_timeout.CopyFrom(seconds(_HANDSHAKE_TIMEOUT))
    manager = chain.filters.add()
    manager.name = "envoy.filters.network.http_connection_manager"
    manager.typed_config.CopyFrom(packed(_connection_manager(settings)))
    return listener


def _connection_manager(settings: EdgeSettings) -> hcm_pb2.HttpConnectionManager:
    manager = _Manager(
        codec_type=_Manager.AUTO,
        stat_prefix="clients",
        server_name="tidegate",
        # Requests from outside: Envoy's own control headers in them count for nothing.
        use_remote_address=wrappers_pb2.BoolValue(value=True),
        skip_xff_append=not settings.forwarded_for,
        # A node behind a gateway gives a call an id; one of the gateway's own, which takes a
        # twentieth of its time, would stand in its access log alone.
        generate_request_id=wrappers_pb2.BoolValue(
            value=not settings.gateway or settings.access_log is not None
        ),
        preserve_external_request_id=True,
        always_set_request_id_in_response=True,
        # One spelling of a path: what is routed is what the replica sees.
        normalize_path=wrappers_pb2.BoolValue(value=True),
        merge_slashes=True,
        path_with_escaped_slashes_action=_Manager.REJECT_REQUEST,
        max_request_headers_kb=wrappers_pb2.UInt32Value(value=64),
        stream_idle_timeout=seconds(settings.idle_timeout),
        stream_flush_timeout=seconds(max(settings.idle_timeout, 300.0)),
        drain_timeout=seconds(min(settings.drain_timeout, 1.0)),
        common_http_protocol_options=protocol_pb2.HttpProtocolOptions(
            idle_timeout=seconds(3600),
            max_headers_count=wrappers_pb2.UInt32Value(value=200),
        ),
        http2_protocol_options=_http2_options(settings),
        local_reply_config=local_reply_config(settings, OWN_PATHS),
    )
    # Nobody is trusted. An empty list would mean the default, which trusts the machine itself.
    nobody = manager.internal_address_config.cidr_ranges.add(address_prefix="192.0.2.0")
    nobody.prefix_len.value = 32
    manager.rds.route_config_name = ROUTES
    manager.rds.config_source.CopyFrom(from_controller(initial_fetch_timeout=0))
    for name, message in _filters(settings):
        manager.http_filters.add(name=name).typed_config.CopyFrom(packed(message))
    if settings.access_log is not None:
        manager.access_log.append(_access_log(settings.access_log, settings))
    return manager


def _filters(settings: EdgeSettings) -> Iterator[tuple[str, Message]]:
    """Return the filters in order: what is refused is refused before a message is held."""
    if settings.origins:
        yield ORIGINS_FILTER, _lua(origins_script(settings.origins))
    if settings.api_keys is not None:
        yield KEY_FILTER, key_filter(settings.api_keys)
        for limiter in key_limiters(settings.limits):
            yield KEY_LIMIT_FILTER, limiter
    yield from routing_filters(settings, settings.read_at_once)


def routing_filters(
    settings: EdgeSettings, read_at_once: int | None
) -> Iterator[tuple[str, Message]]:
    """Return the filters that find a call's server, in order."""
    script = routing_script(
        settings.routings, settings.max_message_size, read_at_once, settings.kept_at_once
    )
    yield ROUTING_FILTER, _lua(script)
    for limiter in model_limiters(settings.limits):
        yield MODEL_LIMIT_FILTER, limiter
    if settings.gateway:
        # Replicas bound what they get, and servers of other makes may not.
        yield BUFFER_FILTER, body_limit(settings)
    yield (
        "envoy.filters.http.router",
        router_pb2.Router(
            suppress_envoy_headers=True,
            # Without them, what a server answers with 5xx or breaks off is not reported.
            dynamic_stats=wrappers_pb2.BoolValue(value=settings.load_reports),
        ),
    )


def _lua(text: str) -> lua_pb2.Lua:
    script = lua_pb2.Lua()
    script.default_source_code.inline_string = text
    return script


def _http2_options(settings: EdgeSettings) -> protocol_pb2.Http2ProtocolOptions:
    most = _CALLS_OF_CLIENT if settings.gateway else _CALLS_OF_GATEWAY
    options = protocol_pb2.Http2ProtocolOptions(
        max_concurrent_streams=wrappers_pb2.UInt32Value(value=most),
        initial_stream_window_size=wrappers_pb2.UInt32Value(value=_BUFFER),
        initial_connection_window_size=wrappers_pb2.UInt32Value(value=_CONNECTION_WINDOW),
    )
    # A client that vanished without a word must not keep a model busy.
    options.connection_keepalive.interval.CopyFrom(seconds(60))
    options.connection_keepalive.timeout.CopyFrom(seconds(20))
    return options


def _access_log(path: Path, settings: EdgeSettings) -> accesslog_pb2.AccessLog:
    fields = struct_pb2.Struct()
    fields.update(_LOG_FIELDS)
    if settings.api_keys is not None:
        fields["key"] = f"%REQ({KEY_HEADER})%"
    if settings.tls is not None and settings.tls.client_ca is not None:
        fields["certificate"] = "%DOWNSTREAM_PEER_SUBJECT%"
    log = file_pb2.FileAccessLog(path=str(path))
    log.log_format.json_format.CopyFrom(fields)
    return accesslog_pb2.AccessLog(name="envoy.access_loggers.file", typed_config=packed(log))
