"""Envoy's counters under our names; what Envoy tells is made up."""

from __future__ import annotations

import re

from prometheus_client.parser import text_string_to_metric_families

from tidegate.controller.edge_figures import PATTERN, EdgeFigures
from tidegate.telemetry.exposition import Page

CLUSTERS = {"model/digits": "digits", "model/digits:2": "digits", "model/a.b": "a.b"}


def told(figures: EdgeFigures, models: tuple[str, ...] = ("digits", "a.b")) -> dict[str, float]:
    page = Page()
    figures.write(page, models, 0.0)
    return {
        "/".join((sample.name.removeprefix("tidegate_edge_"), *sample.labels.values())): value
        for family in text_string_to_metric_families(page.render()[0].decode())
        for sample in family.samples
        if (value := sample.value) is not None
    }


RETRY, RETRY_2 = (
    "cluster.model/digits.upstream_rq_retry",
    "cluster.model/digits_2.upstream_rq_retry",
)


def test_clusters_of_a_model_are_summed() -> None:
    figures = EdgeFigures()
    stats = {
        RETRY: 3,
        RETRY_2: 4,
        "cluster.model/a.b.upstream_rq_rx_reset": 5,
        "cluster.model/digits.outlier_detection.ejections_active": 1,
        "cluster.model/digits_2.outlier_detection.ejections_active": 1,
        "cluster.model/unknown.upstream_rq_retry": 9,
        "http.clients.downstream_rq_4xx": 6,
        "http.clients.downstream_cx_active": 2,
        "http.clients.downstream_cx_ssl_total": 8,
    }
    assert all(re.search(PATTERN, name) for name in stats)
    figures.note(stats, CLUSTERS, 0.0)
    assert told(figures) == {
        "retries_total/digits": 7,
        "upstream_failures_total/a.b/reset": 5,
        "ejected_replicas/digits": 2,
        "requests_total/4xx": 6,
        "connections_active": 2,
    }


def test_counters_do_not_fall_when_envoy_starts_anew_or_a_version_goes() -> None:
    figures = EdgeFigures()
    for stats, total in (
        ({RETRY: 5, RETRY_2: 2}, 7),
        ({RETRY: 5}, 7),  # the version is gone
        ({RETRY: 6}, 8),
        ({RETRY: 1}, 9),  # another process
        ({RETRY: 1, RETRY_2: 1}, 10),
        ({}, 10),
    ):
        figures.note(stats, CLUSTERS, 0.0)
        assert told(figures) == {"retries_total/digits": total}
