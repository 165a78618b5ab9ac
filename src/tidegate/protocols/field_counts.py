"""Counts the fields of a protobuf message before a parser makes an object of each.

Source: https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from tidegate.errors import InvalidInput
from tidegate.protocols.grpc_frames import Buffer

_HARMLESS = 2**16
"""Bytes of a message whose fields are few enough, whatever they are."""

Tree: TypeAlias = "Mapping[int, Tree | None]"
"""The messages in a message, by the numbers of their fields.

``None`` is for packed numbers of which each byte counts as a field.
"""


def check_fields(message: Buffer, tree: Tree, most: int, refusal: str) -> None:
    """Refuse a message that has more than ``most`` fields, those of the messages in it included.

    What is malformed is left to the parser, and so is what ``tree`` does not name.

    Raises:
        InvalidInput: it has more; ``refusal`` says what to do.
    """
    if len(message) > _HARMLESS:
        try:
            _count(message, 0, len(message), tree, most)
        except IndexError:
            return
        except _TooMany:
            raise InvalidInput(refusal) from None


class _TooMany(Exception):
    """There are more fields than there may be."""


def _count(message: Buffer, at: int, end: int, tree: Tree, left: int) -> int:
    """Walk the fields of a message; return how many more there may be."""
    while at < end:
        if left <= 0:
            raise _TooMany
        left -= 1
        tag, at = _varint(message, at)
        wire = tag & 7
        if wire == 2:
            size, at = _varint(message, at)
            number = tag >> 3
            if number in tree:
                below = tree[number]
                if below is None:
                    left -= size
                else:
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
