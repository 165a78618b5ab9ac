"""Metrics as a page for Prometheus, in its text format or as OpenMetrics."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from tidegate.telemetry.names import METRICS, Metric
from tidegate.telemetry.statistics import Buckets

_FAMILIES = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily}


class Page(Collector):
    """Collects values of the known metrics; :meth:`render` writes them."""

    def __init__(self) -> None:
        self._values: dict[Metric, dict[tuple[str, ...], float]] = {}
        self._histograms: dict[Metric, dict[tuple[str, ...], Buckets]] = {}

    def add(self, metric: Metric, value: float, *labels: str) -> None:
        """Add a value; two for the same labels are summed."""
        _check(metric, labels)
        values = self._values.setdefault(metric, {})
        values[labels] = values.get(labels, 0) + value

    def add_histogram(self, metric: Metric, buckets: Buckets, *labels: str) -> None:
        """Add a histogram."""
        _check(metric, labels)
        self._histograms.setdefault(metric, {})[labels] = buckets

    def collect(self) -> Iterable[Family]:
        """Return what prometheus_client writes."""
        for metric in METRICS:
            if metric in self._values:
                family = _FAMILIES[metric.kind](metric.name, metric.help, labels=metric.labels)
                for labels, value in self._values[metric].items():
                    family.add_metric(labels, value)
                yield family
            elif metric in self._histograms:
                histogram = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
                for labels, buckets in self._histograms[metric].items():
                    cumulative = [(_bound(b), c) for b, c in buckets.cumulative()]
                    histogram.add_metric(labels, cumulative, buckets.total)
                yield histogram

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """Return the page and its content type, as the header ``Accept`` asks for."""
        try:
            encode, content_type = choose_encoder(accept)
        except (TypeError, ValueError):  # a version that is none
            encode, content_type = choose_encoder("")
        return encode(self), content_type


def _bound(value: float) -> str:
    return "+Inf" if value == float("inf") else repr(float(value))


def _check(metric: Metric, labels: tuple[str, ...]) -> None:
    if len(labels) != len(metric.labels):
        raise ValueError(f"{metric.name} has the labels {metric.labels}, not {labels}")
