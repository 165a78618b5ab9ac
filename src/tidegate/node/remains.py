"""What a controller that was killed left behind, and how to end it without a controller."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tidegate.controller.run_directory import RunDirectory
from tidegate.edge.process import EnvoyProcess
from tidegate.edge.remains import end_unrecorded
from tidegate.node.launcher import Launcher, ProcessLauncher

_KILL_AFTER = 5.0


async def end_remains(
    directory: RunDirectory, announce: Callable[[str], None], launcher: Launcher | None = None
) -> None:
    """Drain the edge, then end the replicas; nothing is left but the logs.

    The models' repository is not looked at: it may be gone.

    Raises:
        AddressInUse: a controller lives; it is the one to be told.
    """
    directory.create()
    directory.lock()
    try:
        record = directory.load()
        drain = 0.0
        if record is not None:
            drain = record.config.drain_timeout
            edge = None if record.edge is None else EnvoyProcess.adopt(record.edge)
            if edge is not None and not await edge.drain_and_stop(drain):
                announce(f"requests were still running after {drain:g} s and were cut")
        end_unrecorded(directory.path)
        replicas = (launcher or ProcessLauncher()).find(directory.replicas)
        await asyncio.gather(*(process.end(drain + _KILL_AFTER) for _, process in replicas))
        directory.remove()
    finally:
        directory.unlock()
