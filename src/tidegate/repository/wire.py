"""The top-level fields of a protobuf file, walked without reading what they hold.

Source: https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MOST_FIELDS = 1_000_000


class TruncatedError(ValueError):
    """The file ends in the middle of a field."""


def fields_of(path: Path) -> Iterator[tuple[int, int, int]]:
    """Yield ``(number, wire type, value)`` of each top-level field.

    The value is the number of a varint, the length of a length-delimited field, else 0. A
    field that the file cuts short is yielded before the error is raised.

    Raises:
        TruncatedError: the file ends inside a field.
        ValueError: this is not a protobuf message.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        position = 0
        for _ in range(_MOST_FIELDS):
            if position == size:
                return
            tag = _varint(file)
            number, kind = tag >> 3, tag & 7
            if not 0 < number < 2**29:
                raise ValueError(f"field number {number}")
            if kind == _VARINT:
                yield number, kind, _varint(file)
            elif kind == _BYTES:
                length = _varint(file)
                yield number, kind, length
                if length > size - file.tell():
                    raise TruncatedError(f"{length - size + file.tell()} bytes are missing")
                file.seek(length, 1)
            elif kind in (_FIXED64, _FIXED32):
                yield number, kind, 0
                file.seek(8 if kind == _FIXED64 else 4, 1)
            else:
                raise ValueError(f"wire type {kind}")
            position = file.tell()
            if position > size:
                raise TruncatedError(f"{position - size} bytes are missing")
    raise ValueError("too many fields")


def _varint(file: BinaryIO) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            raise TruncatedError("the file ends inside a number")
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise ValueError("a number of more than ten bytes")
