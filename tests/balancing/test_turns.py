from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from tidegate.balancing.reference import ReferenceRule
from tidegate.balancing.turns import Turns

NAMES = st.text("abcdef", min_size=1, max_size=2)
WEIGHTS = st.dictionaries(NAMES, st.integers(1, 20), min_size=1)


@given(WEIGHTS)
def test_turns_are_those_of_the_reference_rule(weights: dict[str, int]) -> None:
    turns, rule = Turns(weights), ReferenceRule(weights)
    for _ in range(2 * sum(weights.values())):
        assert turns.pick() == rule.pick()


@given(st.dictionaries(NAMES, st.floats(0.01, 1e6), min_size=1, max_size=8), st.integers(1, 200))
def test_each_count_stays_close_to_its_share(weights: dict[str, float], picks: int) -> None:
    turns = Turns(weights)
    counts = Counter(turns.pick() for _ in range(picks))
    total = sum(weights.values())
    for name, weight in weights.items():
        assert abs(counts[name] - picks * weight / total) < len(weights)


def test_nobody_is_picked_where_there_is_nobody() -> None:
    turns = Turns()
    assert turns.pick() is None
    turns.set({"a": 0.0, "b": -1.0})
    assert turns.pick() is None


def test_a_call_is_not_given_again_to_the_one_that_failed_it() -> None:
    turns = Turns({"a": 3, "b": 1})
    assert turns.pick(excluding={"a"}) == "b"
    assert turns.pick(excluding={"a", "b"}) is None
    counts = Counter(turns.pick() for _ in range(400))
    assert abs(counts["a"] - 300) <= 2


@given(st.lists(WEIGHTS, min_size=1, max_size=8), WEIGHTS)
def test_new_weights_hold_soon_whatever_the_old_ones_were(
    history: list[dict[str, int]], weights: dict[str, int]
) -> None:
    turns = Turns()
    for old in history:
        turns.set(old)
        for _ in range(3):
            turns.pick()
    turns.set(weights)
    picks = 3 * sum(weights.values())
    counts = Counter(turns.pick() for _ in range(picks))
    for name, weight in weights.items():
        assert abs(counts[name] - 3 * weight) <= len(weights) + 1


def test_setting_weights_before_every_pick_starves_nobody() -> None:
    turns = Turns()
    counts: Counter[str | None] = Counter()
    for turn in range(3000):
        turns.set({"a": 10_000 + turn % 7, "b": 10_000, "c": 100})
        counts[turns.pick()] += 1
    assert 10 <= counts["c"] <= 20
    assert abs(counts["a"] - counts["b"]) < 10
