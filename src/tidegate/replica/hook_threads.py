"""The threads that preprocess and postprocess, and the requests that wait for one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tidegate.replica.spec import THREAD_STACK
from tidegate.scheduling.batcher import PATIENCE, BatcherLimits
from tidegate.scheduling.pending import PendingHeap
from tidegate.scheduling.slot import NO_DEADLINE, Slot

_Task = Callable[[], None]


class HookThreads:
    """Runs tasks of slots: the most urgent first, and what was begun before what is new.

    A slot waits for a thread once at a time. That it was finished while it waited is noted when
    its turn comes; :meth:`forget` says so at once. A task that never ends keeps its thread; the
    others go on.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._changed = threading.Condition()
        self._new: PendingHeap[Any, Any] = PendingHeap()
        self._begun: PendingHeap[Any, Any] = PendingHeap()
        self._tasks: dict[Slot[Any, Any], _Task] = {}
        self._size = 0
        self._stopped = False
        self.busy = 0
        """Threads that run a task."""

    def behind(self, limits: BatcherLimits) -> BatcherLimits:
        """Return the limits of a queue behind the threads, where what was admitted has room."""
        return replace(limits, max_queue_size=limits.max_queue_size + self.count)

    def start(self) -> None:
        """Start the threads; they do not keep the process from ending."""
        usual = threading.stack_size(THREAD_STACK)
        try:
            for number in range(self.count):
                threading.Thread(target=self._work, name=f"hooks-{number}", daemon=True).start()
        finally:
            threading.stack_size(usual)

    def stop(self) -> None:
        """Let the threads end as soon as they have nothing to do."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    @property
    def depth(self) -> int:
        """Requests that wait."""
        return len(self._tasks)

    @property
    def size(self) -> int:
        """Bytes of them."""
        return self._size

    def put(self, slot: Slot[Any, Any], task: _Task, *, begun: bool) -> None:
        """Queue a task of a pending slot; ``begun``: the model has run for it already."""
        turn = slot.arrived + PATIENCE if slot.deadline == NO_DEADLINE else slot.deadline
        with self._changed:
            self._tasks[slot] = task
            self._size += slot.size
            (self._begun if begun else self._new).push(slot, slot.priority, turn)
            self._changed.notify()

    def forget(self, slot: Slot[Any, Any]) -> None:
        """Drop the task of a slot that was finished; nothing happens when none waits."""
        with self._changed:
            self._taken(slot)

    def _taken(self, slot: Slot[Any, Any]) -> _Task | None:
        task = self._tasks.pop(slot, None)
        if task is not None:
            self._size -= slot.size
        return task

    def _next(self) -> _Task | None:
        for heap in (self._begun, self._new):
            while heap.peek() is not None:
                task = self._taken(heap.pop())
                if task is not None:
                    return task
        return None

    def _work(self) -> None:
        while True:
            with self._changed:
                while (task := self._next()) is None:
                    if self._stopped:
                        return
                    self._changed.wait()
                self.busy += 1
            try:
                task()
            finally:
                # What it holds must not wait for the next one.
                del task
                with self._changed:
                    self.busy -= 1
