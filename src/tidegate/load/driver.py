"""What every load shares: its calls, its lanes and its result; here the closed loop.

In a closed loop each caller makes its next call when it has the answer to the last one. The
open loop, whose calls come when they are due, is in :mod:`tidegate.load.paced`.
"""

from __future__ import annotations

import asyncio
import sys
import time
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from tidegate.load.response_fields import Fields

Check = Callable[[bytes], bool]
now = time.monotonic

_CONNECT_TIMEOUT = 10.0
_FIRST_DELAY, _LAST_DELAY = 0.02, 0.25
_KEPT_FAILURES = 20


@dataclass(frozen=True, slots=True)
class Failure:
    """One call that did not succeed: seconds after the start, its code, the server's words."""

    offset: float
    code: str
    message: str


@dataclass(slots=True)
class Result:
    """What a load saw.

    ``codes`` counts every call by the name of its gRPC code, or by its HTTP status; besides
    those, ``WRONG`` is a success whose content the check refused and ``DISCONNECTED`` an
    HTTP/1.1 call whose connection was lost, ``NOT_SENT`` a call of an open loop that was due but
    found no caller free before the end. ``refused`` counts calls that the server said it
    never processed (GOAWAY, REFUSED_STREAM) and that were sent again, as a gRPC client does:
    they are in ``codes`` once, with their final code.
    """

    codes: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)
    """The first 20."""
    seconds: float = 0.0
    refused: int = 0
    connections: int = 0
    """Connections made, reconnections among them."""
    latencies_ms: npt.NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    """Of the successes, in the order in which they ended; and of an open loop's calls that were
    not sent, how long they had been due."""
    late_ms: npt.NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    """Of an open loop: how long after its time each call was sent."""

    @property
    def calls(self) -> int:
        """How many calls have ended."""
        return self.codes.total()

    @property
    def ok(self) -> int:
        """How many succeeded and passed the check."""
        return self.codes["OK"] + sum(n for c, n in self.codes.items() if c[:1] == "2")

    @property
    def failed(self) -> int:
        """How many did not."""
        return self.calls - self.ok

    @property
    def rate(self) -> float:
        """Successes per second."""
        return self.ok / self.seconds if self.seconds else 0.0

    def latency(self, percentile: float) -> float:
        """Return a percentile of the successes' latencies in milliseconds (nan if none)."""
        if not self.latencies_ms.size:
            return float("nan")
        return float(np.percentile(self.latencies_ms, percentile))

    def late(self, percentile: float) -> float:
        """Return a percentile of how late calls were sent, in milliseconds (nan if none)."""
        if not self.late_ms.size:
            return float("nan")
        return float(np.percentile(self.late_ms, percentile))

    def __str__(self) -> str:
        p50, p90, p99, top = (self.latency(p) for p in (50, 90, 99, 100))
        return (
            f"{self.calls} calls in {self.seconds:.2f} s, {self.rate:,.0f}/s, {dict(self.codes)}, "
            f"p50 {p50:.2f} ms, p90 {p90:.2f} ms, p99 {p99:.2f} ms, max {top:.2f} ms, "
            f"{self.refused} refused, {self.connections} connections"
        )


class Call:
    """One of a load's callers; it makes its calls one after another."""

    __slots__ = (
        "body", "head", "issued", "lane", "message", "refused", "started", "unsent", "window",
    )  # fmt: skip

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.issued = False
        """A call has been counted out and has no outcome yet."""
        self.started = 0.0
        self.message = 0
        """Which of the messages it sends."""
        self.refused = False
        """The server has already refused this call once."""
        self.head: Fields | None = None
        self.body: bytes | bytearray = b""
        self.unsent = memoryview(b"")
        self.window = 0

    def append(self, part: bytes) -> None:
        """Add to the body what came after its first part."""
        if not isinstance(self.body, bytearray):
            self.body = bytearray(self.body)
        self.body += part


class Driver:
    """The calls still to make and the outcomes so far, shared by all connections.

    What ends in the first ``warm_up`` seconds is forgotten.
    """

    def __init__(
        self, calls: int | None, messages: int, check: Check | None, warm_up: float = 0.0
    ) -> None:
        self.left = sys.maxsize if calls is None else calls
        self.check = check
        self.latencies = array("d")
        self.result = Result()
        self._codes = self.result.codes
        self._warm_up = warm_up
        self.done = asyncio.Event()
        self.lanes: list[Lane] = []
        self._messages = messages
        self._issued = 0
        self._live = 0
        self._began = now()

    def issue(self, call: Call, at: float) -> bool:
        """Make ``call`` a new call, unless it is one already; retire it when none are left."""
        if call.issued:
            return True
        if self.left <= 0:
            self._retire()
            return False
        self.left -= 1
        call.issued = True
        call.refused = False
        call.started = at
        call.message = self._issued % self._messages
        self._issued += 1
        return True

    def _retire(self) -> None:
        """Count out one caller."""
        self._live -= 1
        if self._live == 0:
            self.done.set()

    def succeed(
        self, call: Call, code: str, at: float, body: bytes | bytearray, skip: int = 0
    ) -> None:
        """Count a success, or a ``WRONG`` one; ``skip`` bytes of the body are not content."""
        if self.check is not None and not self.check(bytes(body[skip:])):
            self.fail(call, "WRONG", f"the check refused {bytes(body[skip : skip + 200])!r}")
            return
        self._codes[code] += 1
        self.latencies.append(at - call.started)
        call.issued = False

    def fail(self, call: Call, code: str, message: str) -> None:
        """Count a failure."""
        call.issued = False
        self.result.codes[code] += 1
        if len(self.result.failures) < _KEPT_FAILURES:
            self.result.failures.append(Failure(now() - self._began, code, message))

    def stop(self) -> None:
        """Issue no more calls; those that are under way end as they will."""
        self.left = 0
        for lane in self.lanes:
            lane.sift()

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
        self._live = connections * in_flight
        self.lanes = [Lane(self, connect, in_flight) for _ in range(connections)]
        self._began = now()
        tasks: list[asyncio.Future[None]] = []
        tasks += [asyncio.ensure_future(lane.run()) for lane in self.lanes]
        if until is not None:
            tasks.append(asyncio.ensure_future(self._stop_at(until)))
        if timeout is not None:
            tasks.append(asyncio.ensure_future(self._expire(timeout)))
        timers = self._start(seconds)
        tasks.append(asyncio.ensure_future(self._ended()))
        try:
            # The others end by an error alone, which must not pass as silence.
            ended, _ = await asyncio.wait(tasks, return_when="FIRST_COMPLETED")
            for task in ended:
                task.result()
        finally:
            self.result.seconds = now() - self._began
            for timer in timers:
                timer.cancel()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.gather(*(lane.close() for lane in self.lanes))
        self.result.latencies_ms = np.frombuffer(self.latencies, np.float64) * 1e3
        return self.result

    def _start(self, seconds: float | None) -> list[asyncio.TimerHandle]:
        """Set the times of the load; return what :meth:`run` has to cancel."""
        loop = asyncio.get_running_loop()
        timers = []
        if self._warm_up:
            timers.append(loop.call_later(self._warm_up, self._forget))
        if seconds is not None:
            timers.append(loop.call_later(self._warm_up + seconds, self.stop))
        return timers

    def _forget(self) -> None:
        """The warm-up is over: what was seen so far does not count."""
        self._codes.clear()
        self.result.failures.clear()
        del self.latencies[:]
        self._began = now()

    async def _ended(self) -> None:
        await self.done.wait()

    async def _stop_at(self, until: asyncio.Event) -> None:
        await until.wait()
        self.stop()
        await self.done.wait()

    async def _expire(self, timeout: float) -> None:
        while True:
            await asyncio.sleep(min(timeout / 4, 0.05))
            for lane in self.lanes:
                for connection in tuple(lane.connections):
                    connection.expire(now() - timeout)


class Connection(Protocol):
    """One connection as a lane sees it."""

    gone: asyncio.Future[None]
    """Done when it takes no more calls."""
    closed: asyncio.Future[None]

    def launch(self, calls: Sequence[Call]) -> None:
        """Make ``calls``, one after another for each, until there are none left to make."""

    def expire(self, before: float) -> None:
        """Fail the calls that started before this time."""

    def close(self) -> None:
        """Close it."""


class Connect(Protocol):
    """Opens a connection for a lane, ready for calls, or raises :class:`OSError`."""

    async def __call__(self, lane: Lane) -> Connection:
        """Open it."""


class Lane:
    """A number of callers on one connection at a time: a lost one is replaced.

    While a connection drains, its callers move to the next one as their calls end.
    """

    def __init__(self, driver: Driver, connect: Connect, in_flight: int) -> None:
        self.driver = driver
        self.connections: set[Connection] = set()
        self._connect = connect
        self._current: Connection | None = None
        self._idle = [Call(self) for _ in range(in_flight)]
        self._wanted = asyncio.Event()
        self._wanted.set()

    def give(self, calls: Sequence[Call]) -> None:
        """Take callers back from a connection that can't use them."""
        if self._current is not None and not self._current.gone.done():
            self._current.launch(calls)
        elif calls:
            self._idle.extend(calls)
            if self.driver.left <= 0:
                self.sift()
            if self._idle:
                self._wanted.set()

    def sift(self) -> None:
        """Retire the idle callers that have no call under way."""
        self._idle = [call for call in self._idle if self.driver.issue(call, 0.0)]

    async def run(self) -> None:
        """Keep a connection open for as long as there are callers without one."""
        delay = _FIRST_DELAY
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            if not self._idle:
                continue
            try:
                async with asyncio.timeout(_CONNECT_TIMEOUT):
                    connection = await self._connect(self)
            except (OSError, TimeoutError) as error:
                self._unreachable(str(error) or "no answer in time")
                await asyncio.sleep(delay)
                delay = min(2 * delay, _LAST_DELAY)
                self._wanted.set()
                continue
            delay = _FIRST_DELAY
            self._began(connection)
            calls, self._idle = self._idle, []
            connection.launch(calls)
            await asyncio.wait([connection.gone])  # cancelling this must not cancel that
            self._current = None

    async def close(self) -> None:
        """Close what is open."""
        open_ones = tuple(self.connections)
        for connection in open_ones:
            connection.close()
        await asyncio.gather(*(connection.closed for connection in open_ones))

    def _began(self, connection: Connection) -> None:
        self.driver.result.connections += 1
        self.connections.add(connection)
        connection.closed.add_done_callback(lambda _: self.connections.discard(connection))
        self._current = connection

    def _unreachable(self, reason: str) -> None:
        """Fail one call of every caller, as a gRPC client without a connection does."""
        waiting, self._idle = self._idle, []
        at = now()
        for call in waiting:
            if self.driver.issue(call, at):
                self.driver.fail(call, "UNAVAILABLE", f"cannot connect: {reason}")
                self._idle.append(call)
        if self.driver.left <= 0:
            self.sift()
