from __future__ import annotations

from tidegate.gateway.discovery.source import EndpointReport, Report
from tidegate.gateway.endpoints import Endpoint

SEVEN = Endpoint("10.0.0.7:8000", "tidegate", weight=7)


def test_an_address_is_told_once_and_the_first_of_it_counts() -> None:
    told: list[tuple[Endpoint, ...]] = []
    report = EndpointReport(told.append, lambda _: None)
    eight = Endpoint("10.0.0.8:8000", "tidegate")
    report.found([eight, SEVEN, Endpoint("10.0.0.7:8000", "seldon")])
    report.found([SEVEN, eight])
    assert told == [(SEVEN, eight)]


def test_a_set_without_bounds_is_not_taken() -> None:
    told: list[tuple[Endpoint, ...]] = []
    words: list[str | None] = []
    report = EndpointReport(told.append, words.append)
    report.found([SEVEN])
    report.found(
        Endpoint(f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}:1", "tidegate") for n in range(100_000)
    )
    assert told == [(SEVEN,)]
    assert "more than 10000 endpoints" in str(words[-1])
    report.found([SEVEN])
    assert words[-1] is None


def test_words_are_bounded_and_told_when_they_change() -> None:
    told: list[int] = []
    words: list[str | None] = []
    report = Report(told.append, words.append, 0)
    for _ in range(2):
        report.failed("x" * 10_000)
    report.failed("y")
    report.found(1)
    assert told == [0, 1]
    assert [w and len(w) for w in words] == [501, 1, None]
