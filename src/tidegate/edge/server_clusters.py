"""Clusters of servers over TCP: how Envoy reaches other machines, and how it finds them dead."""

from __future__ import annotations

from envoy.config.cluster.v3 import cluster_pb2
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2
from envoy.type.v3 import http_pb2, percent_pb2
from google.protobuf import wrappers_pb2

from tidegate.balancing.policy import ACTIVE_REQUEST_BIAS
from tidegate.edge.assignments import SECURE
from tidegate.edge.clusters import MOST_FRAMES, balancing, first_aid
from tidegate.edge.health_checks import Crowd, health_check
from tidegate.edge.load_reports import UTILIZATIONS
from tidegate.edge.messages import from_controller, packed, seconds
from tidegate.edge.plan import PlannedCluster
from tidegate.edge.retry_floors import LEAST
from tidegate.edge.settings import EdgeSettings
from tidegate.edge.tls import upstream_transport_socket
from tidegate.protocols.load_reports import CALLERS

_HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_CONNECT_TIMEOUT = 1.0
"""Seconds."""
_BUFFER = 2**20
"""Bytes of one connection that may wait on either side; a larger message flows through."""
_STREAMS = 2**14
"""Calls on one connection, where the settings do not bound those of a server."""
_STREAM_WINDOW = 2**20
"""Bytes of one answer that a server may send before they are taken."""
_CONNECTION_WINDOW = 2**28
"""Bytes of answers that a server may send before they are taken: a slow client holds up its own
stream, and 256 of those have to come together to hold up the others."""
_MANY = 1_000_000

_PING_INTERVAL = 0.5
_PING_TIMEOUT = 1.0
"""Seconds. A machine that is gone without a word is found in as many, and its calls are reset and
sent to another; a process that is merely busy answers, since its edge does."""
_IDLE = 10.0
"""Seconds until a connection without calls is closed, so that it need not be pinged."""

_LEFT_ALONE = (2.0, 4.0)
"""Seconds. It ends with the next check of health that passes."""
_LONGEST_COPY = 60.0
"""Seconds: nobody waits for the answer of a copy, so nobody gives it up."""


def server_cluster(
    planned: PlannedCluster, settings: EdgeSettings, crowd: Crowd
) -> cluster_pb2.Cluster:
    """Return Envoy's cluster; its endpoints come over EDS (:mod:`tidegate.edge.assignments`).

    It does not depend on which servers there are: what depends on their number is told as
    Envoy's runtime, because a cluster that changes is built and checked anew. ``crowd`` is for
    how the first checks are made, and stays as it was when the cluster was made.
    """
    cluster = cluster_pb2.Cluster(
        name=planned.name,
        type=cluster_pb2.Cluster.EDS,
        connect_timeout=seconds(_CONNECT_TIMEOUT),
        per_connection_buffer_limit_bytes=wrappers_pb2.UInt32Value(value=_BUFFER),
        health_checks=[health_check(planned, crowd)],
        # A server that discovery or its lease has given up goes at once, however well it feels.
        ignore_health_on_host_removal=True,
        lrs_report_endpoint_metrics=[*UTILIZATIONS, CALLERS],
    )
    cluster.eds_cluster_config.eds_config.CopyFrom(from_controller(initial_fetch_timeout=0))
    cluster.typed_extension_protocol_options[_HTTP_OPTIONS].CopyFrom(
        packed(_http_options(planned, settings))
    )
    policy = cluster.load_balancing_policy.policies.add().typed_extension_config
    policy.name = "envoy.load_balancing_policies.least_request"
    turns = balancing()
    turns.active_request_bias.default_value = ACTIVE_REQUEST_BIAS
    turns.active_request_bias.runtime_key = "tidegate.active_request_bias"
    policy.typed_config.CopyFrom(packed(turns))
    cluster.outlier_detection.CopyFrom(first_aid(*_LEFT_ALONE))
    if planned.secure:
        _secure(cluster, planned, settings)
    _bound(cluster, planned, settings)
    common = cluster.common_lb_config
    # A server that is not ready gets nothing, even when none is.
    common.healthy_panic_threshold.CopyFrom(percent_pb2.Percent(value=0))
    # What changes counts at once.
    common.update_merge_window.CopyFrom(seconds(0))
    return cluster


def _http_options(
    planned: PlannedCluster, settings: EdgeSettings
) -> http_protocol_options_pb2.HttpProtocolOptions:
    options = http_protocol_options_pb2.HttpProtocolOptions()
    if planned.copies:
        longest = planned.traffic.timeout or _LONGEST_COPY
        options.common_http_protocol_options.max_stream_duration.CopyFrom(seconds(longest))
    if planned.rest:
        # Shorter than what servers commonly allow, so that no call races with their closing.
        options.common_http_protocol_options.idle_timeout.CopyFrom(seconds(4))
        options.explicit_http_config.http_protocol_options.SetInParent()
        return options
    http2 = options.explicit_http_config.http2_protocol_options
    most = planned.traffic.max_in_flight
    http2.max_concurrent_streams.value = (
        _STREAMS if most is None else streams_per_connection(most, settings.threads)
    )
    http2.max_outbound_frames.value = MOST_FRAMES
    http2.initial_stream_window_size.value = _STREAM_WINDOW
    http2.initial_connection_window_size.value = _CONNECTION_WINDOW
    # Each block of headers stands for itself: not every small server keeps a table.
    http2.hpack_table_size.value = 0
    if planned.ours:
        http2.connection_keepalive.interval.CopyFrom(seconds(_PING_INTERVAL))
        http2.connection_keepalive.timeout.CopyFrom(seconds(_PING_TIMEOUT))
        options.common_http_protocol_options.idle_timeout.CopyFrom(seconds(_IDLE))
    return options


def _secure(cluster: cluster_pb2.Cluster, planned: PlannedCluster, settings: EdgeSettings) -> None:
    """Speak TLS to the servers that do, and in the clear to the others."""
    alpn = "http/1.1" if planned.rest else "h2"
    socket = upstream_transport_socket(settings.upstream_tls, alpn, cluster.name)
    # Checks have connections of their own, and may speak another version of HTTP.
    for check in cluster.health_checks:
        if check.HasField("http_health_check"):
            http2 = check.http_health_check.codec_client_type == http_pb2.HTTP2
            check.tls_options.alpn_protocols.append("h2" if http2 else "http/1.1")
    if all(server.secure for server in planned.servers.kinds):
        cluster.transport_socket.CopyFrom(socket)
        return
    match = cluster.transport_socket_matches.add(name="tls", transport_socket=socket)
    match.match.update({SECURE: True})


def streams_per_connection(most: int, threads: int) -> int:
    """Return how many calls a connection carries, of ``most`` that one server may have.

    Threads have connections of their own: a few for each let one thread use what the others
    do not.
    """
    return max(1, most // (4 * threads))


def _bound(cluster: cluster_pb2.Cluster, planned: PlannedCluster, settings: EdgeSettings) -> None:
    """Bound what one server gets at a time, and how many retries there are.

    Envoy counts calls by cluster and connections by server. So a server's calls are bounded by
    its connections, and the calls on each. Envoy gives each thread one connection whatever the
    bound is: those of the other threads are held back for that.
    """
    many = wrappers_pb2.UInt32Value(value=_MANY)
    thresholds = cluster.circuit_breakers.thresholds.add(
        max_connections=many, max_pending_requests=many, max_requests=many
    )
    budget = thresholds.retry_budget
    budget.budget_percent.value = planned.traffic.retry_budget
    budget.min_retry_concurrency.value = LEAST
    most = planned.traffic.max_in_flight
    if most is not None:
        streams = 1 if planned.rest else streams_per_connection(most, settings.threads)
        connections = most // streams - (settings.threads - 1)
        cluster.circuit_breakers.per_host_thresholds.add().max_connections.value = max(
            1, connections
        )
