"""Clusters and endpoints: how Envoy reaches the replicas, and when it leaves one alone."""

from __future__ import annotations

from collections.abc import Iterable

from envoy.config.cluster.v3 import circuit_breaker_pb2, cluster_pb2, outlier_detection_pb2
from envoy.config.endpoint.v3 import endpoint_components_pb2, endpoint_pb2
from envoy.extensions.load_balancing_policies.least_request.v3 import least_request_pb2
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2
from envoy.type.v3 import percent_pb2
from google.protobuf import wrappers_pb2

from tidegate.edge.messages import from_controller, packed, seconds, unix_socket
from tidegate.edge.names import ASIDE, CONTROLLER_CLUSTER
from tidegate.edge.topology import Endpoint

_HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_CONNECT_TIMEOUT = 1.0
_BUFFER = 2**20
"""Bytes of one connection that may wait on either side; a larger message flows through."""
_STREAMS = 2**16
_STREAM_WINDOW = 2**22
_CONNECTION_WINDOW = 2**28
"""Bytes of answers that replicas may send before they are taken: a slow client holds up its
own stream, and 64 of those have to come together to hold up the others."""
MOST_FRAMES = 2**20
"""In the queue of one connection. Beyond the usual 10,000, which are three large messages that
were awaited as a whole, Envoy takes the peer for an attacker and closes the connection."""
_MANY = 1_000_000
"""Envoy's own limits (1024 calls in flight) are not how a node refuses work: queues are."""


def model_cluster(name: str) -> cluster_pb2.Cluster:
    """Return the cluster ``name``, whose endpoints come over EDS."""
    cluster = _cluster(name, http2=True)
    cluster.type = cluster_pb2.Cluster.EDS
    # 0: a cluster waits for its endpoints, however late; without them it would refuse calls.
    cluster.eds_cluster_config.eds_config.CopyFrom(from_controller(initial_fetch_timeout=0))
    cluster.outlier_detection.CopyFrom(first_aid())
    # Send nothing to an ejected replica, even when most are ejected.
    cluster.common_lb_config.healthy_panic_threshold.CopyFrom(percent_pb2.Percent(value=0))
    # Ejections count at once. By default they wait for a second after an earlier change, so that a
    # replica that is back can be left out just when the other one dies.
    cluster.common_lb_config.update_merge_window.CopyFrom(seconds(0))
    return cluster


def controller_cluster(socket: str) -> cluster_pb2.Cluster:
    """Return the cluster of the controller, which listens on one Unix socket."""
    cluster = _cluster(CONTROLLER_CLUSTER, http2=False)
    cluster.type = cluster_pb2.Cluster.STATIC
    cluster.load_assignment.CopyFrom(load_assignment(CONTROLLER_CLUSTER, [Endpoint(socket)]))
    return cluster


def aside_cluster() -> cluster_pb2.Cluster:
    """Return the cluster of the listener inside Envoy: see :mod:`tidegate.edge.aside`."""
    cluster = _cluster(ASIDE, http2=True)
    cluster.type = cluster_pb2.Cluster.STATIC
    cluster.load_assignment.cluster_name = ASIDE
    endpoint = cluster.load_assignment.endpoints.add().lb_endpoints.add().endpoint
    endpoint.address.envoy_internal_address.server_listener_name = ASIDE
    return cluster


def load_assignment(
    cluster: str, endpoints: Iterable[Endpoint]
) -> endpoint_pb2.ClusterLoadAssignment:
    """Return the endpoints of a cluster with their weights, in the order of their sockets."""
    assignment = endpoint_pb2.ClusterLoadAssignment(cluster_name=cluster)
    locality = assignment.endpoints.add()
    for endpoint in sorted(endpoints, key=lambda e: e.socket):
        locality.lb_endpoints.add(
            endpoint=endpoint_components_pb2.Endpoint(address=unix_socket(endpoint.socket)),
            load_balancing_weight=wrappers_pb2.UInt32Value(value=endpoint.weight),
        )
    return assignment


def _cluster(name: str, *, http2: bool) -> cluster_pb2.Cluster:
    cluster = cluster_pb2.Cluster(
        name=name,
        connect_timeout=seconds(_CONNECT_TIMEOUT),
        per_connection_buffer_limit_bytes=wrappers_pb2.UInt32Value(value=_BUFFER),
        circuit_breakers=_circuit_breakers(),
    )
    cluster.typed_extension_protocol_options[_HTTP_OPTIONS].CopyFrom(
        packed(_http_options(http2=http2))
    )
    policy = cluster.load_balancing_policy.policies.add().typed_extension_config
    policy.name = "envoy.load_balancing_policies.least_request"
    policy.typed_config.CopyFrom(packed(balancing()))
    return cluster


def balancing() -> least_request_pb2.LeastRequest:
    """Return the one policy: the fewest calls in flight, and weights where they differ.

    Inferences differ in length by orders of magnitude, so taking turns would queue short calls
    behind long ones. Equal weights: the least busy of four draws, so that of two replicas the
    busier gets 6 % of the calls (25 % with two draws). Different weights: weighted turns, each
    weight divided by the calls in flight. A scan of all would always find the replica that is
    idle because it is dead, and a retry would never find another.
    """
    return least_request_pb2.LeastRequest(choice_count=wrappers_pb2.UInt32Value(value=4))


def _http_options(*, http2: bool) -> http_protocol_options_pb2.HttpProtocolOptions:
    """HTTP/2 to replicas; HTTP/1.1 to the controller, its chunked trailers as gRPC's.

    Over HTTP/2 all calls of a worker share one connection, and a replica answers many with one
    system call. It keeps no header table, so each block of headers stands for itself.
    """
    options = http_protocol_options_pb2.HttpProtocolOptions()
    if not http2:
        # Connections of a burst go; Envoy closes them, so no call races with the closing.
        options.common_http_protocol_options.idle_timeout.CopyFrom(seconds(60))
        options.explicit_http_config.http_protocol_options.enable_trailers = True
        return options
    explicit = options.explicit_http_config.http2_protocol_options
    explicit.hpack_table_size.value = 0
    explicit.max_concurrent_streams.value = _STREAMS
    explicit.max_outbound_frames.value = MOST_FRAMES
    explicit.initial_stream_window_size.value = _STREAM_WINDOW
    explicit.initial_connection_window_size.value = _CONNECTION_WINDOW
    return options


def _circuit_breakers() -> circuit_breaker_pb2.CircuitBreakers:
    breakers = circuit_breaker_pb2.CircuitBreakers()
    many = wrappers_pb2.UInt32Value(value=_MANY)
    breakers.thresholds.add(
        max_connections=many,
        max_pending_requests=many,
        max_requests=many,
        # A killed replica has all its calls retried at once; a budget would drop most of them.
        max_retries=many,
    )
    return breakers


def first_aid(
    shortest: float = 0.5, longest: float = 1.0
) -> outlier_detection_pb2.OutlierDetection:
    """Leave a replica alone for a moment when it cannot be reached or breaks off.

    What it answers never ejects. Envoy takes gRPC statuses for HTTP's here: five INTERNAL in a
    row are a bug in a model, and all its replicas have it; DEADLINE_EXCEEDED counts as a failing
    gateway, so a caller whose deadlines are too short would take replicas from the others.
    """

    def count(value: int) -> wrappers_pb2.UInt32Value:
        return wrappers_pb2.UInt32Value(value=value)

    return outlier_detection_pb2.OutlierDetection(
        interval=seconds(0.25),
        base_ejection_time=seconds(shortest),
        max_ejection_time=seconds(longest),
        max_ejection_percent=count(90),
        split_external_local_origin_errors=True,
        consecutive_local_origin_failure=count(2),
        enforcing_consecutive_local_origin_failure=count(100),
        enforcing_consecutive_gateway_failure=count(0),
        enforcing_consecutive_5xx=count(0),
        enforcing_success_rate=count(0),
        enforcing_failure_percentage=count(0),
        enforcing_local_origin_success_rate=count(0),
        enforcing_failure_percentage_local_origin=count(0),
    )
