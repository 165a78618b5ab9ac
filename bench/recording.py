"""An open loop that keeps every call: when it was due, how long it took, who answered it."""

from __future__ import annotations

import asyncio
import functools
from array import array
from collections.abc import Mapping, Sequence

import numpy as np

from bench.timeline import Calls
from tidegate.load.arrivals import Times
from tidegate.load.driver import Call, now
from tidegate.load.generator import split_target
from tidegate.load.http2 import connect_grpc
from tidegate.load.paced import PacedDriver
from tidegate.load.request_fields import Plan

_ID = 0x1A
"""The tag of a ModelInferResponse's id, the first field of what a bench's backend answers."""


class Recorder(PacedDriver):
    """A :class:`PacedDriver` that keeps what became of each call."""

    def __init__(self, times: Times, messages: int) -> None:
        super().__init__(times, messages, None)
        self.due = array("d")
        self.took = array("d")
        self.outcomes: list[str] = []
        self.nodes: list[str] = []
        self._answers: dict[bytes, str] = {}

    @property
    def zero(self) -> float:
        """When the load began, by the monotonic clock."""
        return self._zero

    def succeed(
        self, call: Call, code: str, at: float, body: bytes | bytearray, skip: int = 0
    ) -> None:
        """Keep a success and who answered."""
        message = bytes(body[skip:])
        name = self._answers.get(message)
        if name is None:
            name = self._answers[message] = name_in(message)
        self._keep(call, "OK", at, name)
        super().succeed(call, code, at, body, skip)

    def fail(self, call: Call, code: str, message: str) -> None:
        """Keep a failure."""
        self._keep(call, code, now(), "")
        super().fail(call, code, message)

    def _keep(self, call: Call, code: str, at: float, node: str) -> None:
        self.due.append(call.started - self._zero)
        self.took.append(at - call.started)
        self.outcomes.append(code)
        self.nodes.append(node)

    def calls(self) -> Calls:
        """Return what was kept, by the time at which calls were due."""
        due = np.frombuffer(self.due, np.float64)
        order = np.argsort(due, kind="stable")
        return Calls(
            due[order],
            np.frombuffer(self.took, np.float64)[order] * 1e3,
            [self.outcomes[at] for at in order],
            [self.nodes[at] for at in order],
        )


def name_in(message: bytes) -> str:
    """Return the name of the backend that answered, or ``""`` if it is none of ours."""
    if len(message) > 1 and message[0] == _ID and len(message) >= 2 + message[1]:
        return message[2 : 2 + message[1]].decode(errors="replace")
    return ""


class Recording:
    """A load that runs beside what the case does."""

    def __init__(
        self,
        target: str,
        path: str,
        messages: Sequence[bytes],
        times: Times,
        *,
        connections: int = 4,
        in_flight: int = 1000,
        deadline: float,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        milliseconds = f"{round(deadline * 1e3)}m"
        fields = {"grpc-timeout": milliseconds, **(headers or {})}
        host, port = split_target(target)
        plan = Plan.of(target, path, list(messages), fields)
        self.recorder = Recorder(times, len(messages))
        self._seconds = float(times[-1])
        # The server's own answer comes first, if it keeps to the deadline.
        self._run = self.recorder.run(
            functools.partial(connect_grpc, host, port, plan), connections, in_flight,
            self._seconds, None, deadline + 0.5,
        )  # fmt: skip
        self._task: asyncio.Task[object] | None = None

    async def __aenter__(self) -> Recording:
        """Start the load."""
        self._task = asyncio.create_task(self._run)
        await asyncio.sleep(0)
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Wait for the end, or end it if something else went wrong."""
        assert self._task is not None
        if exc[0] is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        else:
            await self._task

    def stop(self) -> None:
        """Send no more calls."""
        self.recorder.stop()

    async def until(self, at: float) -> None:
        """Sleep until so many seconds after the beginning of the load."""
        await asyncio.sleep(max(0.0, self.recorder.zero + at - now()))

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return now() - self.recorder.zero
