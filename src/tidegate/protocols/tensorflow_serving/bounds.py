"""How many fields a message may have: what a parser makes of each takes far more than it does.

Numbers that are packed into one field do not count.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from tidegate.errors import InvalidInput
from tidegate.protocols.grpc_frames import Buffer

MOST_FIELDS = 2**20
"""Fields of a message and of the messages in it."""
_HARMLESS = 2**16
"""Bytes of a message whose fields are few enough, whatever they are."""

Tree: TypeAlias = "Mapping[int, Tree]"
"""The messages in a message, by the numbers of their fields."""

_SHAPE: Tree = {2: {}}
_TENSOR: Tree = {2: _SHAPE}
_LIST: Tree = {}
_EXAMPLE: Tree = {1: {1: {2: {1: _LIST, 2: _LIST, 3: _LIST}}}}
_INPUT: Tree = {1: {1: _EXAMPLE}, 2: {1: _EXAMPLE, 2: _EXAMPLE}}
PREDICT: Tree = {2: {2: _TENSOR}}
"""A ``PredictRequest``."""
CLASSIFY: Tree = {2: _INPUT}
"""A ``ClassificationRequest`` or a ``RegressionRequest``."""


def check_message(message: Buffer, tree: Tree) -> None:
    """Refuse a message of too many fields.

    What is malformed is left to the parser.

    Raises:
        InvalidInput: it has more than ``MOST_FIELDS``.
    """
    if len(message) > _HARMLESS:
        try:
            _count(message, 0, len(message), tree, MOST_FIELDS)
        except IndexError:
            return


def _count(message: Buffer, at: int, end: int, tree: Tree, left: int) -> int:
    """Walk the fields of a message; return how many more there may be."""
    while at < end:
        if left <= 0:
            raise InvalidInput(
                f"the message has more than {MOST_FIELDS} fields, those of the messages in it "
                "included; send fewer elements at once, and numbers packed or in tensor_content"
            )
        left -= 1
        tag, at = _varint(message, at)
        wire = tag & 7
        if wire == 2:
            size, at = _varint(message, at)
            below = tree.get(tag >> 3)
            if below is not None:
                left = _count(message, at, min(at + size, end), below, left)
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
