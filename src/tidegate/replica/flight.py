"""A flight recorder: which requests were being run when the process died.

A small file that the process writes through shared memory, so that what it last wrote
survives any death of the process. Who started the process reads it afterwards.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tidegate.replica.engine import RequestSlot

_ID = 64
_DIGEST = 16
_ENTRY = _ID + _DIGEST
_CAPACITY = 512
_COUNT = 4


@dataclass(frozen=True, slots=True)
class Suspect:
    """A request that was being run: its ``x-request-id``, and its digest if it was a retry."""

    request_id: bytes
    digest: bytes | None


class FlightRecorder:
    """Writes what is being run into ``path``."""

    def __init__(self, path: Path) -> None:
        size = _COUNT + _ENTRY * _CAPACITY
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            os.ftruncate(descriptor, size)
            self._map = mmap.mmap(descriptor, size)
        finally:
            os.close(descriptor)

    def started(self, slots: Sequence[RequestSlot]) -> None:
        """Note that these requests are about to run."""
        tags = [slot.tag for slot in slots[:_CAPACITY] if slot.tag is not None]
        entries = b"".join(tags)
        self._map[_COUNT : _COUNT + len(entries)] = entries
        self._map[:_COUNT] = len(tags).to_bytes(_COUNT, "little")

    def ended(self) -> None:
        """Note that nothing runs."""
        self._map[:_COUNT] = b"\0\0\0\0"


def tag(request_id: bytes, digest: bytes | None) -> bytes:
    """Return the entry of a request; ``digest`` has 16 bytes and is there for a retry."""
    return request_id[:_ID].ljust(_ID, b"\0") + (digest or bytes(_DIGEST))


def read_suspects(path: Path) -> list[Suspect]:
    """Return what was being run by the process that wrote ``path``; it need not exist."""
    try:
        raw = path.read_bytes()
    except OSError:
        return []
    count = min(int.from_bytes(raw[:_COUNT], "little"), _CAPACITY)
    suspects = []
    for index in range(count):
        entry = raw[_COUNT + index * _ENTRY : _COUNT + (index + 1) * _ENTRY]
        digest = entry[_ID:]
        suspects.append(Suspect(entry[:_ID].rstrip(b"\0"), digest if any(digest) else None))
    return suspects
