"""What every controller tells of itself and of its edge's process."""

from __future__ import annotations

import contextlib
import os
import platform

import psutil

from tidegate import __version__
from tidegate.controller.controlled_edge import ControlledEdge
from tidegate.telemetry import names
from tidegate.telemetry.exposition import Page


def write_controller(page: Page, started: float, edge: ControlledEdge) -> None:
    """Add it; ``started`` is in seconds since the epoch."""
    page.add(names.BUILD_INFO, 1, __version__, platform.python_version())
    page.add(names.START_TIME, started)
    page.add(names.GENERATION, edge.control.generation)
    page.add(names.CONFIG_REJECTED, int(edge.control.rejected))
    for name, pid in (("controller", os.getpid()), ("edge", edge.process.pid)):
        if pid is not None:
            with contextlib.suppress(psutil.Error):
                page.add(names.PROCESS_MEMORY, psutil.Process(pid).memory_info().rss, name)
