"""What Envoy is started with: the rest comes over the control socket.

Source: https://www.envoyproxy.io/docs/envoy/latest/configuration/overview/bootstrap
"""

from __future__ import annotations

from envoy.config.bootstrap.v3 import bootstrap_pb2
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import (
    base_pb2,
    config_source_pb2,
    grpc_service_pb2,
    protocol_pb2,
)
from envoy.config.overload.v3 import overload_pb2
from envoy.extensions.bootstrap.internal_listener.v3 import internal_listener_pb2
from envoy.extensions.resource_monitors.downstream_connections.v3 import (
    downstream_connections_pb2,
)
from envoy.extensions.resource_monitors.fixed_heap.v3 import fixed_heap_pb2
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2
from envoy.type.matcher.v3 import string_pb2
from google.protobuf import json_format

from tidegate.edge.clusters import aside_cluster, load_assignment
from tidegate.edge.messages import from_controller, packed, seconds, unix_socket
from tidegate.edge.names import ADMIN_SOCKET, RUNTIME, XDS_CLUSTER
from tidegate.edge.settings import EdgeSettings
from tidegate.edge.topology import Endpoint

_HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_HEAP = "envoy.resource_monitors.fixed_heap"
_MOST_CLIENTS = 100_000
_TRACKED_FROM = 20
"""Streams are accounted for from 2^20 bytes on: only those are worth resetting."""
_UNREAD_STATS = (
    *({"suffix": f".{name}"} for name in (
        "upstream_rq_time", "downstream_rq_time", "upstream_rq_completed", "upstream_rq_2xx",
        "upstream_rq_200",
    )),
    {"contains": ".external.upstream_rq_"},
)  # fmt: skip
"""What Envoy would count of every call and nobody reads: 1 % of its time."""


def bootstrap_json(settings: EdgeSettings, control_socket: str, admin_socket: str) -> str:
    """Return the bootstrap file's content for sockets at these paths."""
    return json_format.MessageToJson(_bootstrap(settings, control_socket, admin_socket))


def _bootstrap(
    settings: EdgeSettings, control_socket: str, admin_socket: str
) -> bootstrap_pb2.Bootstrap:
    bootstrap = bootstrap_pb2.Bootstrap(
        node=base_pb2.Node(id="edge", cluster="tidegate"),
        overload_manager=_overload_manager(settings.heap_limit),
    )
    # After a hot restart the parent's calls are counted in at this pace; a stop waits for them.
    bootstrap.stats_flush_interval.CopyFrom(seconds(1))
    unread = bootstrap.stats_config.stats_matcher.exclusion_list
    unread.patterns.extend(string_pb2.StringMatcher(**pattern) for pattern in _UNREAD_STATS)
    admin = bootstrap.admin
    admin.address.CopyFrom(unix_socket(admin_socket))
    admin.address.pipe.mode = 0o600
    inside = bootstrap.bootstrap_extensions.add(name="envoy.bootstrap.internal_listener")
    inside.typed_config.CopyFrom(packed(internal_listener_pb2.InternalListener()))
    bootstrap.static_resources.clusters.extend((_control_cluster(control_socket), aside_cluster()))
    dynamic = bootstrap.dynamic_resources
    dynamic.ads_config.CopyFrom(_control_source())
    # 0: an Envoy that starts before its controller speaks waits for it.
    dynamic.cds_config.CopyFrom(from_controller(initial_fetch_timeout=0))
    dynamic.lds_config.CopyFrom(from_controller(initial_fetch_timeout=0))
    if settings.load_reports:
        # By which the controller learns whether clusters are warm.
        bootstrap.node.metadata.update({ADMIN_SOCKET: admin_socket})
        bootstrap.cluster_manager.load_stats_config.CopyFrom(_control_source())
        layer = bootstrap.layered_runtime.layers.add(name=RUNTIME)
        layer.rtds_layer.name = RUNTIME
        layer.rtds_layer.rtds_config.CopyFrom(from_controller(initial_fetch_timeout=0))
    return bootstrap


def _control_source() -> config_source_pb2.ApiConfigSource:
    service = grpc_service_pb2.GrpcService()
    service.envoy_grpc.cluster_name = XDS_CLUSTER
    # The default grows to 30 s; a controller that comes back must not wait for that.
    back_off = service.envoy_grpc.retry_policy.retry_back_off
    back_off.base_interval.CopyFrom(seconds(0.1))
    back_off.max_interval.CopyFrom(seconds(1))
    return config_source_pb2.ApiConfigSource(
        api_type=config_source_pb2.ApiConfigSource.GRPC,
        transport_api_version=config_source_pb2.ApiVersion.V3,
        set_node_on_first_message_only=True,
        grpc_services=[service],
    )


def _control_cluster(socket: str) -> cluster_pb2.Cluster:
    cluster = cluster_pb2.Cluster(
        name=XDS_CLUSTER,
        type=cluster_pb2.Cluster.STATIC,
        connect_timeout=seconds(1),
        load_assignment=load_assignment(XDS_CLUSTER, [Endpoint(socket)]),
    )
    options = http_protocol_options_pb2.HttpProtocolOptions()
    options.explicit_http_config.http2_protocol_options.CopyFrom(
        protocol_pb2.Http2ProtocolOptions()
    )
    cluster.typed_extension_protocol_options[_HTTP_OPTIONS].CopyFrom(packed(options))
    return cluster


def _overload_manager(heap_limit: int) -> overload_pb2.OverloadManager:
    """Near the limit new requests are refused, then the largest streams are reset."""
    manager = overload_pb2.OverloadManager(
        refresh_interval=seconds(0.1),
        buffer_factory_config=overload_pb2.BufferFactoryConfig(
            minimum_account_to_track_power_of_two=_TRACKED_FROM
        ),
    )
    clients = manager.resource_monitors.add(
        name="envoy.resource_monitors.global_downstream_max_connections"
    )
    clients.typed_config.CopyFrom(
        packed(
            downstream_connections_pb2.DownstreamConnectionsConfig(
                max_active_downstream_connections=_MOST_CLIENTS
            )
        )
    )
    monitor = manager.resource_monitors.add(name=_HEAP)
    monitor.typed_config.CopyFrom(
        packed(fixed_heap_pb2.FixedHeapConfig(max_heap_size_bytes=heap_limit))
    )
    actions = {
        action: manager.actions.add(name=f"envoy.overload_actions.{action}").triggers.add(
            name=_HEAP
        )
        for action in ("shrink_heap", "reset_high_memory_stream", "stop_accepting_requests")
    }
    actions["shrink_heap"].threshold.value = 0.8
    actions["stop_accepting_requests"].threshold.value = 0.9
    # Those are nobody's fault and get no word of it, so they come last.
    actions["reset_high_memory_stream"].scaled.scaling_threshold = 0.95
    actions["reset_high_memory_stream"].scaled.saturation_threshold = 1.0
    return manager
