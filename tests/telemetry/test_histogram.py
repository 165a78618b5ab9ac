from __future__ import annotations

import math
from bisect import bisect_left

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.telemetry.histogram import DURATION_BOUNDS, SIZE_BOUNDS, Histogram
from tidegate.telemetry.statistics import Buckets

values = st.floats(0, 100)


@pytest.mark.parametrize("bounds", [DURATION_BOUNDS, SIZE_BOUNDS])
def test_bounds_rise(bounds: tuple[float, ...]) -> None:
    assert list(bounds) == sorted(set(bounds))


@given(st.lists(values))
def test_a_value_counts_for_every_bound_that_is_not_less(observed: list[float]) -> None:
    histogram = Histogram(DURATION_BOUNDS)
    for value in observed:
        histogram.observe(value)
    for bound, count in Buckets.of(histogram).cumulative():
        assert count == sum(value <= bound for value in observed)
    assert histogram.total == pytest.approx(math.fsum(observed))


@given(st.lists(values, min_size=1), st.floats(100, 200))
def test_a_batch_counts_as_its_members_do(times: list[float], now: float) -> None:
    together, alone = Histogram(DURATION_BOUNDS), Histogram(DURATION_BOUNDS)
    together.observe_since(times, min(times), max(times), sum(times), now)
    for time in times:
        alone.observe(now - time)
    assert together.counts == alone.counts
    assert together.total == pytest.approx(alone.total)


@given(st.lists(values, min_size=1, max_size=5))
def test_members_between_the_same_bounds_and_beyond_all_of_them(ages: list[float]) -> None:
    histogram = Histogram((50.0,))
    times = [200.0 - age for age in ages]
    histogram.observe_since(times, min(times), max(times), sum(times), 200.0)
    assert histogram.counts[0] == sum(bisect_left((50.0,), 200.0 - (200.0 - a)) == 0 for a in ages)
    assert sum(histogram.counts) == len(ages)
