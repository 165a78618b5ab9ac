"""How a replica learns that its node is gone.

The controller and the edge each hold a shared lock on one file, which the kernel releases
when they die, however they die. A replica waits for the exclusive lock: it gets it when
neither is left, and then nobody can send it work any more. A controller that is restarted
while its edge lives takes nothing away.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

_GRACE = 2.0
_LOOKS, _BETWEEN_LOOKS = 5, 0.01


def hold(path: Path) -> int:
    """Take the shared lock; return the descriptor that keeps it, to be inherited or closed."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    return descriptor


def watch(path: Path, on_orphaned: Callable[[], object]) -> threading.Thread:
    """Call ``on_orphaned``, from a thread, once nobody holds the lifeline at ``path``."""
    thread = threading.Thread(target=_wait, args=(path, on_orphaned), name="lifeline", daemon=True)
    thread.start()
    return thread


def _wait(path: Path, on_orphaned: Callable[[], object]) -> None:
    while True:
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            break
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        finally:
            os.close(descriptor)
        # A controller may be starting an edge anew at this moment: look twice.
        time.sleep(_GRACE)
        if _is_free(path):
            break
    on_orphaned()


def _is_free(path: Path) -> bool:
    """Say whether no controller and no edge holds the lock, which they would hold on."""
    for _ in range(_LOOKS):
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # Perhaps another replica, which looks at this moment.
            time.sleep(_BETWEEN_LOOKS)
        else:
            return True
        finally:
            os.close(descriptor)
    return False
