from __future__ import annotations

import random
from itertools import product
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.balancing.reference import ReferenceRule
from tidegate.balancing.window import window_weight

CALLS = st.integers(0, 10_000)


@given(st.integers(1, 1000), st.floats(0, 1), CALLS, CALLS)
def test_a_weight_stays_between_one_and_the_configured_one(
    base: int, place: float, succeeded: int, failed: int
) -> None:
    weight = 1 + (base - 1) * place
    after = window_weight(weight, base, succeeded, failed)
    assert 1 <= after <= base
    if not succeeded:
        assert after <= weight
    if not failed:
        assert after >= weight


@given(st.floats(1, 100))
def test_no_calls_change_nothing(weight: float) -> None:
    assert window_weight(weight, 100, 0, 0) == weight


@given(st.integers(2, 100), st.floats(0, 1), st.integers(0, 50), st.integers(0, 50))
def test_halves_of_a_window_make_the_whole(
    base: int, place: float, succeeded: int, failed: int
) -> None:
    """How a steady stream is cut into reports does not matter."""
    weight = 1 + (base - 1) * place
    twice = window_weight(window_weight(weight, base, succeeded, failed), base, succeeded, failed)
    assert twice == pytest.approx(
        window_weight(weight, base, 2 * succeeded, 2 * failed), rel=1e-6, abs=1.0
    )


def test_single_calls_are_those_of_the_reference_rule() -> None:
    weight = 8.0
    assert [weight := window_weight(weight, 8, 0, 1) for _ in range(4)] == [4, 2, 1, 1]
    assert [weight := window_weight(weight, 8, 1, 0) for _ in range(3)] == [4.5, 6.25, 7.125]


@pytest.mark.parametrize("failures", [0, 1, 2, 4, 6, 8])
def test_it_is_the_mean_of_the_reference_rule_over_all_orders(failures: int) -> None:
    """Eight calls that fail with a probability p, in every possible order, weighed by it."""
    base, calls = 1024, 8
    rate = failures / calls
    mean = 0.0
    for order in product((True, False), repeat=calls):
        rule = ReferenceRule({"a": base})
        chance = 1.0
        for failed in order:
            chance *= rate if failed else 1.0 - rate
            (rule.failed if failed else rule.succeeded)("a")
        mean += chance * rule.weights["a"]
    form = window_weight(base, base, calls - failures, failures)
    assert form == pytest.approx(mean, abs=2.0)  # the rule rounds to whole numbers


@pytest.mark.parametrize("rate", [0.05, 0.3, 0.7])
def test_it_follows_a_simulation_of_the_reference_rule(rate: float) -> None:
    """Windows of what really happened, against the mean of rules that saw every call."""
    chance = random.Random(7)
    rules = [ReferenceRule({"a": 100}) for _ in range(400)]
    weights = [100.0] * len(rules)
    for _ in range(6):
        for place, rule in enumerate(rules):
            failed = 0
            for _ in range(40):
                if chance.random() < rate:
                    rule.failed("a")
                    failed += 1
                else:
                    rule.succeeded("a")
            weights[place] = window_weight(weights[place], 100, 40 - failed, failed)
    assert fmean(weights) == pytest.approx(fmean(r.weights["a"] for r in rules), abs=3.0)
