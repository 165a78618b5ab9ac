"""The engine: queue, batcher and the threads that run the model."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from tidegate.clock import Clock
from tidegate.errors import DeadlineExceeded, InferenceFailed, InsufficientMemory
from tidegate.replica.batch import BatchRunner, Ran
from tidegate.replica.binding import Bound
from tidegate.replica.counting import Counters
from tidegate.scheduling.batcher import Batcher
from tidegate.scheduling.latency import LatencyModel
from tidegate.scheduling.slot import Slot, State
from tidegate.types import Array

log = logging.getLogger(__name__)

_QUICK = 200e-6
"""Seconds; handing a batch to another thread and back takes about 20 µs of CPU."""

_BETWEEN_TRACEBACKS = 1.0
"""Seconds; a caller that sends what fails, again and again, must not fill the disk."""

_RESOLVED = State.RESOLVED

Answer = dict[str, Array]
RequestSlot = Slot[Bound, Answer]


class Recorder(Protocol):
    """Notes which requests are being run, so that a crash can be explained."""

    def started(self, slots: Sequence[RequestSlot]) -> None:
        """These requests are about to run."""

    def ended(self) -> None:
        """What was running has ended."""


class Engine:
    """Runs slots on one model: the async shell of a :class:`Batcher`.

    All methods are called in the event loop's thread. The model runs in a thread of its own,
    one batch at a time. A batch that is sure to be quick is run in the loop's thread: handing
    it over and back would take longer than running it. ``always_hand_over`` forbids that,
    where the loop must stay awake to say in time that a model hangs. ``delivered`` is called
    when all requests of a batch have their outcomes, so that these can be sent together. ``about``
    says for the log which request a slot is.
    """

    def __init__(
        self,
        runner: BatchRunner,
        batcher: Batcher[Bound, Answer],
        latency: LatencyModel,
        clock: Clock,
        recorder: Recorder,
        *,
        delivered: Callable[[], None] = lambda: None,
        always_hand_over: bool = False,
        about: Callable[[RequestSlot], Mapping[str, object]] = lambda slot: {},
    ) -> None:
        self._runner = runner
        self._batcher = batcher
        self._latency = latency
        self._clock = clock
        self.counters = Counters(clock)
        """What the replica counts."""
        self.observe: Callable[[Sequence[RequestSlot], Ran, float, float], None] | None = None
        """Called with each batch, and the times when its answers were begun and finished."""
        self._recorder = recorder
        self._about = about
        self._delivered = delivered
        self._quick = 0.0 if always_hand_over else _QUICK
        self._work: queue.SimpleQueue[list[RequestSlot] | None] = queue.SimpleQueue()
        self._idle = 1
        self._running = 0
        self._due: asyncio.TimerHandle | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self._expiry_at = float("inf")
        self._pumping = False
        self._traced_at = float("-inf")

    async def __aenter__(self) -> Engine:
        """Start the executor thread."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._execute, name="executor", daemon=True)
        self._thread.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Let the running batch end, and the thread with it."""
        for timer in (self._due, self._expiry):
            if timer is not None:
                timer.cancel()
        self._work.put(None)

    @property
    def depth(self) -> int:
        """Requests that wait."""
        return self._batcher.depth

    @property
    def busy(self) -> bool:
        """Whether the model runs a batch in the executor thread."""
        return not self._idle

    def watch(self, slot: RequestSlot) -> None:
        """Fail a slot that is not queued yet when its deadline passes."""
        self._batcher.watch(slot)
        if slot.deadline < self._expiry_at:
            self._watch_deadlines()

    def submit(self, slot: RequestSlot, now: float | None = None) -> None:
        """Queue a slot that arrives ``now`` (``None``: when it says); its callback tells the rest.

        Raises:
            QueueFull: too much work waits.
            DeadlineExceeded: its deadline cannot be met.
        """
        self._batcher.add(slot, slot.arrived if now is None else now)
        if slot.deadline < self._expiry_at:
            self._watch_deadlines()
        if self._idle and not self._pumping:
            # One turn of the loop later: what arrived together runs together.
            self._pump_soon()

    def discard(self, slot: RequestSlot) -> None:
        """Forget a slot that was finished while it waited."""
        self._batcher.discard(slot)

    def _pump_soon(self) -> None:
        self._pumping = True
        self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._pumping = False
        if self._due is not None:
            self._due.cancel()
            self._due = None
        while self._idle:
            now = self._clock.now()
            if now >= self._expiry_at:
                # Its timer comes too late when the loop was busy: nothing is run in vain.
                self._expire()
            batch = self._batcher.take(now)
            if not batch:
                due = self._batcher.next_due()
                if due is not None:
                    self._due = self._loop.call_later(max(0.0, due - now), self._pump)
                return
            if self._latency.at_most(sum(slot.rows for slot in batch)) < self._quick:
                self._deliver(*self._run(batch))
                # Not at once: what the loop reads now may run with those that are left.
                if self._batcher.depth and not self._pumping:
                    self._pump_soon()
                return
            self._idle -= 1
            self._work.put(batch)

    def _watch_deadlines(self) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        at = self._batcher.next_deadline()
        self._expiry_at = float("inf") if at is None else at
        if at is not None:
            self._expiry = self._loop.call_later(max(0.0, at - self._clock.now()), self._expire)

    def _expire(self) -> None:
        now = self._clock.now()
        for slot in self._batcher.expired(now):
            waited = now - slot.arrived
            slot.fail(DeadlineExceeded(f"no answer within the deadline, {waited:.3f} s"))
        self._watch_deadlines()

    def _execute(self) -> None:
        """The executor thread: run what comes until ``None`` comes."""
        try:
            self._runner.attach()
        except InsufficientMemory as error:
            log.warning("the thread that runs the model: %s", error)
        while (batch := self._work.get()) is not None:
            slots, ran = self._run(batch)
            try:
                self._loop.call_soon_threadsafe(self._finished, slots, ran)
            except RuntimeError:
                return  # the loop was closed: nobody waits

    def _run(self, batch: list[RequestSlot]) -> tuple[list[RequestSlot], Ran]:
        """Run those of ``batch`` that somebody still waits for."""
        slots, bound = [], []
        for slot in batch:
            # A slot loses its work when it is finished, at any moment, by the loop's thread.
            work = slot.work
            if work is not None:
                slots.append(slot)
                bound.append(work)
        if not slots:
            return [], Ran([], [])
        try:
            self._recorder.started(slots)
            ran = self._runner.run(bound)
            self._recorder.ended()
        except Exception as error:
            # Never expected, but without a thread every request would wait for ever.
            failed = InferenceFailed(f"internal error: {type(error).__name__}: {error}")
            failed.__cause__ = error
            ran = Ran([failed] * len(slots), [])
        return slots, ran

    def _finished(self, slots: list[RequestSlot], ran: Ran) -> None:
        self._idle += 1
        # The next batch first: the model runs while these answers are encoded.
        if not self._pumping:
            self._pump()
        self._deliver(slots, ran)

    def _deliver(self, slots: list[RequestSlot], ran: Ran) -> None:
        delivering = self._clock.now()
        for run in ran.runs:
            self._latency.observe(run.rows, run.seconds)
        if ran.clamp is not None:
            log.warning("a batch ran out of memory: none of more than %d rows", ran.clamp)
            self._batcher.clamp(ran.clamp)
        for slot, outcome in zip(slots, ran.outcomes):
            if isinstance(outcome, BaseException):
                if isinstance(outcome, InferenceFailed):
                    self.log_failure(outcome, slot)
                slot.fail(outcome)
            else:
                slot.resolve(outcome)
        # An error holds the frames that it came through, and these hold it and all tensors.
        ran.outcomes.clear()
        ended = self._clock.now()
        self._delivered()
        # When the answers are on their way.
        arrivals = [slot.arrived for slot in slots if slot.state is _RESOLVED]
        self.counters.delivered(ran.runs, arrivals, ran.began, ended, ended - delivering)
        if self.observe is not None:
            self.observe(slots, ran, delivering, ended)

    def log_failure(self, error: InferenceFailed, slot: RequestSlot) -> None:
        """Write the traceback of a request that failed into the log, now and then."""
        now = self._clock.now()
        if now - self._traced_at >= _BETWEEN_TRACEBACKS:
            self._traced_at = now
            # As text: a record with the error would hold the frames and all tensors in them.
            text = "".join(traceback.format_exception(error)).rstrip()
            log.error("a request failed: %s", text, extra=self._about(slot))
