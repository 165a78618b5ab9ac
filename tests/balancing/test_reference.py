from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.balancing.reference import ReferenceRule

WEIGHTS = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=2), st.integers(1, 20), min_size=1
)
CALLS = st.lists(st.booleans(), max_size=60)


def test_the_weight_halves_with_each_failure_and_comes_half_of_the_way_back() -> None:
    rule = ReferenceRule({"a": 8})
    down = [rule.weights["a"]]
    for _ in range(4):
        rule.failed("a")
        down.append(rule.weights["a"])
    assert down == [8, 4, 2, 1, 1]
    up = [rule.weights["a"]]
    for _ in range(4):
        rule.succeeded("a")
        up.append(rule.weights["a"])
    assert up == [1, 5, 7, 8, 8]


def test_three_equal_nodes_share_equally() -> None:
    """The published original begins with weights of 0 and gives every call to the first node."""
    rule = ReferenceRule({"a": 100, "b": 100, "c": 100})
    for _ in range(7):
        assert [rule.pick() for _ in range(3)] == ["a", "b", "c"]


def test_turns_are_smooth() -> None:
    rule = ReferenceRule({"a": 5, "b": 1, "c": 1})
    assert "".join(rule.pick() for _ in range(7)) == "aabacaa"


@given(WEIGHTS, st.integers(1, 3))
def test_shares_are_exact_over_a_cycle(weights: dict[str, int], cycles: int) -> None:
    rule = ReferenceRule(weights)
    picks = Counter(rule.pick() for _ in range(cycles * sum(weights.values())))
    assert picks == {name: cycles * weight for name, weight in weights.items()}


@given(st.integers(1, 200), CALLS)
def test_weights_stay_between_one_and_the_configured_one(base: int, calls: list[bool]) -> None:
    rule = ReferenceRule({"a": base})
    for success in calls:
        (rule.succeeded if success else rule.failed)("a")
        assert 1 <= rule.weights["a"] <= base


@given(st.integers(1, 2**20), CALLS)
def test_successes_bring_all_of_it_back(base: int, calls: list[bool]) -> None:
    rule = ReferenceRule({"a": base})
    for success in calls:
        (rule.succeeded if success else rule.failed)("a")
    for _ in range(base.bit_length()):
        rule.succeeded("a")
    assert rule.weights == {"a": base}


@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=80))
def test_every_pick_pays_what_all_were_given(calls: list[tuple[int, bool]]) -> None:
    """However weights change, nobody is starved: all are picked within a cycle of the largest."""
    rule = ReferenceRule({"a": 4, "b": 4, "c": 4})
    for place, success in calls:
        rule.pick()
        (rule.succeeded if success else rule.failed)("abc"[place])
    assert {rule.pick() for _ in range(80)} == {"a", "b", "c"}


@pytest.mark.parametrize("weights", [{}, {"a": 0}, {"a": 1, "b": -3}])
def test_weights_below_one_are_refused(weights: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least"):
        ReferenceRule(weights)
