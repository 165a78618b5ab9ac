"""The fields of a protobuf message in a file, walked without reading what they hold.

Source: https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MOST_FIELDS = 1_000_000


class TruncatedError(ValueError):
    """The message ends in the middle of a field."""


class Field(NamedTuple):
    """One field of a message."""

    number: int
    kind: int
    """The wire type: 0 for a varint, 2 for what is length-delimited."""
    value: int
    """The number of a varint, the length in bytes of a length-delimited field, else 0."""
    start: int
    """Where in the file the content of a length-delimited field begins."""

    @property
    def stop(self) -> int:
        """Where the content of a length-delimited field ends."""
        return self.start + self.value


def fields_of(file: BinaryIO, start: int, stop: int) -> Iterator[Field]:
    """Yield the fields of the message between two places of ``file``.

    The file may be moved between two fields. A field that is cut short is yielded before
    the error is raised.

    Raises:
        TruncatedError: the message ends inside a field.
        ValueError: this is not a protobuf message.
    """
    position = start
    for _ in range(_MOST_FIELDS):
        if position == stop:
            return
        file.seek(position)
        tag = _varint(file)
        number, kind = tag >> 3, tag & 7
        if not 0 < number < 2**29:
            raise ValueError(f"field number {number}")
        if kind in (_VARINT, _BYTES):
            value = _varint(file)
        elif kind in (_FIXED64, _FIXED32):
            value = 0
        else:
            raise ValueError(f"wire type {kind}")
        content = file.tell()
        yield Field(number, kind, value, content)
        position = content + {_VARINT: 0, _BYTES: value, _FIXED64: 8, _FIXED32: 4}[kind]
        if position > stop:
            raise TruncatedError(f"{position - stop} bytes are missing")
    raise ValueError("too many fields")


def _varint(file: BinaryIO) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            raise TruncatedError("the message ends inside a number")
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise ValueError("a number of more than ten bytes")
