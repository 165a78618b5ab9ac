"""What Prometheus' own parser reads of a page."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_parser
from prometheus_client.parser import text_string_to_metric_families as text_parser

from tests.telemetry.strategies import buckets
from tidegate.telemetry import names
from tidegate.telemetry.exposition import Page
from tidegate.telemetry.histogram import DURATION_BOUNDS
from tidegate.telemetry.statistics import Buckets

OPEN = "application/openmetrics-text; version=1.0.0"
labels = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def samples(page: Page, accept: str = "") -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    content, kind = page.render(accept)
    parser = open_parser if kind.startswith("application/openmetrics-text") else text_parser
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parser(content.decode())
        for sample in family.samples
    }


@pytest.mark.parametrize("accept", ["", "text/plain;version=0.0.4", OPEN, "*/*", "nonsense;;,"])
def test_every_kind_is_read_in_every_format(accept: str) -> None:
    page = Page()
    page.add(names.REQUESTS, 7, "m", "1", "grpc", "OK")
    page.add(names.QUEUE_DEPTH, 3, "m", "1", "0")
    page.add_histogram(
        names.BATCH_SIZE, Buckets(bounds=(1, 2), counts=(4, 2, 1), total=20.0), "m", "1"
    )
    found = samples(page, accept)
    version = {("model", "m"), ("version", "1")}
    asked = frozenset({*version, ("protocol", "grpc"), ("code", "OK")})
    assert found["tidegate_requests_total", asked] == 7
    assert found["tidegate_queue_depth", frozenset({*version, ("replica", "0")})] == 3
    for bound, count in (("1.0", 4), ("2.0", 6), ("+Inf", 7)):
        assert found["tidegate_batch_size_bucket", frozenset({*version, ("le", bound)})] == count
    assert found["tidegate_batch_size_sum", frozenset(version)] == 20
    assert found["tidegate_batch_size_count", frozenset(version)] == 7


@given(labels, labels, st.integers(0, 2**53))
def test_any_label_comes_back(model: str, code: str, count: int) -> None:
    page = Page()
    page.add(names.REQUESTS, count, model, "1", "grpc", code)
    wanted = {("model", model), ("version", "1"), ("protocol", "grpc"), ("code", code)}
    assert samples(page) == {("tidegate_requests_total", frozenset(wanted)): count}


@given(buckets(DURATION_BOUNDS))
def test_a_histogram_is_cumulative(values: Buckets) -> None:
    page = Page()
    page.add_histogram(names.REQUEST_DURATION, values, "m", "1")
    found = samples(page)
    by_bound = {
        dict(key)["le"]: value for (name, key), value in found.items() if name.endswith("_bucket")
    }
    assert len(by_bound) == len(DURATION_BOUNDS) + 1
    rising = [by_bound[bound] for bound in sorted(by_bound, key=float)]
    assert rising == sorted(rising)
    assert by_bound["+Inf"] == values.count


def test_two_values_of_one_series_are_summed_and_labels_must_fit() -> None:
    page = Page()
    page.add(names.REPLICA_MEMORY, 5, "m", "1", "0")
    page.add(names.REPLICA_MEMORY, 7, "m", "1", "0")
    assert list(samples(page).values()) == [12]
    with pytest.raises(ValueError, match="tidegate_replica_memory_bytes has the labels"):
        page.add(names.REPLICA_MEMORY, 5, "m")


def test_names_are_unique_and_follow_the_conventions() -> None:
    found = [metric.name for metric in names.METRICS]
    # OpenMetrics takes a counter's name without its ending for that of its family.
    assert len(found) == len({name.removesuffix("_total") for name in found}) > 30
    for metric in names.METRICS:
        assert re.fullmatch("tidegate_[a-z]+(_[a-z]+)*", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert metric.help


@pytest.mark.parametrize("accept", ["application/openmetrics-text; version=1e999", ";;=,", "\xff"])
def test_who_accepts_nonsense_gets_text(accept: str) -> None:
    assert Page().render(accept)[1].startswith("text/plain")
