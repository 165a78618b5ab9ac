"""How busy a replica is, for the gateways that ask: measured from what it counts anyway."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from tidegate.clock import Clock
from tidegate.protocols.load_reports import encode_report
from tidegate.replica.counting import Counters

WINDOW = 0.25
"""Seconds over which is measured, at least; as often as Envoy's own reports come."""
_SCHEDULED = Path("/proc/thread-self/schedstat")


class LoadMeter:
    """Says how busy a replica was lately: 1 is fully, more says that requests wait.

    The busiest of three counts: the thread that runs the model, the event loop that reads and
    writes, and the threads of hooks on average. To it comes what waits, in largest batches:
    with one whole batch waiting all the time it is one more. The mean number of
    requests that wait is their waiting time by elapsed time (Little's law).

    It is measured when somebody asks, at most once in :data:`WINDOW`.
    """

    def __init__(
        self,
        counters: Counters,
        clock: Clock,
        batch: int,
        threads: int = 0,
        occupied: Callable[[], float] | None = None,
    ) -> None:
        """Measure ``counters``; all calls come from the event loop's thread.

        Args:
            counters: What the replica counts.
            clock: Injected time.
            batch: How many requests a run of the model takes at most.
            threads: How many threads call hooks.
            occupied: Returns the seconds for which the calling thread was busy so far.
        """
        self._counters = counters
        self._clock = clock
        self._batch = batch
        self._threads = threads
        self._occupied = occupied or occupied_seconds
        self._at = clock.now()
        self._due = self._at
        self._last = self._counted()
        self._report = encode_report(0.0)

    def report(self) -> bytes:
        """Return what the header of an answer says."""
        now = self._clock.now()
        if now >= self._due:
            self._report = encode_report(self._measure(now))
            self._due = now + WINDOW
        return self._report

    def _measure(self, now: float) -> float:
        counted, elapsed = self._counted(), now - self._at
        if elapsed <= 0:
            return 0.0
        running, hooking, waiting, loop = (
            (after - before) / elapsed for after, before in zip(counted, self._last)
        )
        self._last, self._at = counted, now
        busy = max(running, loop, hooking / self._threads if self._threads else 0.0)
        # What is counted at its end may have begun before the window.
        return min(busy, 1.0) + waiting / self._batch

    def _counted(self) -> tuple[float, float, float, float]:
        counters = self._counters
        return counters.running, counters.hooking, counters.waiting, self._occupied()


def occupied_seconds() -> float:
    """Return for how long the calling thread has computed, or waited for a core to do so."""
    computed = time.thread_time()
    try:
        # Nanoseconds on a core, and in the queue for one (Linux, sched-stats.rst).
        return computed + int(_SCHEDULED.read_bytes().split()[1]) * 1e-9
    except (OSError, IndexError, ValueError):
        return computed
