"""How many parts a request may have: what a parser makes of each takes far more than it does.

``{}`` has two bytes and becomes an object of 64; an empty message of protobuf is as bad. So the
parts are counted before anything is parsed. Data that is read without an object for each number
does not count.
"""

from __future__ import annotations

import numpy as np

from tidegate.errors import InvalidInput
from tidegate.protocols.grpc_frames import Buffer

MOST_PARTS = 2**20
"""Lists, objects and members of a JSON document."""
MOST_FIELDS = 2**14
"""Fields of a message and of its tensors, and their dimensions. The edge counts to as many."""
MOST_TENSORS = 2**14
"""Inputs, and outputs that are asked for."""

_HARMLESS = 2**16
"""Bytes of a message whose fields are few enough, whatever they are."""
_PIECE = 2**20
_QUOTE = ord('"')
_TENSORS = frozenset((0x2A, 0x32))
"""Tags of inputs and outputs."""
_SHAPE = 0x1A
"""The tag of an input's shape; each dimension has a byte at least."""


def check_document(document: bytes) -> None:
    """Refuse a JSON document of too many parts.

    Raises:
        InvalidInput: it has more than ``MOST_PARTS``.
    """
    if len(document) <= MOST_PARTS:
        return
    marks = (b"[", b"{", b":")
    # Most have few, even those in texts counted.
    if sum(map(document.count, marks)) <= MOST_PARTS:
        return
    parts = _parts(document)
    if parts > MOST_PARTS:
        raise InvalidInput(
            f"the body has {parts} lists, objects and members; at most {MOST_PARTS} are "
            "possible: send the data as flat lists, or binary"
        )


def _parts(document: bytes) -> int:
    """Count the brackets, braces and colons that are in no text."""
    if b"\\" in document:
        # In this order: what is escaped in "\\" is the second backslash, not the quote.
        document = document.replace(b"\\\\", b"").replace(b'\\"', b"")
    data = np.frombuffer(document, np.uint8)
    parts = inside = 0
    for start in range(0, len(data), _PIECE):
        piece = data[start : start + _PIECE]
        in_text = np.bitwise_xor.accumulate((piece == _QUOTE).view(np.uint8)) ^ np.uint8(inside)
        inside = int(in_text[-1])
        # { is [ with another bit set.
        marks = ((piece | 0x20) == ord("{")) | (piece == ord(":"))
        parts += int(np.count_nonzero(marks & (in_text == 0)))
    return parts


def check_message(message: Buffer) -> None:
    """Refuse a ``ModelInferRequest`` of too many fields, those of its tensors included.

    What is malformed is left to the parser.

    Raises:
        InvalidInput: it has more than ``MOST_FIELDS``.
    """
    if len(message) > _HARMLESS:
        try:
            _count(message, 0, len(message), MOST_FIELDS, inside=False)
        except IndexError:
            return


def _count(message: Buffer, at: int, end: int, left: int, *, inside: bool) -> int:
    """Walk the fields of a message; return how many more there may be."""
    while at < end:
        if left <= 0:
            raise InvalidInput(
                f"the message and its tensors have more than {MOST_FIELDS} fields and dimensions; "
                "send the data in raw_input_contents, and numbers packed"
            )
        left -= 1
        tag, at = _varint(message, at)
        wire = tag & 7
        if wire == 2:
            size, at = _varint(message, at)
            if tag in _TENSORS and not inside:
                left = _count(message, at, min(at + size, end), left, inside=True)
            elif inside and tag == _SHAPE:
                left -= size
            at += size
        elif wire == 0:
            _, at = _varint(message, at)
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
        elif wire > 5:
            raise IndexError  # the parser goes no further either; 3 and 4 are the ends of a group
    return left


def _varint(message: Buffer, at: int) -> tuple[int, int]:
    value = message[at]
    at += 1
    if value < 0x80:
        return value, at
    value &= 0x7F
    for shift in range(7, 70, 7):
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise IndexError
