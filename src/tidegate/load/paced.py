"""The open loop: calls are sent when they are due, and their latency counts from then."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from array import array
from collections import deque
from collections.abc import Callable

import numpy as np

from tidegate.load.arrivals import Schedule, Times
from tidegate.load.driver import Call, Check, Connect, Driver, Lane, Result, now

NOT_SENT = "NOT_SENT"


class PacedDriver(Driver):
    """A :class:`Driver` whose calls are due at planned times.

    A call that finds no caller free waits for one, and that wait is part of its latency. So is
    the wait for a connection. Calls due in the first ``warm_up`` seconds are made, but do not
    count. Those that are still waiting ``seconds`` after the warm-up are not sent any more:
    they count as ``NOT_SENT``, with the time for which they were due as their latency.
    """

    def __init__(
        self, times: Times, messages: int, check: Check | None, warm_up: float = 0.0
    ) -> None:
        super().__init__(None, messages, check, warm_up)
        self._schedule = Schedule(times)
        self._parked: deque[Call] = deque()
        self._late = array("d")
        self._zero = self._counts_from = 0.0
        self._asked = False

    def issue(self, call: Call, at: float) -> bool:
        """Make ``call`` the next one that is due; keep it for later when none is."""
        if call.issued:
            return True
        if self.left <= 0:
            self._retire()
            return False
        due = self._schedule.take(at - self._zero)
        if due is None:
            self._parked.append(call)
            # While all callers are busy nobody needs to be woken: who becomes free looks.
            self._ask()
            return False
        super().issue(call, self._zero + due)
        if call.started >= self._counts_from:
            self._late.append(at - call.started)
        return True

    def succeed(
        self, call: Call, code: str, at: float, body: bytes | bytearray, skip: int = 0
    ) -> None:
        """Count a success, unless it was due during the warm-up."""
        if call.started >= self._counts_from:
            super().succeed(call, code, at, body, skip)
        else:
            call.issued = False

    def fail(self, call: Call, code: str, message: str) -> None:
        """Count a failure, unless it was due during the warm-up."""
        if call.started >= self._counts_from:
            super().fail(call, code, message)
        else:
            call.issued = False

    def stop(self) -> None:
        """Send no more calls; what is due and was not sent is counted as that."""
        at = now()
        self._tick()  # whoever is free sends what is due
        for due in self._schedule.take_rest():
            waited = at - (self._zero + due)
            if waited > 0 and self._zero + due >= self._counts_from:
                self._codes[NOT_SENT] += 1
                self.latencies.append(waited)
        super().stop()
        while self._parked:
            self.issue(self._parked.popleft(), at)

    async def run(
        self,
        connect: Connect,
        connections: int,
        in_flight: int,
        seconds: float | None,
        until: asyncio.Event | None,
        timeout: float | None,
    ) -> Result:
        """Run the load to its end; ``seconds`` come after the warm-up."""
        metronome = Metronome(self._tick)
        with metronome:
            self._metronome = metronome
            result = await super().run(connect, connections, in_flight, seconds, until, timeout)
        result.late_ms = np.frombuffer(self._late, np.float64) * 1e3
        return result

    def _start(self, seconds: float | None) -> list[asyncio.TimerHandle]:
        self._zero = now()
        self._began = self._counts_from = self._zero + self._warm_up
        if seconds is None:
            return []
        end = self._warm_up + seconds
        return [asyncio.get_running_loop().call_later(end, self.stop)]

    def _ask(self) -> None:
        """Have :meth:`_tick` called when the next call is due."""
        due = self._schedule.next_due
        if due is not None and not self._asked:
            self._asked = True
            self._metronome.wake_at(self._zero + due)

    def _tick(self) -> None:
        """Let free callers send what is due."""
        self._asked = False
        # By lanes: what goes out on one connection is written at once.
        chosen: dict[Lane, list[Call]] = {}
        for _ in range(min(len(self._parked), self._schedule.count_due(now() - self._zero))):
            call = self._parked.popleft()
            chosen.setdefault(call.lane, []).append(call)
        for lane, calls in chosen.items():
            lane.give(calls)
        if self._parked:
            self._ask()


class Metronome:
    """Calls back in the event loop at given times: a loop's own timers are 1 ms coarse.

    A thread sleeps, as exactly as the system lets it, and wakes the loop.
    """

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call
        self._times: queue.SimpleQueue[float | None] = queue.SimpleQueue()

    def __enter__(self) -> Metronome:
        """Start the thread."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._sleep, name="metronome", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        """End the thread; it may sleep for a while yet, but calls nobody."""
        self._times.put(None)

    def wake_at(self, at: float) -> None:
        """Call back at ``at``, a time of the monotonic clock; once."""
        self._times.put(at)

    def _sleep(self) -> None:
        while (at := self._times.get()) is not None:
            delay = at - now()
            if delay > 0:
                time.sleep(delay)
            try:
                self._loop.call_soon_threadsafe(self._call)
            except RuntimeError:
                return  # the loop was closed
