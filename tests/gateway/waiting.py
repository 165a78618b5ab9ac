"""Time that a test gives out: a source waits until it is told to go on."""

from __future__ import annotations

import asyncio


class Waits:
    """Stands in for ``asyncio.sleep``: notes how long somebody wants to wait, and lets them go."""

    def __init__(self) -> None:
        self.asked: list[float] = []
        self._waiting: asyncio.Queue[asyncio.Event] = asyncio.Queue()

    async def __call__(self, seconds: float) -> None:
        self.asked.append(seconds)
        over = asyncio.Event()
        self._waiting.put_nowait(over)
        await over.wait()

    async def reached(self) -> float:
        """Wait until somebody waits; return for how long."""
        async with asyncio.timeout(60):
            over = await self._waiting.get()
        self._waiting.put_nowait(over)
        return self.asked[-1]

    async def go_on(self) -> None:
        """End a wait, as soon as somebody waits."""
        async with asyncio.timeout(60):
            (await self._waiting.get()).set()

    async def go(self) -> None:
        """End a wait, as soon as somebody waits, and stay until they wait again."""
        await self.go_on()
        await self.reached()
