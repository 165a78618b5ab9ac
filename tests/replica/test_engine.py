from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import threading
import weakref
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.replica.fake_model import FakeModel, ask
from tests.replica.waiting import WAIT, until
from tidegate.clock import MonotonicClock
from tidegate.errors import (
    Cancelled,
    DeadlineExceeded,
    InferenceFailed,
    InsufficientMemory,
    QueueFull,
)
from tidegate.replica.batch import BatchRunner
from tidegate.replica.binding import Binder, Bound
from tidegate.replica.engine import Answer, Engine, RequestSlot
from tidegate.scheduling.batcher import Batcher, BatcherLimits
from tidegate.scheduling.latency import LatencyModel
from tidegate.scheduling.slot import NO_DEADLINE, Slot
from tidegate.types import Array


@dataclass
class Notes:
    """A recorder that remembers."""

    running: list[list[RequestSlot]] = field(default_factory=list)
    ends: int = 0

    def started(self, slots: Sequence[RequestSlot]) -> None:
        self.running.append(list(slots))

    def ended(self) -> None:
        self.ends += 1


class Bench:
    """An engine around a model of the test's, and the way to submit to it."""

    def __init__(self, model: FakeModel, limits: BatcherLimits, *, hand_over: bool) -> None:
        self.model = model
        self.clock = MonotonicClock()
        self.latency = LatencyModel()
        self.batcher: Batcher[Bound, Answer] = Batcher(limits, self.latency)
        self.notes = Notes()
        self.binder = Binder(model.signature, batched=True)
        runner = BatchRunner(model, self.clock.now)
        self.engine = Engine(
            runner, self.batcher, self.latency, self.clock, self.notes,
            always_hand_over=hand_over,
        )  # fmt: skip

    def submit(
        self,
        value: float,
        rows: int = 1,
        width: int = 2,
        *,
        within: float | None = None,
        outputs: Sequence[str] = (),
        priority: int = 0,
    ) -> tuple[RequestSlot, asyncio.Future[Answer]]:
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

        def on_done(slot: RequestSlot) -> None:
            assert not future.done(), "two outcomes"
            if slot.error is not None:
                future.set_exception(slot.error)
            else:
                assert slot.result is not None
                future.set_result(slot.result)

        bound = self.binder.bind(ask(value, rows, width, outputs))
        now = self.clock.now()
        slot: RequestSlot = Slot(
            bound, on_done, arrived=now, rows=bound.rows, size=bound.size, group=bound.group,
            priority=priority, deadline=NO_DEADLINE if within is None else now + within,
        )  # fmt: skip
        self.engine.submit(slot)
        return slot, future

    def cancel(self, slot: RequestSlot) -> None:
        """Do what happens when the caller's connection closes."""
        slot.cancel()
        self.engine.discard(slot)

    async def entered(self) -> None:
        """Wait until the model has been called once more."""
        assert await asyncio.to_thread(self.model.entered.acquire, True, WAIT)


@contextlib.asynccontextmanager
async def bench(
    model: FakeModel | None = None, *, hand_over: bool = True, **limits: float
) -> AsyncIterator[Bench]:
    made = Bench(model or FakeModel(), BatcherLimits(**limits), hand_over=hand_over)  # type: ignore[arg-type]
    async with made.engine:
        try:
            yield made
        finally:
            made.model.release()


async def value_of(future: asyncio.Future[Answer]) -> float:
    return float((await asyncio.wait_for(future, WAIT))["total"][0, 0]) - 0.5


async def test_what_arrives_together_runs_together() -> None:
    async with bench() as b:
        futures = [b.submit(float(i))[1] for i in range(5)]
        assert [await value_of(future) for future in futures] == [0, 1, 2, 3, 4]
        assert [len(run) for run in b.model.runs] == [5]
        assert b.notes.ends == 1


async def test_a_request_cancelled_in_the_queue_is_not_run() -> None:
    async with bench() as b:
        b.model.hold()
        _, first = b.submit(0.0)
        await b.entered()
        queued = [b.submit(float(i)) for i in (1, 2, 3)]
        assert b.engine.depth == 3
        b.cancel(queued[1][0])
        assert b.engine.depth == 2
        b.model.release()
        assert await value_of(first) == 0
        assert await value_of(queued[0][1]) == 1
        assert await value_of(queued[2][1]) == 3
        with pytest.raises(Cancelled):
            await queued[1][1]
        assert b.model.runs[1][:, 0].tolist() == [1, 3]


@pytest.mark.parametrize("gone", range(4))
async def test_batch_mates_of_a_cancelled_request_get_their_answers(gone: int) -> None:
    async with bench() as b:
        b.model.hold()
        batch = [b.submit(float(i)) for i in range(4)]
        await b.entered()
        b.cancel(batch[gone][0])
        with pytest.raises(Cancelled):
            await batch[gone][1]
        b.model.release()
        for index, (_, future) in enumerate(batch):
            if index != gone:
                assert await value_of(future) == index
        assert len(b.model.runs) == 1


async def test_a_request_cancelled_on_its_way_to_the_model_is_not_run() -> None:
    async with bench() as b:
        b.model.hold()
        batch = [b.submit(float(i)) for i in range(3)]
        b.cancel(batch[1][0])
        slots = [slot for slot, _ in batch]
        b.model.release()
        live, ran = b.engine._run(slots)
        assert live == [slots[0], slots[2]]
        assert len(ran.outcomes) == 2
        with pytest.raises(Cancelled):
            await batch[1][1]


async def test_a_batch_that_nobody_waits_for_is_not_run() -> None:
    async with bench(max_batch_size=2) as b:
        b.model.hold()
        _, first = b.submit(0.0)
        await b.entered()
        for i in (1, 2):
            slot, future = b.submit(float(i))
            slot.cancel()
            b.engine.discard(slot)
            with pytest.raises(Cancelled):
                await future
        _, last = b.submit(3.0)
        b.model.release()
        assert (await value_of(first), await value_of(last)) == (0, 3)
        assert [run[0, 0] for run in b.model.runs] == [0, 3]


@pytest.mark.parametrize("culprit", range(8))
async def test_only_the_culprit_of_a_batch_fails(culprit: int) -> None:
    def meddle(array: Array) -> None:
        if float(culprit) in array[:, 0]:
            raise ValueError(f"{culprit} is no good")

    async with bench(FakeModel(meddle)) as b:
        futures = [b.submit(float(i))[1] for i in range(8)]
        for index, future in enumerate(futures):
            if index == culprit:
                with pytest.raises(InferenceFailed, match=f"ValueError: {culprit} is no good"):
                    await asyncio.wait_for(future, WAIT)
            else:
                assert await value_of(future) == index


async def test_batches_that_do_not_fit_into_memory_become_smaller_for_good() -> None:
    def meddle(array: Array) -> None:
        if len(array) > 3:
            raise InsufficientMemory("no room")

    async with bench(FakeModel(meddle), max_batch_size=8) as b:
        for start in (0, 10):
            futures = [b.submit(float(start + i))[1] for i in range(8)]
            assert [await value_of(future) for future in futures] == list(range(start, start + 8))
        assert b.batcher.max_batch_size == 2
        later = b.model.runs[-4:]
        assert [len(run) for run in later] == [2, 2, 2, 2]


async def test_a_deadline_fires_while_the_model_hangs() -> None:
    async with bench() as b:
        b.model.hold()
        _, hangs = b.submit(0.0, within=0.05)
        await b.entered()
        _, waits = b.submit(1.0, within=0.05)
        _, patient = b.submit(2.0)
        for future in (hangs, waits):
            with pytest.raises(DeadlineExceeded, match=r"no answer within the deadline, 0\.0"):
                await asyncio.wait_for(future, WAIT)
        assert b.engine.depth == 1
        b.model.release()
        assert await value_of(patient) == 2
        assert [run[:, 0].tolist() for run in b.model.runs] == [[0], [2]]


async def test_deadlines_fire_in_their_order_whatever_order_they_came_in() -> None:
    async with bench() as b:
        b.model.hold()
        b.submit(0.0)
        await b.entered()
        fired: list[float] = []
        futures = []
        for within in (0.09, 0.03, 0.06):
            _, future = b.submit(1.0, within=within)
            future.add_done_callback(lambda _, within=within: fired.append(within))  # type: ignore[misc]
            futures.append(future)
        done, _ = await asyncio.wait(futures, timeout=WAIT)
        await asyncio.sleep(0)
        assert fired == [0.03, 0.06, 0.09]
        assert all(isinstance(future.exception(), DeadlineExceeded) for future in done)


async def test_what_expires_while_the_loop_is_busy_is_not_run() -> None:
    async with bench() as b:
        b.model.hold()
        _, first = b.submit(0.0)
        await b.entered()
        _, late = b.submit(1.0, within=0.01)
        b.model.release()
        # The loop's thread is held up: the end of the run and the deadline come at once.
        threading.Event().wait(0.1)
        with pytest.raises(DeadlineExceeded):
            await asyncio.wait_for(late, WAIT)
        assert await value_of(first) == 0
        assert len(b.model.runs) == 1


async def test_what_expires_behind_a_batch_in_the_loops_thread_is_not_run() -> None:
    def meddle(array: Array) -> None:
        if array[0, 0] == 1.0:
            threading.Event().wait(0.1)

    async with bench(FakeModel(meddle), hand_over=False, max_batch_size=1) as b:
        b.latency.observe(1, 1e-6)
        _, first = b.submit(1.0, priority=-1)
        _, late = b.submit(2.0, within=0.02)
        _, last = b.submit(3.0)
        with pytest.raises(DeadlineExceeded):
            await asyncio.wait_for(late, WAIT)
        assert (await value_of(first), await value_of(last)) == (1, 3)
        assert 2.0 not in [run[0, 0] for run in b.model.runs]


async def test_a_deadline_that_cannot_be_met_is_refused_before_the_model() -> None:
    async with bench() as b:
        with pytest.raises(DeadlineExceeded, match="had passed"):
            b.submit(1.0, within=-0.001)
        b.latency.observe(1, 60.0)
        with pytest.raises(DeadlineExceeded, match="the model takes about 60000"):
            b.submit(1.0, within=5.0)
        assert await value_of(b.submit(2.0)[1]) == 2
        assert [run[0, 0] for run in b.model.runs] == [2]


async def test_a_full_queue_refuses() -> None:
    async with bench(max_queue_size=3) as b:
        b.model.hold()
        accepted = [b.submit(0.0)[1]]
        await b.entered()
        accepted += [b.submit(float(i))[1] for i in (1, 2, 3)]
        with pytest.raises(QueueFull):
            b.submit(4.0)
        b.model.release()
        assert [await value_of(future) for future in accepted] == [0, 1, 2, 3]


async def test_a_delay_ends_when_the_batch_is_full() -> None:
    async with bench(max_batch_size=2, max_queue_delay=3600.0) as b:
        _, first = b.submit(1.0)
        for _ in range(3):
            await asyncio.sleep(0)
        assert not b.model.runs
        _, second = b.submit(2.0)
        assert (await value_of(first), await value_of(second)) == (1, 2)
        assert [len(run) for run in b.model.runs] == [2]


async def test_a_delay_ends_by_itself() -> None:
    async with bench(max_queue_delay=0.02) as b:
        began = b.clock.now()
        assert await value_of(b.submit(1.0)[1]) == 1
        assert b.clock.now() - began >= 0.02


async def test_quick_batches_run_in_the_loops_thread_and_slow_ones_do_not() -> None:
    async with bench(hand_over=False) as b:
        for _ in range(20):
            b.latency.observe(1, 1e-6)
        here = threading.get_ident()
        assert await value_of(b.submit(1.0)[1]) == 1
        assert b.model.threads == [here]
        b.latency.observe(1, 0.5)
        assert await value_of(b.submit(2.0)[1]) == 2
        assert b.model.threads[1] != here
        # A size that was never run is not relied on.
        assert await value_of(b.submit(3.0, rows=9)[1]) == 3
        assert b.model.threads[2] != here


async def test_quick_batches_can_be_forbidden() -> None:
    async with bench(hand_over=True) as b:
        b.latency.observe(1, 1e-6)
        assert await value_of(b.submit(1.0)[1]) == 1
        assert b.model.threads[0] != threading.get_ident()


@pytest.mark.parametrize("hand_over", [False, True])
async def test_a_failure_in_either_thread_is_an_answer(hand_over: bool) -> None:
    def meddle(array: Array) -> None:
        if array[0, 0] < 0:
            raise KeyError("negative")

    async with bench(FakeModel(meddle), hand_over=hand_over) as b:
        for _ in range(5):
            assert await value_of(b.submit(1.0)[1]) == 1
            with pytest.raises(InferenceFailed, match="KeyError"):
                await asyncio.wait_for(b.submit(-1.0)[1], WAIT)
        assert b.notes.ends == len(b.notes.running) == 10


@pytest.mark.parametrize("fate", ["answered", "failed", "cancelled"])
@pytest.mark.parametrize("hand_over", [False, True])
async def test_what_is_done_with_is_freed_at_once(hand_over: bool, fate: str) -> None:
    """Without the garbage collector, which a replica seldom runs."""

    def meddle(array: Array) -> None:
        if fate == "failed":
            raise ValueError("never")

    gc.disable()
    try:
        async with bench(FakeModel(meddle), hand_over=hand_over) as b:
            b.latency.observe(2, 1e-6)
            b.model.hold() if hand_over else None
            futures = []
            alive = []
            for value in (1.0, 2.0):
                slot, future = b.submit(value)
                assert slot.work is not None
                alive.append(weakref.ref(slot.work.inputs[0]))
                futures.append(future)
                if fate == "cancelled" and not hand_over:
                    b.cancel(slot)
            if hand_over:
                await b.entered()
                if fate == "cancelled":
                    b.cancel(slot)
                b.model.release()
            await asyncio.wait(futures, timeout=WAIT)
            if fate == "answered":
                alive.append(weakref.ref(futures[0].result()["total"]))
            for each in futures:
                each.exception()
            del slot, future, futures, each
            await until(lambda: all(ref() is None for ref in alive))
    finally:
        gc.enable()


async def test_who_is_being_run_is_on_record() -> None:
    async with bench() as b:
        b.model.hold()
        slots = [b.submit(float(i))[0] for i in range(3)]
        await b.entered()
        assert b.notes.running == [slots]
        assert b.notes.ends == 0
        b.model.release()


async def test_the_engine_ends_while_the_model_hangs() -> None:
    model = FakeModel()
    async with bench(model) as b:
        model.hold()
        _, future = b.submit(1.0, within=1000.0)
        await b.entered()
    assert not future.done()
    model.release()


REQUESTS = st.lists(
    st.tuples(
        st.integers(0, 5),  # rows
        st.integers(1, 3),  # width
        st.sampled_from([(), ("total",), ("twice",), ("twice", "total")]),
        st.sampled_from(["keep", "keep", "keep", "cancel", "poison"]),
        st.booleans(),  # let the loop turn after it
    ),
    min_size=1,
    max_size=40,
)


@settings(max_examples=60, deadline=None)
@given(REQUESTS, st.booleans(), st.integers(1, 9), st.randoms(use_true_random=False))
async def test_every_request_gets_its_own_answer(
    requests: list[tuple[int, int, tuple[str, ...], str, bool]],
    hand_over: bool,
    largest: int,
    chance: random.Random,
) -> None:
    def meddle(array: Array) -> None:
        if (array < 0).any():
            raise ValueError("poison")

    async with bench(FakeModel(meddle), hand_over=hand_over, max_batch_size=largest) as b:
        sent = []
        for number, (rows, width, outputs, fate, turn) in enumerate(requests):
            value = -1.0 if fate == "poison" else float(number)
            slot, future = b.submit(value, rows, width, outputs=outputs)
            sent.append((slot, future))
            if turn:
                await asyncio.sleep(0)
            if fate == "cancel":
                b.cancel(slot if chance.random() < 0.5 else sent[number][0])
        outcomes = await asyncio.wait_for(
            asyncio.gather(*(future for _, future in sent), return_exceptions=True), WAIT
        )
        for number, outcome in enumerate(outcomes):
            rows, width, outputs, fate, _ = requests[number]
            if isinstance(outcome, BaseException):
                expected = {"cancel": Cancelled, "poison": InferenceFailed}
                assert fate in expected
                assert isinstance(outcome, expected[fate])
                continue
            assert fate != "poison" or rows == 0
            assert tuple(outcome) == (outputs or ("total", "twice"))
            for name, array in outcome.items():
                value = number + 0.5 if name == "total" else number * 2.0
                assert array.shape == (rows, width)
                np.testing.assert_array_equal(array, value)
        assert b.engine.depth == 0
        assert all(len(run) <= max(largest, 5) for run in b.model.runs)


async def test_a_fault_of_the_server_is_an_answer_and_logged_once_a_second(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench() as b:
        with monkeypatch.context() as patch:
            patch.setattr(b.notes, "started", lambda slots: 1 / 0)
            for _ in range(3):
                with pytest.raises(InferenceFailed, match="ZeroDivisionError"):
                    await value_of(b.submit(1.0)[1])
        # The thread that runs the model has survived.
        assert await value_of(b.submit(2.0)[1]) == 2.0
    logged = [r.getMessage() for r in caplog.records if "Traceback" in r.getMessage()]
    assert len(logged) in (1, 2)  # two when the machine slept in between
    assert "1 / 0" in logged[0]
