"""How Envoy asks a server whether it is ready, before it sends it a call and ever after.

What answers calls is what is asked, in the protocol of the calls: a server whose process lives
and whose model does not is not ready.

Source: https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/health_checking
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from urllib.parse import quote

from envoy.config.core.v3 import base_pb2, health_check_pb2
from envoy.type.v3 import http_pb2
from google.protobuf import wrappers_pb2

from tidegate.edge.messages import seconds
from tidegate.edge.plan import PlannedCluster
from tidegate.protocols.grpc_frames import frame_prefix
from tidegate.protocols.open_inference import MODEL_READY
from tidegate.protocols.open_inference.messages import ModelReadyRequest
from tidegate.protocols.tensorflow_serving import GET_MODEL_STATUS
from tidegate.protocols.tensorflow_serving.messages import GetModelStatusRequest

INTERVAL = 0.5
"""Seconds between checks of one server, while there are not too many servers."""
CHECKS_PER_SECOND = 1000
"""Of all servers together: with more servers the interval grows."""
_FIRST_CHECKS_PER_SECOND = 4000
"""Of servers that are new, more of which must be found well before they get calls."""
_FEW = 500
"""Servers that are all asked at once when they are new."""
_TIMEOUT = 1.0
"""Seconds until a check counts as not answered."""
_CONFIRMATION = 0.1
"""Seconds until a server that did not answer is asked again: one lost answer is no verdict."""
_MISSED = 2
"""As many checks in a row must fail before a server that was well gets no calls."""
_SOON = 4.0
"""Seconds at most between checks of a server that is not ready, or has had no calls."""

_SERVER_READY = "/v2/health/ready"
_HOST = "health"
"""Names no server: each endpoint may have a name of its own, which goes before this."""
_AVAILABLE = b"\x10\x1e"
"""In a GetModelStatusResponse: the state (field 2) is AVAILABLE (30)."""
_READY = b"\x08\x01"
"""In a ModelReadyResponse: ready (field 1) is true."""


@dataclass(frozen=True, slots=True)
class Crowd:
    """How many servers are to be checked when a cluster is made.

    Attributes:
        servers: those of all clusters.
        new: those of the clusters that are made now.
    """

    servers: int
    new: int

    def interval(self, cluster: PlannedCluster) -> float:
        """Return the seconds between checks of one server of ``cluster``."""
        interval = cluster.traffic.health_interval or INTERVAL
        # Doubled, so that a controller that starts anew finds the clusters as they are.
        while self.servers > interval * CHECKS_PER_SECOND:
            interval *= 2
        return interval

    @property
    def spread(self) -> float:
        """The seconds over which the first checks of the new servers are spread.

        Envoy begins those of thousands in one turn of its loop, with a socket for each before
        the first answer is read, and ends when it may open no more.
        """
        if self.new <= _FEW:
            return 0.0
        return math.ceil(2 * self.new / _FIRST_CHECKS_PER_SECOND) / 2


def health_check(cluster: PlannedCluster, crowd: Crowd) -> health_check_pb2.HealthCheck:
    """Return the active health check of a cluster's servers."""
    interval = crowd.interval(cluster)
    check = health_check_pb2.HealthCheck(
        timeout=seconds(_TIMEOUT),
        interval=seconds(interval),
        interval_jitter_percent=10,
        unhealthy_threshold=wrappers_pb2.UInt32Value(value=_MISSED),
        healthy_threshold=wrappers_pb2.UInt32Value(value=1),
        unhealthy_edge_interval=seconds(min(_CONFIRMATION, interval)),
        # However many servers there are, one that was not ready is asked again soon.
        unhealthy_interval=seconds(min(interval, _SOON)),
        # Else servers of a model that has had no call yet would be asked once a minute.
        no_traffic_interval=seconds(min(interval, _SOON)),
        no_traffic_healthy_interval=seconds(interval),
        initial_jitter=seconds(crowd.spread) if crowd.spread else None,
        # Those kept for thousands of servers would be most of what a process may open.
        reuse_connection=wrappers_pb2.BoolValue(value=False),
    )
    path = cluster.traffic.health_path
    if path is not None and asks_rest(cluster):
        _get(check, path)
    elif cluster.ours:
        _get(check, _open_inference_path(cluster) if cluster.traffic.known else _SERVER_READY)
    elif not cluster.traffic.known:
        check.tcp_health_check.SetInParent()
    elif cluster.rest:
        _ask_rest(check, cluster)
    else:
        _ask_grpc(check, cluster)
    return check


def asks_rest(cluster: PlannedCluster) -> bool:
    """Whether the check is a REST call, which goes where servers answer those."""
    if cluster.ours or cluster.rest:
        return True
    return cluster.traffic.health_path is not None and all(
        server.protocol == "tidegate" or server.rest is not None
        for server in cluster.servers.kinds
    )


def _ask_rest(check: health_check_pb2.HealthCheck, cluster: PlannedCluster) -> None:
    if cluster.protocol == "tensorflow-serving":
        _get(check, _tensorflow_serving_path(cluster))
        # It is 200 while a model loads, too. The space is how TensorFlow Serving writes it.
        check.http_health_check.receive.add(binary=b'"AVAILABLE"')
    elif cluster.protocol == "open-inference":
        _get(check, _open_inference_path(cluster))
    else:
        # Seldon's wrappers differ in which path tells of health.
        check.tcp_health_check.SetInParent()


def _ask_grpc(check: health_check_pb2.HealthCheck, cluster: PlannedCluster) -> None:
    asked = cluster.asked
    if cluster.protocol == "open-inference":
        version = "" if asked.version is None else str(asked.version)
        request = ModelReadyRequest(name=cluster.model, version=version)
        _call(check, MODEL_READY, request.SerializeToString(), _READY)
    elif cluster.protocol == "tensorflow-serving":
        request = GetModelStatusRequest()
        request.model_spec.name = cluster.model
        if asked.version is not None:
            request.model_spec.version.value = asked.version
        elif asked.label is not None:
            request.model_spec.version_label = asked.label
        _call(check, GET_MODEL_STATUS, request.SerializeToString(), _AVAILABLE)
    else:
        # Seldon's services have no method that tells of health.
        check.tcp_health_check.SetInParent()


def _open_inference_path(cluster: PlannedCluster) -> str:
    version = cluster.asked.version
    within = "" if version is None else f"/versions/{version}"
    return f"/v2/models/{quote(cluster.model, safe='')}{within}/ready"


def _tensorflow_serving_path(cluster: PlannedCluster) -> str:
    asked = cluster.asked
    path = f"/v1/models/{quote(cluster.model, safe='')}"
    if asked.version is not None:
        return f"{path}/versions/{asked.version}"
    return path if asked.label is None else f"{path}/labels/{quote(asked.label, safe='')}"


def _get(check: health_check_pb2.HealthCheck, path: str) -> None:
    check.http_health_check.path = path
    check.http_health_check.host = _HOST


def _call(check: health_check_pb2.HealthCheck, method: str, request: bytes, answer: bytes) -> None:
    """A gRPC call as the HTTP/2 that it is; ``answer`` lies in the message of a ready server."""
    http = check.http_health_check
    http.path = method
    http.host = _HOST
    http.method = base_pb2.POST
    http.codec_client_type = http_pb2.HTTP2
    http.send.binary = frame_prefix(len(request)) + request
    http.receive.add(binary=answer)
    for name, value in (("content-type", "application/grpc"), ("te", "trailers")):
        http.request_headers_to_add.add(header=base_pb2.HeaderValue(key=name, value=value))
