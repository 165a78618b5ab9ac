"""The request path of a model with hooks: preprocess, bind, run, postprocess.

A request is one slot from beginning to end: its deadline, its cancellation and its one outcome
are those of any other. While a hook runs in a thread, the slot is pending and belongs to nobody's
queue; what the thread brings is of no interest when the slot was finished meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, cast

from tidegate.errors import DeadlineExceeded, InferenceFailed, QueueFull, TidegateError
from tidegate.protocols.load_reports import ASK_HEADER
from tidegate.protocols.open_inference.schedule_policy import schedule
from tidegate.replica.batch import Ran
from tidegate.replica.binding import Bound
from tidegate.replica.dialects import Spoken
from tidegate.replica.engine import Answer, Engine, RequestSlot
from tidegate.replica.exchange import Exchange
from tidegate.replica.flight import SharedRecorder, short
from tidegate.replica.hook_threads import HookThreads
from tidegate.replica.hooks import Hooks, Prepared
from tidegate.replica.inference import InferenceSlot, about
from tidegate.replica.service import Served, Service
from tidegate.scheduling.slot import Slot, State
from tidegate.telemetry.statistics import ReplicaStats
from tidegate.types import InferRequest, InferResponse

log = logging.getLogger(__name__)

_NOT_THE_CALLERS = (
    b":", b"grpc-", b"x-envoy-", b"transfer-encoding", b"connection", ASK_HEADER.encode(),
)  # fmt: skip
_BETWEEN_WARNINGS = 10.0
"""Seconds."""


@dataclass(slots=True)
class HookTimes:
    """What a request went through, in seconds; see :meth:`Counters.hooked`."""

    waited: float = 0.0
    """For a thread, in the queue, and for a thread again."""
    before: float = 0.0
    after: float = 0.0


class HookedSlot(InferenceSlot):
    """A request of a model with hooks. What the model gave is not its outcome yet."""

    __slots__ = ("alone", "given", "prepared", "ran", "since", "times", "working")

    service: HookedService
    alone: bool
    """It was being run when another replica died: nothing may run beside it."""
    prepared: Prepared | None
    given: Answer | None
    """What the model gave."""
    ran: Ran | None
    since: float
    """When it began to wait for what comes next."""
    working: float | None
    """When the hook that runs was called."""
    times: HookTimes

    def resolve(self, result: Answer) -> bool:
        """Take what the model gave; return whether anybody waits for it."""
        if self.state is not State.PENDING:
            return False
        self.work = None
        self.given = result
        return True

    def conclude(self, response: InferResponse) -> None:
        """Give the answer."""
        Slot.resolve(self, cast("Answer", response))

    def answer(self) -> None:
        """There is an outcome."""
        self.service.concluded(self)
        self.prepared = self.given = None
        super().answer()


_Found: TypeAlias = "Prepared | InferResponse | BaseException"


@dataclass(frozen=True, slots=True)
class Around:
    """What surrounds the model."""

    hooks: Hooks
    threads: HookThreads
    recorder: SharedRecorder
    max_queue_size: int
    """Requests that may wait for a thread, and in the queue behind it, together."""
    max_queue_bytes: int
    """Bytes of requests that may wait for a thread."""


class HookedService(Service):
    """Answers the calls of one version of a model with hooks."""

    def __init__(self, served: Served, engine: Engine, around: Around, *more: Any, **named: Any):
        super().__init__(served, engine, *more, **named)
        self._hooks = around.hooks
        self._view = replace(self._view, takes_payload=around.hooks.before)
        self._threads = around.threads
        self._recorder = around.recorder
        self._limits = around
        self._warned = float("-inf")
        self._suspects: deque[HookedSlot] = deque()
        """Those that were running when another replica died: they run one by one, in hooks and in
        the model, so that the innocent are not found beside the dead again."""
        engine.observe = self._model_has_run

    def stats(self) -> ReplicaStats:
        """Return what was counted, and how things stand now."""
        depth = self._engine.depth + self._threads.depth
        return ReplicaStats(counted=self.counters.snapshot(), queue_depth=depth)

    def discard(self, slot: RequestSlot) -> None:
        """Forget a slot that was cancelled."""
        self._threads.forget(slot)
        super().discard(slot)

    def response(self, request: InferRequest, result: Answer) -> InferResponse:
        """Return the response to ``request``, which the hooks have made."""
        response = cast("InferResponse", result)
        response.model, response.version = self._name, self._version
        return response

    def concluded(self, slot: HookedSlot) -> None:
        """Let go of what may still wait or run for a slot that has its outcome."""
        self._threads.forget(slot)
        if slot.alone:
            self._next_suspect(slot)
        if slot.working is None or not isinstance(slot.error, DeadlineExceeded):
            return
        now = self._clock.now()
        if now - self._warned >= _BETWEEN_WARNINGS:
            self._warned = now
            log.warning(
                "a hook runs on after its request's deadline, since %.1f s; %d of %d threads are "
                "busy", now - slot.working, self._threads.busy, self._threads.count,
                extra=about(slot.exchange),
            )  # fmt: skip

    def _run(
        self, exchange: Exchange, request: InferRequest, spoken: Spoken | None = None
    ) -> None:
        if self.regions is not None and request.outputs:
            self.regions.check_all(request.outputs)
        request.metadata = _headers(exchange)
        priority, timeout = schedule(request.parameters)
        now = self._clock.now()
        head = exchange.head
        slot = HookedSlot(
            cast("Bound", None),
            HookedSlot.answer,
            now,
            size=len(exchange.body),
            priority=priority,
            deadline=self._deadline(head.timeout, timeout, now),
            tag=self._tag(exchange, request),
        )
        slot.exchange, slot.request, slot.service, slot.spoken = exchange, request, self, spoken
        slot.alone = head.retried and self.quarantine.deadly(exchange)
        slot.prepared = slot.given = slot.ran = slot.working = None
        slot.times = HookTimes()
        slot.since = now
        if self.tracer is not None:
            slot.trace = self.tracer.begin(exchange, self._began)
            if slot.trace is not None:
                slot.trace.queued = now
        self._admit(slot)
        if slot.alone:
            self._suspects.append(slot)
            self._engine.watch(slot)
        if not slot.alone or slot is self._suspects[0]:
            self._begin(slot, now)
        exchange.on_gone = slot.abandon

    def _begin(self, slot: HookedSlot, now: float) -> None:
        request = slot.request
        if self._hooks.before:
            self._engine.watch(slot)
            self._in_thread(slot, lambda: self._hooks.prepare(request), begun=False)
            return
        try:
            self._queue(slot, self._hooks.prepare(request), now)
        except TidegateError as error:
            slot.fail(error)

    def _next_suspect(self, slot: HookedSlot) -> None:
        """Begin the next of the requests that must not run beside each other."""
        first = self._suspects[0] is slot
        self._suspects.remove(slot)
        if first and self._suspects:
            found = self._suspects[0]
            # Not now: the slot that is done is still being answered.
            asyncio.get_running_loop().call_soon(self._begin_pending, found)

    def _begin_pending(self, slot: HookedSlot) -> None:
        if slot.pending and slot is self._suspects[0]:
            self._begin(slot, self._clock.now())

    def _tag(self, exchange: Exchange, request: InferRequest) -> bytes | None:
        retried = exchange.head.retried
        if retried or self.quarantine.refused or exchange.request_id is None:
            return self.quarantine.entry(exchange, request, retried)
        return short(exchange.request_id)

    def _admit(self, slot: HookedSlot) -> None:
        waiting = self._threads.depth + self._engine.depth
        if waiting >= self._limits.max_queue_size:
            raise QueueFull(
                f"{waiting} requests are waiting, which is the limit "
                "(batching.max_queue_size): try again later"
            )
        size = self._threads.size
        if size and size + slot.size > self._limits.max_queue_bytes:
            raise QueueFull(
                f"{size} bytes of requests are waiting for hooks, this one of {slot.size} would "
                f"exceed the limit of {self._limits.max_queue_bytes}: try again later"
            )
        if slot.deadline <= slot.arrived:
            raise DeadlineExceeded("the deadline had passed before the request could be queued")

    def _in_thread(self, slot: HookedSlot, hook: Callable[[], Any], *, begun: bool) -> None:
        """Let a thread call ``hook``, and go on with what comes of it."""
        loop = asyncio.get_running_loop()

        def task() -> None:
            if not slot.pending:
                return
            began = slot.working = self._clock.now()
            self._recorder.entered(slot.tag)
            found: _Found
            try:
                found = hook()
            except BaseException as error:
                found = error
            finally:
                self._recorder.left(slot.tag)
            slot.working = None
            ended = self._clock.now()
            # It raises when the loop was closed: then nobody waits.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._hook_has_run, slot, found, began, ended)

        self._threads.put(slot, task, begun=begun)

    def _hook_has_run(self, slot: HookedSlot, found: _Found, began: float, ended: float) -> None:
        if not slot.pending:
            return
        slot.times.waited += began - slot.since
        if isinstance(found, Prepared):
            slot.times.before = ended - began
            try:
                self._queue(slot, found, ended)
            except TidegateError as error:
                slot.fail(error)
        elif isinstance(found, InferResponse):
            slot.times.after = ended - began
            self._conclude(slot, found)
        else:
            self._fail(slot, found)

    def _queue(self, slot: HookedSlot, prepared: Prepared, now: float) -> None:
        """Let the model run for a request that was preprocessed."""
        bound = prepared.bound
        slot.prepared = prepared
        slot.work = bound
        slot.rows = bound.rows
        slot.size = max(bound.size, slot.size)
        slot.group = object() if slot.alone else bound.group
        slot.since = now
        self._engine.submit(slot, now)

    def _model_has_run(
        self, slots: Sequence[RequestSlot], ran: Ran, delivering: float, ended: float
    ) -> None:
        for slot in slots:
            if isinstance(slot, HookedSlot) and slot.pending and slot.given is not None:
                slot.times.waited += ran.began - slot.since
                slot.since = delivering
                slot.ran = ran
                self._finish(slot, slot.request, slot.prepared, slot.given)

    def _finish(
        self, slot: HookedSlot, request: InferRequest, prepared: Prepared | None, given: Answer
    ) -> None:
        assert prepared is not None
        hooks = self._hooks
        if hooks.after:
            self._in_thread(slot, lambda: hooks.finish(request, prepared, given), begun=True)
            return
        try:
            response = hooks.finish(request, prepared, given)
        except Exception as error:
            self._fail(slot, error)
        else:
            self._conclude(slot, response)

    def _conclude(self, slot: HookedSlot, response: InferResponse) -> None:
        began = self._clock.now()
        trace, ran, times = getattr(slot, "trace", None), slot.ran, slot.times
        slot.conclude(response)
        ended = self._clock.now()
        self.counters.hooked(
            ended - slot.arrived, times.waited, times.before, times.after + ended - began
        )
        if self.tracer is not None and trace is not None and slot.trace is not None:
            assert ran is not None
            self.tracer.succeeded(trace, ran, began, ended, times)
            slot.trace = None

    def _fail(self, slot: HookedSlot, error: BaseException) -> None:
        if not isinstance(error, TidegateError):
            failed = InferenceFailed(f"internal error: {type(error).__name__}: {error}")
            failed.__cause__ = error
            error = failed
        if isinstance(error, InferenceFailed):
            self._engine.log_failure(error, slot)
        slot.fail(error)


def _headers(exchange: Exchange) -> dict[str, str]:
    """Return the caller's headers: what HTTP, gRPC and the edge say by them is left out."""
    return {
        name.decode("latin-1"): value.decode("latin-1")
        for name, value in exchange.headers.items()
        if not name.startswith(_NOT_THE_CALLERS)
    }
