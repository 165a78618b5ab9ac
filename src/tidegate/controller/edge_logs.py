"""Keeps the edge's logs within bounds, as long as there is a controller.

Envoy opens its access log anew when it is told to. What it says of itself goes to its standard
error: that file is copied and truncated.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from tidegate.errors import EdgeFailed
from tidegate.telemetry.logs import LogSettings
from tidegate.telemetry.rotation import copy_and_truncate, rename_if_larger

log = logging.getLogger(__name__)

_EVERY = 1.0


class EdgeLogs:
    """Rotates Envoy's log and the access log; ``reopen`` makes Envoy open the latter anew."""

    def __init__(
        self,
        own: Path,
        access: Path,
        settings: LogSettings,
        reopen: Callable[[], Awaitable[object]],
    ) -> None:
        self._own = own
        self._access = access
        self._settings = settings
        self._reopen = reopen

    async def keep(self) -> None:
        """Look after them until it is cancelled."""
        while True:
            await asyncio.sleep(_EVERY)
            try:
                await self.check()
            except (OSError, EdgeFailed) as error:
                log.warning("the edge's logs cannot be rotated: %s", error)

    async def check(self) -> None:
        """Rotate what is too large.

        Raises:
            OSError: a file cannot be renamed or copied.
            EdgeFailed: Envoy does not answer; it goes on writing to the renamed file.
        """
        size, files = self._settings.size, self._settings.files
        await asyncio.to_thread(copy_and_truncate, self._own, size, files)
        if rename_if_larger(self._access, size, files):
            await self._reopen()
