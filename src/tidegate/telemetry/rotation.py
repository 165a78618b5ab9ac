"""Files that grow are kept within bounds: ``x.log``, then ``x.log.1``, ``x.log.2`` …, older ones.

Who writes a file rotates it, so that it is bounded whoever else has died. That is done in the
process of a replica for whatever it writes to its output, native code included.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

_EVERY = 0.5
"""Seconds between two looks."""
_STACK = 2**18
_OUTPUT, _ERRORS = 1, 2
_descriptors = threading.Lock()
"""Held by who changes where this process's output goes."""


@contextlib.contextmanager
def errors_without(pattern: re.Pattern[bytes]) -> Iterator[None]:
    """Leave out what matches ``pattern`` of what the process writes to its standard errors.

    It is written when the context ends, for native code that can be told in no other way.
    """
    sys.stderr.flush()
    with _descriptors, tempfile.TemporaryFile() as kept:
        before = os.dup(_ERRORS)
        os.dup2(kept.fileno(), _ERRORS)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(before, _ERRORS)
            os.close(before)
            kept.seek(0)
            rest = pattern.sub(b"", kept.read())
            if rest:
                os.write(_ERRORS, rest)


def shift(path: Path, files: int) -> None:
    """Rename ``path`` to its first older file, that to the second …; the oldest is dropped.

    ``files`` is how many older ones are kept, at least one.
    """
    _make_room(path, files)
    path.replace(_older(path, 1))


def copy_and_truncate(path: Path, size: int, files: int) -> bool:
    """Rotate a file that another process has open to append; say whether that was due.

    What it writes at this very moment may be lost.
    """
    if _size(path) <= size:
        return False
    older = path.with_name(path.name + ".new")
    _copy_end(path, older, size)
    os.truncate(path, 0)
    _make_room(path, files)
    older.replace(_older(path, 1))
    return True


def rename_if_larger(path: Path, size: int, files: int) -> bool:
    """Rotate a file whose writer opens it anew when it is told to; say whether that was due."""
    if _size(path) <= size:
        return False
    shift(path, files)
    return True


class OwnOutput:
    """Rotates the file that this process has for its standard output and errors."""

    def __init__(self, path: Path, size: int, files: int) -> None:
        self._path = path
        self._size = size
        self._files = files

    def watch(self) -> None:
        """Look after it from a thread, as long as the process lives."""
        if not self._is_output():
            return
        before = threading.stack_size(_STACK)
        try:
            threading.Thread(target=self._look_on, name="log", daemon=True).start()
        finally:
            threading.stack_size(before)

    def check(self) -> None:
        """Rotate it if it is too large; follow another process that has done so."""
        with _descriptors:
            self._check()

    def _check(self) -> None:
        found = os.fstat(_ERRORS)
        if found.st_size <= self._size and self._is_output():
            return
        # Two generations of a version may write to one file for a while.
        fcntl.flock(_ERRORS, fcntl.LOCK_EX)
        mine = self._is_output()
        if mine:
            shift(self._path, self._files)
        # Closing the old description releases the lock.
        self._open_anew()
        older = _older(self._path, 1)
        if mine and _size(older) > 2 * self._size:
            trimmed = older.with_name(older.name + ".new")
            _copy_end(older, trimmed, self._size)
            trimmed.replace(older)

    def _look_on(self) -> None:
        while True:
            time.sleep(_EVERY)
            with contextlib.suppress(OSError):  # a full disk, say: later there may be room
                self.check()

    def _is_output(self) -> bool:
        found = os.fstat(_ERRORS)
        try:
            return stat.S_ISREG(found.st_mode) and os.path.samestat(found, self._path.stat())
        except FileNotFoundError:
            return False

    def _open_anew(self) -> None:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.dup2(descriptor, _OUTPUT)
        os.dup2(descriptor, _ERRORS)
        os.close(descriptor)


def _make_room(path: Path, files: int) -> None:
    for number in range(files - 1, 0, -1):
        with contextlib.suppress(FileNotFoundError):
            _older(path, number).replace(_older(path, number + 1))


def _older(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _copy_end(source: Path, target: Path, size: int) -> None:
    """Copy the last ``size`` bytes, from the beginning of a line."""
    with source.open("rb") as reading, target.open("wb") as writing:
        end = reading.seek(0, os.SEEK_END)
        if end > size:
            reading.seek(end - size)
            reading.readline(size)
        else:
            reading.seek(0)
        left = end - reading.tell()
        while left > 0 and (block := reading.read(min(left, 2**20))):
            writing.write(block)
            left -= len(block)
