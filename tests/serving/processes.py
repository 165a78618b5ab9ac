"""Which processes of a served node live, and what they hold."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import psutil


def of_node(run_dir: str | Path) -> list[psutil.Process]:
    """Every living process that names ``run_dir``: guard, controller, edge and replicas."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        line = " ".join(process.info["cmdline"] or [])
        if str(run_dir) in line and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def until(condition: Callable[[], object], timeout: float = 60.0) -> None:
    """Wait until ``condition`` holds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not in {timeout} s")
        time.sleep(0.02)
