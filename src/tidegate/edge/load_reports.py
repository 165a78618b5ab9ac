"""What became of the calls, as Envoy reports it every quarter of a second (LRS).

Source: https://www.envoyproxy.io/docs/envoy/latest/api-v3/service/load_stats/v3/lrs.proto
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from envoy.config.core.v3 import address_pb2
from envoy.config.endpoint.v3 import load_report_pb2
from envoy.service.load_stats.v3 import lrs_pb2

from tidegate.edge.messages import seconds
from tidegate.protocols.load_reports import CALLERS

INTERVAL = 0.25
"""Seconds between reports."""

UTILIZATIONS = ("application_utilization", "cpu_utilization")
"""The first of them that a server tells of counts."""


@dataclass(frozen=True, slots=True)
class EndpointLoad:
    """The calls of one endpoint since the report before.

    Attributes:
        succeeded: how many were answered, refusals for the caller's fault included.
        failed: how many were not: it could not be reached, broke off, did not answer in the time
            for a try, or said UNAVAILABLE, DEADLINE_EXCEEDED, INTERNAL or the like (5xx).
        issued: how many were sent to it.
        in_flight: how many are under way now.
        utilization: how busy it says it is, from 0 (idle) to 1 (full) and beyond.
    """

    succeeded: int
    failed: int
    issued: int
    in_flight: int
    utilization: float | None = None


@dataclass(frozen=True, slots=True)
class LoadReport:
    """One report: the endpoints with calls, by cluster and by address as Envoy knows it.

    ``elapsed`` is the time since the report before, in seconds.
    """

    elapsed: float
    clusters: Mapping[str, Mapping[str, EndpointLoad]]


def subscription() -> lrs_pb2.LoadStatsResponse:
    """Return what Envoy must be told so that it reports."""
    return lrs_pb2.LoadStatsResponse(
        send_all_clusters=True,
        report_endpoint_granularity=True,
        load_reporting_interval=seconds(INTERVAL),
    )


def read_report(request: lrs_pb2.LoadStatsRequest) -> LoadReport:
    """Read what Envoy sent."""
    clusters = {}
    elapsed = 0.0
    for stats in request.cluster_stats:
        interval = stats.load_report_interval
        elapsed = max(elapsed, interval.seconds + interval.nanos / 1e9)
        endpoints = {
            place_of(each.address): _load(each)
            for locality in stats.upstream_locality_stats
            for each in locality.upstream_endpoint_stats
        }
        if endpoints:
            clusters[stats.cluster_name] = endpoints
    return LoadReport(elapsed, clusters)


def place_of(address: address_pb2.Address) -> str:
    """Return the ``HOST:PORT`` of an address."""
    socket = address.socket_address
    if not socket.address:
        return str(address.pipe.path)
    host = f"[{socket.address}]" if ":" in socket.address else socket.address
    return f"{host}:{socket.port_value}"


def _load(stats: load_report_pb2.UpstreamEndpointStats) -> EndpointLoad:
    callers = _count(stats.load_metric_stats, CALLERS, stats.total_error_requests)
    return EndpointLoad(
        succeeded=stats.total_successful_requests + callers,
        failed=stats.total_error_requests - callers,
        issued=stats.total_issued_requests,
        in_flight=stats.total_requests_in_progress,
        utilization=_utilization(stats.load_metric_stats),
    )


def _count(
    metrics: Iterable[load_report_pb2.EndpointLoadMetricStats], name: str, most: int
) -> int:
    """Return the sum of a metric, a number of calls; a server may have sent any number."""
    found = sum(float(m.total_metric_value) for m in metrics if m.metric_name == name)
    return round(min(most, max(0.0, found))) if math.isfinite(found) else 0


def _utilization(metrics: Iterable[load_report_pb2.EndpointLoadMetricStats]) -> float | None:
    means = {
        metric.metric_name: metric.total_metric_value / metric.num_requests_finished_with_metric
        for metric in metrics
        if metric.num_requests_finished_with_metric
    }
    found = next((means[name] for name in UTILIZATIONS if name in means), None)
    return found if found is None or math.isfinite(found) else None
