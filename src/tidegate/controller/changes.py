"""What has changed is brought into effect: all of it at once, and again until that works."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from tidegate.errors import EdgeFailed

log = logging.getLogger(__name__)

_RETRY = 2.0
"""Seconds until what failed is tried again: who refuses a change is not asked at each new one."""


class Changes:
    """Notes that something has changed, and applies it.

    Args:
        apply: brings all that is known into effect; whatever it raises, it is called again.
        announce: is told, in a line, why a change is not in effect yet.
        tick: seconds after which ``apply`` is called though nothing was noted; without it, never.
    """

    def __init__(
        self,
        apply: Callable[[], Awaitable[None]],
        announce: Callable[[str], None],
        tick: float | None = None,
    ) -> None:
        self.problem: str | None = None
        """Why the last change is not in effect, if it is not."""
        self._apply = apply
        self._announce = announce
        self._tick = tick
        self._noted = asyncio.Event()
        self._waiters: list[asyncio.Future[None]] = []

    def note(self) -> None:
        """Something has changed, or is to be applied anew."""
        self._noted.set()

    async def applied(self) -> None:
        """Wait until the next change is in effect, and all that there were before."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await waiter

    async def follow(self) -> None:
        """Apply what is noted until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._tick):
                    await self._noted.wait()
            self._noted.clear()
            waiters, self._waiters = self._waiters, []
            try:
                await self._apply()
            except Exception as error:
                self._waiters += waiters
                if not isinstance(error, EdgeFailed):
                    log.exception("a change cannot be applied")
                self.problem = f"a change is not in effect yet: {error}"
                self._announce(self.problem)
                await asyncio.sleep(_RETRY)
                self._noted.set()
            else:
                self.problem = None
                for waiter in waiters:
                    if not waiter.done():
                        waiter.set_result(None)
