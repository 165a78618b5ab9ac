"""The listener inside Envoy for calls whose message is to be read, and finds no place.

Nobody says how large a gRPC message is before it has come. The routing script lets all of it be
held, for as many calls at a time as there is memory for (see routing.lua). A call beyond those
goes through this listener, to which a route of the first one leads: here little is held of it, so
that small ones are answered, and the others are refused in words. It costs such calls a second way
through Envoy, and the usual ones nothing. Buckets of tokens for models are this listener's own.

Source: https://www.envoyproxy.io/docs/envoy/latest/configuration/other_features/internal_listener
"""

from __future__ import annotations

from collections.abc import Iterator

from envoy.config.core.v3 import base_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.extensions.filters.http.buffer.v3 import buffer_pb2
from envoy.extensions.filters.http.header_mutation.v3 import header_mutation_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2 as hcm_pb2,
)
from google.protobuf import wrappers_pb2
from google.protobuf.message import Message

from tidegate.edge.listener import routing_filters
from tidegate.edge.local_replies import local_reply_config
from tidegate.edge.messages import from_controller, packed, seconds
from tidegate.edge.names import ASIDE, ASIDE_KEY_HEADER, KEY_HEADER, ROUTES, SMALL_FILTER
from tidegate.edge.own_answers import MESSAGE_ROOM, OWN_PATHS
from tidegate.edge.settings import SMALL_MESSAGE_SIZE, EdgeSettings

_Manager = hcm_pb2.HttpConnectionManager


def aside_listener(settings: EdgeSettings) -> listener_pb2.Listener:
    """Return the listener; whether a caller may call, the first one has looked at."""
    listener = listener_pb2.Listener(name=ASIDE)
    listener.internal_listener.SetInParent()
    manager = _Manager(
        codec_type=_Manager.HTTP2,
        stat_prefix="aside",
        server_name="tidegate",
        use_remote_address=wrappers_pb2.BoolValue(value=False),
        skip_xff_append=True,
        generate_request_id=wrappers_pb2.BoolValue(value=False),
        preserve_external_request_id=True,
        max_request_headers_kb=wrappers_pb2.UInt32Value(value=96),
        stream_idle_timeout=seconds(settings.idle_timeout),
        local_reply_config=local_reply_config(settings, OWN_PATHS, aside=True),
    )
    manager.common_http_protocol_options.max_headers_count.value = 300
    # Nobody is trusted. An empty list would mean the default, which trusts the machine itself.
    nobody = manager.internal_address_config.cidr_ranges.add(address_prefix="192.0.2.0")
    nobody.prefix_len.value = 32
    manager.rds.route_config_name = ROUTES
    manager.rds.config_source.CopyFrom(from_controller(initial_fetch_timeout=0))
    for name, message in _filters(settings):
        manager.http_filters.add(name=name).typed_config.CopyFrom(packed(message))
    chain = listener.filter_chains.add()
    chain.filters.add(
        name="envoy.filters.network.http_connection_manager", typed_config=packed(manager)
    )
    return listener


def _filters(settings: EdgeSettings) -> Iterator[tuple[str, Message]]:
    yield "tidegate/key", _key()
    # Unlike a route, it can let less be held.
    most = wrappers_pb2.UInt32Value(value=SMALL_MESSAGE_SIZE + MESSAGE_ROOM)
    yield SMALL_FILTER, buffer_pb2.Buffer(max_request_bytes=most)
    yield from routing_filters(settings, None)


def _key() -> header_mutation_pb2.HeaderMutation:
    """Return the filter that gives a call back the name of its key."""
    found = header_mutation_pb2.HeaderMutation()
    mutations = found.mutations.request_mutations
    mutations.add().append.CopyFrom(
        base_pb2.HeaderValueOption(
            header=base_pb2.HeaderValue(key=KEY_HEADER, value=f"%REQ({ASIDE_KEY_HEADER})%"),
            append_action=base_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD,
        )
    )
    mutations.add().remove = ASIDE_KEY_HEADER
    return found
