from __future__ import annotations

import weakref
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.errors import Cancelled, InferenceFailed
from tidegate.scheduling.slot import Slot, State

TextSlot = Slot[str, str]
END: dict[str, Callable[[TextSlot], bool]] = {
    "resolve": lambda slot: slot.resolve("answer"),
    "fail": lambda slot: slot.fail(InferenceFailed("no")),
    "cancel": lambda slot: slot.cancel(),
}
BECOMES = {"resolve": State.RESOLVED, "fail": State.FAILED, "cancel": State.CANCELLED}


@given(st.lists(st.sampled_from(sorted(END)), min_size=1, max_size=6))
def test_the_first_outcome_alone_counts(ends: list[str]) -> None:
    seen: list[tuple[State, str | None, BaseException | None]] = []
    slot = TextSlot("work", lambda s: seen.append((s.state, s.result, s.error)), arrived=0.0)
    assert slot.pending
    first = [END[end](slot) for end in ends]
    assert first == [True] + [False] * (len(ends) - 1)
    assert len(seen) == 1
    assert seen[0][0] is slot.state is BECOMES[ends[0]]
    assert not slot.pending


def test_each_outcome_arrives_as_it_was_given() -> None:
    seen: list[object] = []
    error = InferenceFailed("no")
    TextSlot("work", lambda s: seen.append(s.result), arrived=0.0).resolve("answer")
    TextSlot("work", lambda s: seen.append(s.error), arrived=0.0).fail(error)
    TextSlot("work", lambda s: seen.append(s.error), arrived=0.0).cancel()
    assert seen[0] == "answer"
    assert seen[1] is error
    assert isinstance(seen[2], Cancelled)


@pytest.mark.parametrize("inner", sorted(END))
@pytest.mark.parametrize("outer", sorted(END))
def test_an_outcome_within_the_callback_does_nothing(outer: str, inner: str) -> None:
    calls: list[bool] = []

    def on_done(slot: TextSlot) -> None:
        calls.append(END[inner](slot))

    slot = TextSlot("work", on_done, arrived=0.0)
    assert END[outer](slot)
    assert calls == [False]
    assert slot.state is BECOMES[outer]


class _Large:
    """Something whose life can be watched."""


@pytest.mark.parametrize("end", ["resolve", "fail", "cancel"])
def test_a_finished_slot_keeps_nothing_alive(end: str) -> None:
    work, result, callback_holds = _Large(), _Large(), _Large()
    alive = weakref.WeakSet([work, result, callback_holds])

    def on_done(slot: Slot[_Large, _Large], held: _Large = callback_holds) -> None:
        pass

    slot: Slot[_Large, _Large] = Slot(work, on_done, arrived=0.0)
    del work, callback_holds, on_done
    assert len(alive) == 3
    if end == "resolve":
        slot.resolve(result)
    elif end == "fail":
        slot.fail(InferenceFailed("no"))
    else:
        slot.cancel()
    del result
    assert len(alive) == 0


def test_a_callback_that_raises_leaves_the_slot_finished() -> None:
    def on_done(slot: TextSlot) -> None:
        raise RuntimeError("cannot answer")

    slot = TextSlot("work", on_done, arrived=0.0)
    with pytest.raises(RuntimeError):
        slot.resolve("answer")
    assert slot.state is State.RESOLVED
    assert not slot.fail(InferenceFailed("no"))
