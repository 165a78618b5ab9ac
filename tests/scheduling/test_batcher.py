from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.errors import DeadlineExceeded, QueueFull
from tidegate.scheduling.batcher import PATIENCE, Batcher, BatcherLimits
from tidegate.scheduling.latency import LatencyModel
from tidegate.scheduling.slot import Slot

NameSlot = Slot[str, str]


def slot(name: str = "", **fields: Any) -> NameSlot:
    fields.setdefault("arrived", 0.0)
    return NameSlot(name, lambda _: None, **fields)


def batcher(latency: LatencyModel | None = None, **limits: Any) -> Batcher[str, str]:
    return Batcher(BatcherLimits(**limits), latency or LatencyModel())


def names(batch: list[NameSlot]) -> list[str]:
    return [each.work or "gone" for each in batch]


def test_an_idle_caller_takes_what_there_is() -> None:
    queue = batcher(max_batch_size=4)
    assert queue.take(0.0) == []
    assert queue.next_due() is None
    for name in "abcdef":
        queue.add(slot(name), 0.0)
    assert names(queue.take(0.0)) == list("abcd")
    assert names(queue.take(0.0)) == list("ef")
    assert queue.depth == 0


def test_priority_goes_before_deadline_and_deadline_before_arrival() -> None:
    queue = batcher(max_batch_size=1)
    queue.add(slot("late", deadline=9.0), 0.0)
    queue.add(slot("never"), 0.0)
    queue.add(slot("soon", deadline=1.0), 0.0)
    queue.add(slot("soon too", deadline=1.0), 0.0)
    queue.add(slot("urgent", priority=-1), 0.0)
    order = [names(queue.take(0.0))[0] for _ in range(5)]
    assert order == ["urgent", "soon", "soon too", "late", "never"]


def test_the_queue_is_bounded_by_requests() -> None:
    queue = batcher(max_queue_size=2)
    first = slot()
    queue.add(first, 0.0)
    queue.add(slot(), 0.0)
    with pytest.raises(QueueFull, match=r"2 requests are waiting.*max_queue_size"):
        queue.add(slot(), 0.0)
    first.cancel()
    queue.discard(first)
    queue.add(slot(), 0.0)
    assert queue.depth == 2


def test_the_queue_is_bounded_by_bytes_but_takes_one_of_any_size() -> None:
    queue = batcher(max_queue_bytes=100)
    huge = slot(size=1000)
    queue.add(huge, 0.0)
    with pytest.raises(QueueFull, match="1000 bytes of requests are waiting, this one of 1"):
        queue.add(slot(size=1), 0.0)
    assert queue.take(0.0) == [huge]
    queue.add(slot(size=60), 0.0)
    queue.add(slot(size=40), 0.0)
    with pytest.raises(QueueFull):
        queue.add(slot(size=1), 0.0)


def test_a_deadline_that_cannot_be_met_is_refused_until_doubt_lets_it_in() -> None:
    latency = LatencyModel()
    queue = batcher(latency)
    with pytest.raises(DeadlineExceeded, match="had passed"):
        queue.add(slot(deadline=5.0), 5.0)
    latency.observe(1, 1.0)
    refusals = []
    while not queue.depth:
        try:
            queue.add(slot(deadline=10.5), 10.0)
        except DeadlineExceeded as error:
            refusals.append(str(error))
    assert 1 <= len(refusals) <= 7
    assert refusals[0].startswith("500.0 ms are left, but the model takes about 1000.0 ms")
    assert queue.depth == 1
    assert queue.next_deadline() == 10.5


def test_a_delay_waits_for_more_but_not_longer() -> None:
    queue = batcher(max_batch_size=3, max_queue_delay=1.0)
    queue.add(slot("a"), 10.0)
    assert queue.take(10.0) == []
    assert queue.next_due() == 11.0
    queue.add(slot("b"), 10.9)
    assert queue.next_due() == 11.0
    assert queue.take(10.99) == []
    assert names(queue.take(11.0)) == ["a", "b"]


def test_a_full_batch_does_not_wait_and_its_rest_has_waited() -> None:
    queue = batcher(max_batch_size=2, max_queue_delay=1.0)
    for name in "abc":
        queue.add(slot(name), 0.0)
    assert names(queue.take(0.0)) == ["a", "b"]
    assert names(queue.take(0.0)) == ["c"]
    queue.add(slot("d"), 0.0)
    assert queue.take(0.0) == []


def test_a_deadline_ends_the_delay_early_enough_to_be_met() -> None:
    latency = LatencyModel()
    latency.observe(1, 0.25)
    queue = batcher(latency, max_queue_delay=10.0)
    queue.add(slot("a", deadline=1.0), 0.0)
    assert queue.next_due() == pytest.approx(0.75)
    assert queue.take(0.7) == []
    assert names(queue.take(0.75)) == ["a"]


def test_one_who_waits_does_not_hold_up_another_group() -> None:
    queue = batcher(max_batch_size=2, max_queue_delay=1.0)
    queue.add(slot("a", group="x"), 0.0)
    queue.add(slot("b", group="y"), 0.5)
    queue.add(slot("c", group="y"), 0.5)
    assert names(queue.take(0.5)) == ["b", "c"]
    assert queue.next_due() == 1.0


def test_a_request_of_more_rows_than_a_batch_runs_alone() -> None:
    queue = batcher(max_batch_size=4)
    queue.add(slot("small"), 0.0)
    queue.add(slot("large", rows=9), 0.0)
    queue.add(slot("small too"), 0.0)
    assert [names(queue.take(0.0)) for _ in range(3)] == [["small"], ["large"], ["small too"]]


def test_clamp_only_ever_lowers_and_stops_at_one() -> None:
    queue = batcher(max_batch_size=8)
    queue.clamp(100)
    assert queue.max_batch_size == 8
    queue.clamp(3)
    queue.clamp(5)
    assert queue.max_batch_size == 3
    for name in "abcde":
        queue.add(slot(name), 0.0)
    assert [len(queue.take(0.0)) for _ in range(2)] == [3, 2]
    queue.clamp(0)
    assert queue.max_batch_size == 1


def test_expired_returns_those_that_wait_and_those_that_run() -> None:
    queue = batcher(max_batch_size=1)
    runs, waits, later = (slot(n, deadline=d) for n, d in (("a", 1.0), ("b", 1.0), ("c", 2.0)))
    for each in (runs, waits, later):
        queue.add(each, 0.0)
    assert queue.take(0.0) == [runs]
    assert queue.expired(0.99) == []
    assert queue.expired(1.0) == [runs, waits]
    for each in (runs, waits):
        each.fail(DeadlineExceeded("too late"))
    assert queue.depth == 1
    assert queue.take(1.0) == [later]
    assert queue.next_deadline() == 2.0
    later.resolve("done")
    assert queue.next_deadline() is None
    assert queue.expired(5.0) == []


def test_discarding_twice_or_after_take_does_nothing() -> None:
    queue = batcher(max_batch_size=1)
    taken, waiting = slot("a", size=5), slot("b", size=5)
    queue.add(taken, 0.0)
    queue.add(waiting, 0.0)
    queue.take(0.0)
    queue.discard(taken)
    assert queue.depth == 1
    waiting.cancel()
    queue.discard(waiting)
    queue.discard(waiting)
    assert queue.depth == 0
    assert queue.take(0.0) == []


@given(
    st.integers(1, 4),
    st.lists(st.tuples(st.integers(0, 5), st.integers(1, 6)), min_size=1, max_size=30),
)
def test_no_group_starves_another(largest: int, crowd: list[tuple[int, int]]) -> None:
    """However many come after it, a slot waits at most for those that came before."""
    queue = batcher(max_batch_size=largest)
    now = 0.0
    for group, rows in crowd[: len(crowd) // 2]:
        queue.add(slot("before", group=group, rows=rows, arrived=now), now)
        now += 1.0
    before = queue.depth
    victim = slot("victim", group="alone", arrived=now)
    queue.add(victim, now)
    for _ in range(before + 1):
        now += 1.0
        for group, rows in crowd:
            queue.add(slot("after", group=group, rows=rows, arrived=now), now)
        if victim in queue.take(now):
            return
    pytest.fail(f"not served after {before + 1} batches")


@pytest.mark.parametrize("group", ["same", "another"])
def test_those_with_a_deadline_cannot_starve_those_without(group: str) -> None:
    queue = batcher(max_batch_size=1)
    victim = slot("victim", group=group)
    queue.add(victim, 0.0)
    now = 0.0
    while victim.queued:
        assert now <= PATIENCE
        # More come than can be served, each of them more urgent than the victim at first.
        for _ in range(2):
            queue.add(slot(group="same", arrived=now, deadline=now + 2.0), now)
        queue.take(now)
        for late in queue.expired(now):
            late.fail(DeadlineExceeded("too late"))
        now += 0.5
