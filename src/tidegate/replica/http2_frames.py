"""The frames of HTTP/2 (RFC 9113, section 4 and 6), as bytes."""

from __future__ import annotations

import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY, WINDOW, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20
TABLE_SIZE, MAX_STREAMS, INITIAL_WINDOW, MAX_FRAME = 1, 3, 4, 5
"""Names of settings."""
NO_ERROR, PROTOCOL_ERROR, COMPRESSION_ERROR = 0, 1, 9
HEAD_SIZE = 9
_HEAD = struct.Struct(">IBI")
pack_head, unpack_head = _HEAD.pack, _HEAD.unpack_from
"""Of a frame: length and type in one, flags, stream."""
LARGEST_FRAME = 2**14
"""Bytes, what a peer may send that was not told otherwise."""
LARGEST_WINDOW = 2**31 - 1
DEFAULT_WINDOW = 2**16 - 1


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Return a frame."""
    return pack_head(len(payload) << 8 | kind, flags, stream) + payload


def end_of_body(data: bytes, at: int, stream: int) -> int:
    """Return where the DATA frame at ``at`` ends; 0 if it is not there or not all of a body."""
    if len(data) - at < HEAD_SIZE:
        return 0
    word, flags, same = unpack_head(data, at)
    end: int = at + HEAD_SIZE + (word >> 8)
    whole = same == stream and word & 0xFF == DATA and flags == END_STREAM and end <= len(data)
    return end if whole else 0


def unpadded(flags: int, payload: bytes) -> bytes:
    """Return the payload without padding and priority (sections 6.1 and 6.2).

    Raises:
        IndexError: there is less of it than it says itself.
    """
    if flags & PADDED:
        if payload[0] >= len(payload):
            raise IndexError("a frame is all padding and more")
        payload = payload[1 : len(payload) - payload[0]]
    return payload[5:] if flags & PRIORITY else payload
