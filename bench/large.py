"""Large messages through a proxy, many at once, and the memory that it takes for them."""

from __future__ import annotations

import asyncio
import functools
from typing import Any

from bench.messages import METHOD, infer_message
from bench.proxies import Proxy
from tidegate.load.driver import Driver, Lane
from tidegate.load.generator import split_target
from tidegate.load.http2 import GrpcConnection
from tidegate.load.request_fields import Plan

LARGE = 64 * 2**20 - 2**10
"""Bytes of a message; the limit is on the message with what frames it."""
_PART = 2**20
_LOOK = 0.02


class PatientConnection(GrpcConnection):
    """Gives the system what it takes, and not all that the peer's window allows.

    A load's connections keep what they send in memory until it has gone, which would be 6 GiB.
    """

    def __init__(self, lane: Lane, plan: Plan) -> None:
        super().__init__(lane, plan)
        self._paused = False

    def pause_writing(self) -> None:
        """The system takes no more."""
        self._paused = True

    def resume_writing(self) -> None:
        """It does again."""
        self._paused = False
        self._send_rest()

    def _send_rest(self) -> None:
        while not self._paused and self._unsent:
            allowed = self._window
            self._window = part = min(allowed, _PART)
            super()._send_rest()
            used = part - self._window
            self._window = allowed - used
            if not used:
                return
            self._transport.write(b"".join(self._out))
            self._out.clear()


async def _connect(host: str, port: int, plan: Plan, lane: Lane) -> PatientConnection:
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(lambda: PatientConnection(lane, plan), host, port)
    await connection.ready
    return connection


async def large(proxy: Proxy, at_once: int, timeout: float = 240.0) -> dict[str, Any]:
    """Send messages of 64 MiB, ``at_once`` at a time; return codes and memory in MiB."""
    message = infer_message(LARGE)
    before = peak = proxy.rss()

    async def watch() -> None:
        nonlocal peak
        while True:
            peak = max(peak, proxy.rss())
            await asyncio.sleep(_LOOK)

    watching = asyncio.create_task(watch())
    try:
        plan = Plan.of(proxy.target, METHOD, [message], {})
        connect = functools.partial(_connect, *split_target(proxy.target), plan)
        driver = Driver(at_once, 1, None)
        result = await driver.run(connect, at_once, 1, None, None, timeout)
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    return {
        "at once": at_once,
        "bytes": len(message),
        "codes": dict(result.codes),
        "failures": sorted({failure.message for failure in result.failures}),
        "seconds": round(result.seconds, 2),
        "MiB before": round(before / 2**20, 1),
        "MiB at most": round(peak / 2**20, 1),
    }
