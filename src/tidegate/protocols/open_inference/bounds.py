"""How many parts a request may have: what a parser makes of each takes far more than it does.

``{}`` has two bytes and becomes an object of 64; an empty message of protobuf is as bad. So the
parts are counted before anything is parsed. Data that is read without an object for each number
does not count.
"""

from __future__ import annotations

import numpy as np

from tidegate.errors import InvalidInput
from tidegate.protocols.field_counts import Tree, check_fields
from tidegate.protocols.grpc_frames import Buffer

MOST_PARTS = 2**20
"""Lists, objects and members of a JSON document."""
MOST_FIELDS = 2**14
"""Fields of a message and of its tensors, and their dimensions. The edge counts to as many."""
MOST_TENSORS = 2**14
"""Inputs, and outputs that are asked for."""

_PIECE = 2**20
_QUOTE = ord('"')
_TENSOR: Tree = {3: None}
"""Of an input, the shape: each dimension has a byte at least."""
_REQUEST: Tree = {5: _TENSOR, 6: _TENSOR}
"""The inputs of a ``ModelInferRequest``, and the outputs that are asked for."""


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
    check_fields(
        message,
        _REQUEST,
        MOST_FIELDS,
        f"the message and its tensors have more than {MOST_FIELDS} fields and dimensions; send "
        "the data in raw_input_contents, and numbers packed",
    )
