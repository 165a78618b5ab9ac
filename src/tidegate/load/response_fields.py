"""Header blocks of a peer that may not use a dynamic table (RFC 7541): each stands alone.

So a field means the same wherever its bytes come again, and a block is read by finding where
its fields begin. Only what was never seen is decoded, and the values of fields that do not
matter (a request's id, a date) never are.
"""

from __future__ import annotations

import functools
import urllib.parse
from dataclasses import dataclass

import hpack

_RELEVANT = frozenset({":status", "grpc-status", "grpc-message", "content-type"})
_INDEXED, _INCREMENTAL, _SIZE_UPDATE = 0x80, 0x40, 0x20


@dataclass(frozen=True, slots=True)
class Fields:
    """What one header block of a response says."""

    http: int | None
    grpc: int | None
    message: str
    is_grpc: bool
    succeeds: bool
    """``grpc-status: 0`` is in it."""
    opens: bool
    """A good first block: status 200 and gRPC's content type."""
    interim: bool
    """A 1xx response, which another one follows."""


def read_block(block: bytes) -> Fields:
    """Read a whole header block.

    Raises:
        IndexError: it ends within a field.
        hpack.HPACKError: it is malformed, or uses the dynamic table.
    """
    relevant = []
    at, end = 0, len(block)
    while at < end:
        start, first = at, block[at]
        if first & _INDEXED:
            at = _after_integer(block, at, 0x7F)
            relevant.append(block[start:at])
            continue
        if first & 0xE0 == _SIZE_UPDATE:
            at = _after_integer(block, at, 0x1F)
            continue
        mask = 0x3F if first & _INCREMENTAL else 0x0F
        at = _after_integer(block, at, mask)
        if not first & mask:
            at = _after_string(block, at)
        name = block[start:at]
        at = _after_string(block, at)
        if _name(name) in _RELEVANT:
            relevant.append(block[start:at])
    return _fields(tuple(relevant))


def decode(block: bytes) -> list[tuple[str, str]]:
    """Decode a block, or a part of one that consists of whole fields."""
    decoder = hpack.Decoder()
    decoder.max_allowed_table_size = decoder.header_table_size = 0
    return [(str(name), str(value)) for name, value in decoder.decode(block)]


@functools.lru_cache(maxsize=4096)
def _name(representation: bytes) -> str:
    """Return the name of a literal field, given its bytes up to the value."""
    return decode(representation + b"\0")[0][0]


@functools.lru_cache(maxsize=4096)
def _fields(representations: tuple[bytes, ...]) -> Fields:
    found = dict(pair for field in representations for pair in decode(field))
    http = int(found[":status"]) if ":status" in found else None
    status = found.get("grpc-status", "")
    grpc = int(status) if status.isdecimal() else None
    is_grpc = found.get("content-type", "").startswith("application/grpc")
    message = urllib.parse.unquote(found.get("grpc-message", ""), errors="replace")
    opens = http == 200 and is_grpc
    interim = http is not None and http < 200
    return Fields(http, grpc, message, is_grpc, grpc == 0, opens, interim)


NO_FIELDS = _fields(())


def _after_integer(block: bytes, at: int, mask: int) -> int:
    """Return the position after the integer at ``at`` (RFC 7541, 5.1)."""
    if block[at] & mask == mask:
        at += 1
        while block[at] & 0x80:
            at += 1
    return at + 1


def _after_string(block: bytes, at: int) -> int:
    """Return the position after the string at ``at`` (RFC 7541, 5.2)."""
    size = block[at] & 0x7F
    if size < 0x7F:
        return at + 1 + size
    shift = 0
    while True:
        at += 1
        size += (block[at] & 0x7F) << shift
        shift += 7
        if not block[at] & 0x80:
            return at + 1 + size
