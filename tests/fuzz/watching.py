"""What is true of every decoding: it ends, and it takes no memory to speak of."""

from __future__ import annotations

import contextlib
import logging
import resource
import signal
from collections.abc import Iterator
from types import FrameType

PATIENCE = 10.0
"""Seconds of processor time that one decoding may take; they take microseconds."""
ROOM = 256 * 2**20
"""Bytes that the process may gain while one decoder is fuzzed."""


class Hang(AssertionError):
    """A decoding that does not end."""


def _give_up(number: int, frame: FrameType | None) -> None:
    raise Hang(f"it did not end in {PATIENCE:g} s")


@contextlib.contextmanager
def hangs_end() -> Iterator[None]:
    """Raise :class:`Hang` in what :func:`begin` says has begun and does not end."""
    logging.disable()  # half of what is fuzzed says so
    before = signal.signal(signal.SIGPROF, _give_up)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
        logging.disable(logging.NOTSET)


def begin() -> None:
    """The next decoding begins."""
    signal.setitimer(signal.ITIMER_PROF, PATIENCE)


def peak() -> int:
    """The most bytes that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
