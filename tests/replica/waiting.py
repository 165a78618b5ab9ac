"""Waiting for what must come."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

WAIT = 60.0
"""Seconds after which something that should come has not come."""


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what gives no signal; fail after ``WAIT``."""
    async with asyncio.timeout(WAIT):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.002)
