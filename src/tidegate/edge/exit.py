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
        child: its handle if this process started it, to learn its exit status.

    Raises:
        psutil.NoSuchProcess: there is no such process.
    """

    def __init__(self, pid: int, child: subprocess.Popen[bytes] | None = None) -> None:
        self._pid = pid
        self._child = child
        self._process = psutil.Process(pid)
        self._status: int | None = None

    @property
    def running(self) -> bool:
        """Whether the process has not ended."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return self._process.is_running() and self._process.status() != psutil.STATUS_ZOMBIE
        return False

    async def wait(self) -> int | None:
        """Wait for the end; return the status, negative for a signal, ``None`` if unknown.

        Only a parent learns the status: of its children, and of orphans if it is the one that
        gets them (the first process of a container).
        """
        if self.running:
            if hasattr(os, "pidfd_open"):
                await self._wait_for_event()
            else:
                await asyncio.to_thread(self._process.wait)
        self._reap()
        return self._status

    def _reap(self) -> None:
        if self._child is not None:
            self._status = self._child.wait()
            return
        with contextlib.suppress(ChildProcessError):
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid == self._pid:
                self._status = os.waitstatus_to_exitcode(status)

    async def _wait_for_event(self) -> None:
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
