"""A flight recorder: which requests were being run when the process died.

A small file that the process writes through shared memory, so that what it last wrote
survives any death of the process. Who started the process reads it afterwards, and so do the
other replicas, which get the requests of the dead one.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tidegate.replica.engine import RequestSlot

_DIGEST = 32
_SIZE = 2**16
_LENGTH = 4
_LONGEST_ID = 64


@dataclass(frozen=True, slots=True)
class Suspect:
    """A request that was being run: its ``x-request-id``, and its digest if it was a retry."""

    request_id: bytes
    digest: bytes | None


class FlightRecorder:
    """Writes what is being run into ``path``: a length, then an entry a line."""

    def __init__(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            os.ftruncate(descriptor, _LENGTH + _SIZE)
            self._map = mmap.mmap(descriptor, _LENGTH + _SIZE)
        finally:
            os.close(descriptor)

    def started(self, slots: Sequence[RequestSlot]) -> None:
        """Note that these requests are about to run."""
        self.write([slot.tag for slot in slots if slot.tag is not None])

    def write(self, tags: Sequence[bytes]) -> None:
        """Note that the requests of these entries run, and no others."""
        entries = b"\n".join(tags)[:_SIZE]
        end = _LENGTH + len(entries)
        self._map[_LENGTH:end] = entries
        self._map[:_LENGTH] = len(entries).to_bytes(_LENGTH, "little")

    def ended(self) -> None:
        """Note that nothing runs."""
        self._map[:_LENGTH] = b"\0\0\0\0"


class SharedRecorder:
    """A recorder of what the model runs and what hooks run at the same time, in any thread."""

    def __init__(self, recorder: FlightRecorder) -> None:
        self._recorder = recorder
        self._lock = threading.Lock()
        self._batch: list[bytes] = []
        self._hooks: list[bytes] = []

    def started(self, slots: Sequence[RequestSlot]) -> None:
        """Note that these requests are about to run."""
        with self._lock:
            self._batch = [slot.tag for slot in slots if slot.tag is not None]
            self._write()

    def ended(self) -> None:
        """Note that the model runs nothing."""
        with self._lock:
            self._batch = []
            self._write()

    def entered(self, entry: bytes | None) -> None:
        """Note that a hook is about to run for a request."""
        if entry is not None:
            with self._lock:
                self._hooks.append(entry)
                self._write()

    def left(self, entry: bytes | None) -> None:
        """Note that the hook has ended."""
        if entry is not None:
            with self._lock:
                self._hooks.remove(entry)
                self._write()

    def _write(self) -> None:
        self._recorder.write([*self._hooks, *self._batch])


def tag(request_id: bytes, digest: bytes | None) -> bytes:
    """Return the entry of a request; ``digest`` has 16 bytes and is there for a retry."""
    entry = short(request_id)
    return entry if digest is None else entry + b" " + digest.hex().encode()


def short(request_id: bytes) -> bytes:
    """Return the entry of a request that is not a retry."""
    return request_id[:_LONGEST_ID].translate(None, b" \n")


def read_suspects(path: Path) -> list[Suspect]:
    """Return what was being run by the process that wrote ``path``; it need not exist."""
    try:
        with path.open("rb") as file:
            raw = file.read(min(int.from_bytes(file.read(_LENGTH), "little"), _SIZE))
    except OSError:
        return []
    suspects = []
    for entry in raw.split(b"\n"):
        request_id, _, digest = entry.rpartition(b" ") if b" " in entry else (entry, b"", b"")
        if request_id:
            suspects.append(Suspect(request_id, _digest(digest)))
    return suspects


def _digest(written: bytes) -> bytes | None:
    """Return the digest, unless it was being written at the moment of death."""
    try:
        digest = bytes.fromhex(written.decode("ascii"))
    except ValueError:
        return None
    return digest if len(written) == _DIGEST else None


class Casualties:
    """What was being run by other replicas of the node when they died, by their recorders.

    The request that kills replicas is among these. What only waited in a dead one's queue is
    not, and may run in a batch again.
    """

    def __init__(self, own: Path) -> None:
        self._own = own

    def __contains__(self, request_id: object) -> bool:
        """Whether another replica was running it; none that lives has what came here anew."""
        # A literal of one byte says that the id is empty.
        if not isinstance(request_id, bytes) or len(request_id) <= 1:
            return False
        wanted = short(request_id)
        return any(
            suspect.request_id == wanted
            for path in self._own.parent.glob("*" + self._own.suffix)
            if path != self._own
            for suspect in read_suspects(path)
        )
