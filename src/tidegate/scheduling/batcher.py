"""The batcher: a bounded queue that knows which requests may run together, and when.

It is work-conserving: whoever is idle takes what is queued, up to the largest batch.
Waiting for more is only done when ``max_queue_delay`` asks for it. Within a priority the
earliest deadline goes first; the most urgent request leads the next batch, and others of
its group fill it. A request without a deadline takes its turn as if it had :data:`PATIENCE`
seconds, or a steady stream of requests with deadlines would keep it waiting for ever.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic

from tidegate.errors import DeadlineExceeded, QueueFull
from tidegate.scheduling.latency import LatencyModel
from tidegate.scheduling.pending import PendingHeap
from tidegate.scheduling.slot import NO_DEADLINE, Result, Slot, Work

PATIENCE = 30.0
"""Seconds that put a request without a deadline in order among those that have one."""


@dataclass(frozen=True, slots=True)
class BatcherLimits:
    """Bounds of a :class:`Batcher`; sizes in rows, requests and bytes, the delay in seconds."""

    max_batch_size: int = 32
    max_queue_size: int = 1024
    max_queue_bytes: int = 2**30
    max_queue_delay: float = 0.0


class _Group(Generic[Work, Result]):
    """The queued requests that may share a batch."""

    __slots__ = ("hold_until", "queue", "rows")

    def __init__(self, hold_until: float) -> None:
        self.queue: PendingHeap[Work, Result] = PendingHeap()
        self.rows = 0
        self.hold_until = hold_until


class Batcher(Generic[Work, Result]):
    """A synchronous state machine: the caller passes the time in and does the running.

    Every slot that :meth:`add` took comes back from :meth:`take`, unless it is finished
    before: then the caller says so by :meth:`discard`.
    """

    def __init__(self, limits: BatcherLimits, latency: LatencyModel) -> None:
        self._limits = limits
        self._latency = latency
        self._groups: dict[Hashable, _Group[Work, Result]] = {}
        self._deadlines: PendingHeap[Work, Result] = PendingHeap()
        self._bytes = 0
        self._depth = 0
        self._max_batch_size = limits.max_batch_size

    @property
    def depth(self) -> int:
        """Requests that wait."""
        return self._depth

    @property
    def max_batch_size(self) -> int:
        """The most rows in a batch at present."""
        return self._max_batch_size

    def clamp(self, rows: int) -> None:
        """Make no batch of more than ``rows`` rows from now on: a larger one ran out of memory."""
        self._max_batch_size = max(1, min(self._max_batch_size, rows))

    def add(self, slot: Slot[Work, Result], now: float) -> None:
        """Queue a pending slot.

        Raises:
            QueueFull: as many requests, or bytes of them, wait as may.
            DeadlineExceeded: the deadline has passed, or passes before the model could answer.
        """
        limits = self._limits
        if self._depth >= limits.max_queue_size:
            raise QueueFull(
                f"{self._depth} requests are waiting, which is the limit "
                "(batching.max_queue_size): try again later"
            )
        if self._depth and self._bytes + slot.size > limits.max_queue_bytes:
            raise QueueFull(
                f"{self._bytes} bytes of requests are waiting, this one of {slot.size} would "
                f"exceed the limit of {limits.max_queue_bytes}: try again later"
            )
        turn = slot.deadline
        if turn == NO_DEADLINE:
            turn = now + PATIENCE
        else:
            self._check_deadline(slot, now)
            self._deadlines.push(slot, 0, turn)
        group = self._groups.get(slot.group)
        if group is None:
            group = self._groups[slot.group] = _Group(now + limits.max_queue_delay)
        group.queue.push(slot, slot.priority, turn)
        group.rows += slot.rows
        slot.queued = True
        self._depth += 1
        self._bytes += slot.size

    def watch(self, slot: Slot[Work, Result]) -> None:
        """Have a pending slot expire at its deadline, though it does not wait here yet."""
        if slot.deadline != NO_DEADLINE:
            self._deadlines.push(slot, 0, slot.deadline)

    def _check_deadline(self, slot: Slot[Work, Result], now: float) -> None:
        left = slot.deadline - now
        if left <= 0:
            raise DeadlineExceeded("the deadline had passed before the request could be queued")
        needed = self._latency.estimate(slot.rows)
        if left < needed:
            self._latency.doubt(slot.rows)
            raise DeadlineExceeded(
                f"{left * 1e3:.1f} ms are left, but the model takes about "
                f"{needed * 1e3:.1f} ms: allow more time"
            )

    def discard(self, slot: Slot[Work, Result]) -> None:
        """Forget a slot that was finished; nothing happens when it no longer waits here."""
        if slot.queued:
            self._leave(slot)

    def _leave(self, slot: Slot[Work, Result]) -> None:
        group = self._groups[slot.group]
        slot.queued = False
        group.rows -= slot.rows
        self._depth -= 1
        self._bytes -= slot.size
        if not group.rows:
            del self._groups[slot.group]

    def take(self, now: float) -> list[Slot[Work, Result]]:
        """Return the next batch for somebody who is idle; empty when there is none yet.

        The first slot is the most urgent one. A request of more rows than the largest
        batch runs alone.
        """
        group = self._most_urgent(now)
        if group is None:
            return []
        if group.rows <= self._max_batch_size:
            return self._take_all(group)
        rows = 0
        batch: list[Slot[Work, Result]] = []
        queue = group.queue
        while (slot := queue.peek()) is not None:
            if batch and rows + slot.rows > self._max_batch_size:
                break
            batch.append(queue.pop())
            rows += slot.rows
            slot.queued = False
            self._bytes -= slot.size
        self._depth -= len(batch)
        group.rows -= rows
        if not group.rows:
            del self._groups[batch[0].group]
        # Those left behind have waited once: they go with the next idle instance.
        group.hold_until = now
        return batch

    def _take_all(self, group: _Group[Work, Result]) -> list[Slot[Work, Result]]:
        batch = group.queue.drain()
        for slot in batch:
            slot.queued = False
            self._bytes -= slot.size
        self._depth -= len(batch)
        del self._groups[batch[0].group]
        return batch

    def _most_urgent(self, now: float) -> _Group[Work, Result] | None:
        best: _Group[Work, Result] | None = None
        best_key: tuple[int, float, float] | None = None
        for group in self._groups.values():
            key = group.queue.key()
            if key is None or (best_key is not None and best_key <= key):
                continue
            if group.rows >= self._max_batch_size or self._due_at(group, key[1]) <= now:
                best, best_key = group, key
        return best

    def _due_at(self, group: _Group[Work, Result], turn: float) -> float:
        return min(group.hold_until, turn - self._latency.estimate(group.rows))

    def next_due(self) -> float | None:
        """Return when :meth:`take` has something at the latest; ``None`` when nothing waits."""
        return min(
            (
                self._due_at(group, key[1])
                for group in self._groups.values()
                if (key := group.queue.key()) is not None
            ),
            default=None,
        )

    def next_deadline(self) -> float | None:
        """Return the earliest deadline of a slot that has no outcome, waiting or taken."""
        key = self._deadlines.key()
        return None if key is None else key[1]

    def expired(self, now: float) -> list[Slot[Work, Result]]:
        """Remove and return the slots without an outcome whose deadline has passed.

        The caller fails them; those that still wait are discarded here.
        """
        slots: list[Slot[Work, Result]] = []
        while (key := self._deadlines.key()) is not None and key[1] <= now:
            slot = self._deadlines.pop()
            self.discard(slot)
            slots.append(slot)
        return slots
