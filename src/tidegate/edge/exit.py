"""Waiting for the end of a process that may not be a child, by an event and not by asking."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess

import psutil


class ExitWatch:
    """Waits for one process and signals it; a process id that was given anew is never hit.

    Args:
        pid: the process, which must be running now.
        child: its handle if this process started it, to collect its exit status.
    """

    def __init__(self, pid: int, child: subprocess.Popen[bytes] | None) -> None:
        self._pid = pid
        self._child = child
        self._process = psutil.Process(pid)

    async def wait(self) -> int | None:
        """Wait for the end; return the status, negative for a signal, ``None`` if unknown."""
        if self._child is not None and self._child.poll() is not None:
            return self._child.returncode
        if hasattr(os, "pidfd_open"):
            await self._wait_for_event()
        else:
            await asyncio.to_thread(self._process.wait)
        return None if self._child is None else self._child.wait()

    async def _wait_for_event(self) -> None:
        if not self._process.is_running():
            return
        try:
            descriptor = os.pidfd_open(self._pid)
        except ProcessLookupError:
            return
        loop = asyncio.get_running_loop()
        ended = loop.create_future()

        def note() -> None:
            loop.remove_reader(descriptor)
            if not ended.done():
                ended.set_result(None)

        loop.add_reader(descriptor, note)
        try:
            await ended
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)

    def terminate(self) -> None:
        """Send SIGTERM, if the process still runs."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL, if the process still runs."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            self._process.send_signal(number)
