"""Sums of what replicas counted."""

from __future__ import annotations

from functools import reduce
from operator import add

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.telemetry.strategies import model_stats
from tidegate.telemetry.ledger import KEPT, Ledger
from tidegate.telemetry.statistics import Buckets, ModelStats, ReplicaStats


@given(st.lists(model_stats, min_size=1, max_size=4))
def test_a_sum_is_that_of_its_parts(parts: list[ModelStats]) -> None:
    total = reduce(add, parts)
    assert total.inference_count == sum(p.inference_count for p in parts)
    assert total.last_inference_ms == max(p.last_inference_ms for p in parts)
    for name in ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output"):
        assert getattr(total, name).count == sum(getattr(p, name).count for p in parts)
        assert getattr(total, name).ns == sum(getattr(p, name).ns for p in parts)
    for name in ("request_duration", "queue_duration", "compute_duration", "batch_size"):
        ours, theirs = getattr(total, name), [getattr(p, name) for p in parts]
        assert ours.counts == tuple(map(sum, zip(*(t.counts for t in theirs))))
        assert ours.cumulative()[-1] == (float("inf"), sum(t.count for t in theirs))
        below = [count for _, count in ours.cumulative()]
        assert below == sorted(below)
    for rows in {rows for p in parts for rows in p.batches}:
        assert total.batches[rows].count == sum(
            p.batches[rows].count for p in parts if rows in p.batches
        )
    for protocol in {protocol for p in parts for protocol in p.requests}:
        for code in {code for p in parts for code in p.requests.get(protocol, {})}:
            assert total.requests[protocol][code] == sum(
                p.requests.get(protocol, {}).get(code, 0) for p in parts
            )


@given(model_stats)
def test_nothing_added_changes_nothing(stats: ModelStats) -> None:
    assert ModelStats() + stats == stats + ModelStats()
    assert (ModelStats() + stats).success == stats.success


@given(model_stats, st.integers(0, 10))
def test_what_a_replica_says_is_read_as_it_was_meant(stats: ModelStats, depth: int) -> None:
    said = ReplicaStats(counted=stats, queue_depth=depth)
    assert ReplicaStats.model_validate_json(said.model_dump_json()) == said


def test_histograms_of_other_bounds_are_left_out_of_a_sum() -> None:
    ours = Buckets(bounds=(1.0,), counts=(1, 2), total=3.0)
    assert ours + Buckets(bounds=(2.0,), counts=(5, 5), total=9.0) == ours


def test_a_histogram_has_one_count_more_than_bounds() -> None:
    with pytest.raises(ValidationError):
        Buckets(bounds=(1.0,), counts=(1,))


events = st.lists(
    st.tuples(st.sampled_from(["count", "end", "start"]), st.integers(0, 3), st.integers(0, 9)),
    max_size=40,
)


@given(events)
def test_sums_never_fall_whichever_sources_end(events: list[tuple[str, int, int]]) -> None:
    """Four places for a process each; what is in them changes as they end and start."""
    ledger: Ledger[tuple[int, int], str, int] = Ledger()
    lives, counted = [0] * 4, [0] * 4
    told = 0
    for now, (event, place, more) in enumerate(events):
        before = ledger.sums({"m"}, now).get("m", 0)
        source = (place, lives[place])
        if event == "count":
            counted[place] += more
            told += more
            ledger.note(source, "m", counted[place])
        elif event == "end":
            ledger.end(source, now)
            ledger.end(source, now)
            lives[place] += 1
            counted[place] = 0
        after = ledger.sums({"m"}, now).get("m", 0)
        assert after >= before
        assert after == told


def test_a_key_that_is_gone_is_told_for_a_while() -> None:
    ledger: Ledger[int, str, int] = Ledger()
    ledger.note(1, "old", 5)
    ledger.note(2, "new", 7)
    ledger.end(1, now=10.0)
    assert ledger.sums({"new"}, 10.0 + KEPT) == {"old": 5, "new": 7}
    assert ledger.sums({"old", "new"}, 11.0 + KEPT) == {"old": 5, "new": 7}
    assert ledger.sums({"new"}, 11.0 + KEPT) == {"new": 7}
