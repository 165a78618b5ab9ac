from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.scheduling.latency import LatencyModel

SECONDS = st.floats(1e-6, 100.0)
ROWS = st.integers(0, 10_000)


def test_what_was_never_run_takes_no_time() -> None:
    model = LatencyModel()
    assert model.estimate(8) == 0.0
    assert model.at_most(8) == math.inf
    model.doubt(8)
    assert model.estimate(8) == 0.0


def test_the_estimate_falls_at_once_and_rises_slowly() -> None:
    model = LatencyModel()
    model.observe(8, 1.0)
    model.observe(8, 0.1)
    assert model.estimate(8) == pytest.approx(0.1)
    model.observe(8, 1.1)
    assert model.estimate(8) == pytest.approx(0.2)
    for _ in range(100):
        model.observe(8, 1.1)
    assert model.estimate(8) == pytest.approx(1.1, rel=0.01)


def test_the_most_rises_at_once_and_falls_slowly() -> None:
    model = LatencyModel()
    model.observe(8, 0.1)
    model.observe(8, 1.1)
    assert model.at_most(8) == pytest.approx(1.1)
    model.observe(8, 0.1)
    assert model.at_most(8) == pytest.approx(1.05)
    for _ in range(200):
        model.observe(8, 0.1)
    assert model.at_most(8) == pytest.approx(0.1, rel=0.01)


@given(SECONDS, SECONDS)
def test_doubt_opens_the_door_again(slow: float, deadline: float) -> None:
    """However slow a run was, refusing alone brings the estimate below any deadline."""
    model = LatencyModel()
    model.observe(4, slow)
    refusals = 0
    while deadline < model.estimate(4):
        model.doubt(4)
        refusals += 1
    assert refusals <= max(0.0, math.log(slow / deadline) / -math.log(0.9)) + 1


@given(st.lists(SECONDS, min_size=1, max_size=50))
def test_estimates_lie_within_what_was_seen(runs: list[float]) -> None:
    model = LatencyModel()
    for seconds in runs:
        model.observe(3, seconds)
        assert model.estimate(3) <= seconds * (1 + 1e-9)
        assert model.at_most(3) >= seconds * (1 - 1e-9)
    assert min(runs) * (1 - 1e-9) <= model.estimate(3)
    assert model.at_most(3) <= max(runs) * (1 + 1e-9)


@given(ROWS, ROWS, SECONDS)
def test_sizes_within_a_power_of_two_share_what_is_known(
    rows: int, other: int, seconds: float
) -> None:
    model = LatencyModel()
    model.observe(rows, seconds)
    known = seconds if rows.bit_length() == other.bit_length() else 0.0
    assert model.estimate(other) == known
