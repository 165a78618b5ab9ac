"""Every metric of a node and of a gateway, by its stable name.

The documentation's table is made from this file.

Prometheus' conventions hold (https://prometheus.io/docs/practices/naming/): seconds and bytes,
counters end in ``_total``. A histogram has ``_bucket``, ``_sum`` and ``_count`` series.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Metric:
    """A name, what it measures and by what it is told apart."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()


_VERSION = ("model", "version")
_REPLICA = ("model", "version", "replica")

# What replicas count.
REQUESTS = Metric(
    "tidegate_requests_total",
    "counter",
    "inference requests that were answered; code is the name of a gRPC code, or an HTTP status",
    (*_VERSION, "protocol", "code"),
)
REQUEST_DURATION = Metric(
    "tidegate_request_duration_seconds",
    "histogram",
    "successful requests, from their arrival in the replica's queue to their answer",
    _VERSION,
)
QUEUE_DURATION = Metric(
    "tidegate_queue_duration_seconds",
    "histogram",
    "successful requests, the time that they waited for their batch to run",
    _VERSION,
)
COMPUTE_DURATION = Metric(
    "tidegate_compute_duration_seconds",
    "histogram",
    "runs of the model, one for each batch",
    _VERSION,
)
BATCH_SIZE = Metric("tidegate_batch_size", "histogram", "rows in each run of the model", _VERSION)
QUEUE_DEPTH = Metric("tidegate_queue_depth", "gauge", "requests that wait now", _REPLICA)

# Replicas and models, as the controller sees them.
REPLICAS = Metric(
    "tidegate_replicas",
    "gauge",
    "replicas by state: starting, ready, backing_off, draining, failed",
    (*_VERSION, "state"),
)
REPLICA_CRASHES = Metric(
    "tidegate_replica_restarts_total",
    "counter",
    "replicas that died by themselves; each is started again",
    _VERSION,
)
REPLICA_MEMORY = Metric(
    "tidegate_replica_memory_bytes", "gauge", "resident memory of a replica's process", _REPLICA
)
REPLICA_CPU = Metric(
    "tidegate_replica_cpu_seconds_total",
    "counter",
    "processor time of replicas, user and system",
    _VERSION,
)
REPLICA_GPU_MEMORY = Metric(
    "tidegate_replica_gpu_memory_bytes",
    "gauge",
    "GPU memory of a replica's process, where the driver tells",
    (*_REPLICA, "gpu"),
)
MODELS = Metric(
    "tidegate_models", "gauge", "models by state: ready, not_ready, unloaded", ("state",)
)

UNSERVED = Metric(
    "tidegate_unserved_requests_total",
    "counter",
    "calls of a model that has no ready replica; the controller answered them",
    ("model", "protocol"),
)

# The machine's GPUs, where there are some.
GPU_MEMORY_USED = Metric("tidegate_gpu_memory_used_bytes", "gauge", "GPU memory in use", ("gpu",))
GPU_MEMORY = Metric("tidegate_gpu_memory_bytes", "gauge", "GPU memory that there is", ("gpu",))
GPU_UTILIZATION = Metric(
    "tidegate_gpu_utilization_ratio", "gauge", "part of the time in which a GPU was busy", ("gpu",)
)

# The edge.
EDGE_UP = Metric("tidegate_edge_up", "gauge", "whether the edge's process answers")
EDGE_CONNECTIONS = Metric(
    "tidegate_edge_connections_active", "gauge", "connections of clients that are open"
)
EDGE_CONNECTIONS_TOTAL = Metric(
    "tidegate_edge_connections_total", "counter", "connections that clients have opened"
)
EDGE_ACTIVE = Metric("tidegate_edge_requests_active", "gauge", "requests that are under way")
EDGE_REQUESTS = Metric(
    "tidegate_edge_requests_total",
    "counter",
    "answers by class of HTTP status, of every path; a gRPC error is of class 2xx",
    ("code_class",),
)
EDGE_ABANDONED = Metric(
    "tidegate_edge_requests_abandoned_total",
    "counter",
    "requests whose client went away before there was an answer",
)
EDGE_UNKNOWN = Metric(
    "tidegate_edge_unknown_models_total",
    "counter",
    "calls that named a model or a version that is not here",
)
EDGE_RECEIVED = Metric(
    "tidegate_edge_received_bytes_total", "counter", "bytes received from clients"
)
EDGE_SENT = Metric("tidegate_edge_sent_bytes_total", "counter", "bytes sent to clients")
EDGE_REFUSED = Metric(
    "tidegate_edge_refused_total",
    "counter",
    "calls without a known API key (`key`), or beyond the limit of a key (`key_limit`) or a model "
    "(`model_limit`)",
    ("reason",),
)
EDGE_CERTIFICATE = Metric(
    "tidegate_edge_certificate_expiry_timestamp_seconds",
    "gauge",
    "when the certificate expires that clients are shown, in seconds of the Unix epoch",
)
EDGE_RETRIES = Metric(
    "tidegate_edge_retries_total",
    "counter",
    "requests that were sent to another replica, because one died or could not be reached",
    ("model",),
)
EDGE_FAILURES = Metric(
    "tidegate_edge_upstream_failures_total",
    "counter",
    "what went wrong between edge and replicas: connect, reset, timeout, overflow",
    ("model", "reason"),
)
EDGE_EJECTIONS = Metric(
    "tidegate_edge_ejections_total",
    "counter",
    "times that a replica was left out for a while because it failed",
    ("model",),
)
EDGE_EJECTED = Metric(
    "tidegate_edge_ejected_replicas", "gauge", "replicas that are left out now", ("model",)
)
EDGE_HEAP = Metric("tidegate_edge_heap_bytes", "gauge", "memory that the edge has allocated")

# A gateway's endpoints, as its controller sees them.
_ENDPOINT = ("model", "pool", "endpoint")
ENDPOINTS = Metric(
    "tidegate_endpoints",
    "gauge",
    "endpoints by what is decided: new, warming, serving, probing, ejected",
    ("model", "pool", "state"),
)
ENDPOINT_SHARE = Metric(
    "tidegate_endpoint_share_ratio",
    "gauge",
    "the part of its pool's calls that an endpoint is to get",
    _ENDPOINT,
)
ENDPOINT_CALLS = Metric(
    "tidegate_endpoint_calls_total",
    "counter",
    "calls of an endpoint that have ended: succeeded, failed, cancelled",
    (*_ENDPOINT, "outcome"),
)
ENDPOINT_IN_FLIGHT = Metric(
    "tidegate_endpoint_calls_active", "gauge", "calls that an endpoint has now", _ENDPOINT
)
ENDPOINT_EJECTIONS = Metric(
    "tidegate_endpoint_ejections_total",
    "counter",
    "times that an endpoint of a pool was left out",
    ("model", "pool"),
)
NODES = Metric("tidegate_nodes", "gauge", "nodes that have joined a gateway")
CONFIG_PROBLEM = Metric(
    "tidegate_config_problem",
    "gauge",
    "1 while gateway.yaml holds a mistake, and earlier settings are in effect",
)

# The controller.
BUILD_INFO = Metric(
    "tidegate_build_info", "gauge", "always 1; the labels say what runs", ("version", "python")
)
START_TIME = Metric(
    "tidegate_start_time_seconds", "gauge", "when the controller started, since the epoch"
)
GENERATION = Metric(
    "tidegate_config_generation",
    "gauge",
    "how many times this controller has told the edge its configuration",
)
CONFIG_REJECTED = Metric(
    "tidegate_config_rejected", "gauge", "1 while the edge refuses the latest configuration"
)
PROCESS_MEMORY = Metric(
    "tidegate_process_memory_bytes",
    "gauge",
    "resident memory of the controller and of the edge",
    ("process",),
)

METRICS: tuple[Metric, ...] = tuple(m for m in list(globals().values()) if isinstance(m, Metric))
"""All of them, in the order in which they are told."""
