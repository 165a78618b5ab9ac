"""The process between a Python program and the node that it serves with: nothing outlives both.

``python -m tidegate.guard PARENT PORT RUN_DIR TIDY COMMAND…`` runs ``COMMAND``, a ``tidegate
serve``, and ends when that has ended. SIGTERM is passed on to it. When the process ``PARENT``
ends, however it ends, the node is told to stop; when the node's controller is killed, what it
left running is ended too. With ``TIDY`` = 1 the run directory is removed at the end.

The parent is watched by its process id. A lock or a pipe that it held would be inherited by
what it forks (the workers of ``multiprocessing``, of a data loader), and held on by them.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
from types import FrameType

_BETWEEN_LOOKS = 0.25
_BETWEEN_SIGNALS = 0.6
"""Longer than the time within which a controller takes two signals for one."""


def main(arguments: list[str]) -> int:
    """Guard one node; return its controller's exit status."""
    parent, port, run_dir, tidy, *command = arguments
    told: list[int] = []
    node: subprocess.Popen[bytes] | None = None

    def pass_on(number: int, frame: FrameType | None) -> None:
        told.append(number)
        if node is not None:
            node.send_signal(number)

    signal.signal(signal.SIGTERM, pass_on)
    node = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    if told:
        node.send_signal(signal.SIGTERM)
    threading.Thread(
        target=_stop_when_orphaned, args=(int(parent), node), name="orphaned", daemon=True
    ).start()
    status = node.wait()
    if status < 0:
        # The controller was killed; edge and replicas would go on for the next one.
        stop = [sys.executable, "-m", "tidegate", "stop", "--port", port, "--run-dir", run_dir]
        subprocess.run(stop, stdin=subprocess.DEVNULL, check=False)
    if tidy == "1":
        shutil.rmtree(run_dir, ignore_errors=True)
    return status if status >= 0 else 128 - status


def _stop_when_orphaned(parent: int, node: subprocess.Popen[bytes]) -> None:
    _wait_for_end(parent)
    while node.poll() is None:
        # Nobody waits for what still runs: the second signal cuts it.
        node.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            node.wait(_BETWEEN_SIGNALS)


def _wait_for_end(parent: int) -> None:
    """Return when the process ``parent``, which started this one, has ended."""
    if hasattr(os, "pidfd_open"):
        try:
            descriptor = os.pidfd_open(parent)
        except OSError:
            pass  # gone, or an old kernel
        else:
            # If it ended before that, the number may be another's by now.
            if os.getppid() == parent:
                select.select([descriptor], [], [])
            os.close(descriptor)
            return
    while os.getppid() == parent:
        threading.Event().wait(_BETWEEN_LOOKS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
