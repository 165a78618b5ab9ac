from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.scheduling.pending import PendingHeap
from tidegate.scheduling.slot import NO_DEADLINE, Slot

NumberSlot = Slot[int, int]


def slot(number: int = 0) -> NumberSlot:
    return NumberSlot(number, lambda _: None, arrived=float(number))


@given(
    st.lists(st.tuples(st.integers(0, 2), st.sampled_from([1.0, 2.0, NO_DEADLINE]), st.booleans()))
)
def test_pending_slots_come_out_in_order(entries: list[tuple[int, float, bool]]) -> None:
    heap: PendingHeap[int, int] = PendingHeap()
    slots = [slot(number) for number in range(len(entries))]
    for each, (priority, deadline, _) in zip(slots, entries):
        heap.push(each, priority, deadline)
    for each, (_, _, cancelled) in zip(slots, entries):
        if cancelled:
            each.cancel()
    expected = sorted(
        (priority, deadline, number)
        for number, (priority, deadline, cancelled) in enumerate(entries)
        if not cancelled
    )
    found = []
    while (key := heap.key()) is not None:
        peeked = heap.peek()
        popped = heap.pop()
        assert popped is peeked
        assert key[2] == popped.arrived
        found.append((key[0], key[1], slots.index(popped)))
    assert found == expected
    assert heap.peek() is None
    assert len(heap) == 0


@pytest.mark.parametrize("order", ["oldest first", "newest first", "random"])
def test_memory_is_bounded_when_all_is_cancelled(order: str) -> None:
    """The first slot stays pending and on top, so that nothing is dropped on the way."""
    heap: PendingHeap[int, int] = PendingHeap()
    top = slot()
    heap.push(top, 0, 0.0)
    chance = random.Random(1)
    waiting: list[NumberSlot] = []
    most = 0
    for number in range(20_000):
        each = slot(number)
        heap.push(each, 1, float(number))
        waiting.append(each)
        if len(waiting) > 50:
            index = {"oldest first": 0, "newest first": -1}.get(
                order, chance.randrange(len(waiting))
            )
            waiting.pop(index).cancel()
        most = max(most, len(heap))
    assert most <= 2 * 52 + 64
    assert heap.peek() is top


def test_memory_shrinks_again_after_a_crowd() -> None:
    heap: PendingHeap[int, int] = PendingHeap()
    top = slot()
    heap.push(top, 0, 0.0)
    crowd = [slot(number) for number in range(5_000)]
    for each in crowd:
        heap.push(each, 1, 1.0)
    for each in crowd:
        each.resolve(0)
    for number in range(20_000):
        each = slot(number)
        heap.push(each, 1, 1.0)
        each.resolve(0)
    assert len(heap) <= 64 + 1
    assert heap.peek() is top
