"""Protobuf's variable-length integers: one at a time, and many of them at once.

Source: https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tidegate.protocols.grpc_frames import Buffer

LONGEST = 10
"""Bytes of the longest one: 64 bits, seven in each."""

_WORD = 8
_PIECE = 2**16
"""Bytes of variable-length integers that are read at once, and numbers that are written."""
_MASKS = np.array([int.from_bytes(b"\x7f" * n, "little") for n in range(_WORD + 1)], np.uint64)
"""What counts of the eight bytes from the first of an integer on, by how many it has."""
_HALVES = tuple(
    (np.uint64(lower), np.uint64(gap))
    for lower, gap in (
        (0x007F007F007F007F, 1),
        (0x00003FFF00003FFF, 2),
        (0x000000000FFFFFFF, 4),
    )
)
"""The lower half of each pair of groups of bits, and the gap between the two."""
_BOUNDS = np.array([1 << (7 * n) for n in range(1, LONGEST)], np.uint64)
"""The least integers that take one byte more."""


def read_length(message: Buffer, position: int) -> tuple[int, int]:
    """Return the variable-length integer at ``position`` and where it ends.

    Raises:
        IndexError: it does not end, or is longer than the size of any field.
    """
    value = shift = 0
    while True:
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 28:
            raise IndexError


def write_length(value: int) -> bytes:
    """Return ``value`` as a variable-length integer."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def count_integers(packed: Buffer) -> int:
    """Return how many variable-length integers ``packed`` holds.

    Raises:
        IndexError: the last one does not end, or one is longer than any.
    """
    data = np.frombuffer(packed, np.uint8)
    if not len(data):
        return 0
    more = data >= 0x80
    if more[-1]:
        raise IndexError
    count = len(data) - int(np.count_nonzero(more))
    if count < len(data) and len(data) > LONGEST:
        # Ten bytes in a row of which none is the last: arrays of places would be far larger.
        two = more[1:] & more[:-1]
        four = two[2:] & two[:-2]
        eight = four[4:] & four[:-4]
        if (eight[:-2] & two[8:]).any():
            raise IndexError
    return count


def read_integers(packed: Buffer, start: int, count: int) -> npt.NDArray[np.uint64]:
    """Return the ``count`` integers that lie in ``packed`` from ``start`` to its end."""
    data = np.frombuffer(packed, np.uint8, offset=start)
    if len(data) == count:
        return data.astype(np.uint64)
    values = np.empty(count, np.uint64)
    # Eight bytes can be taken from anywhere, even where the last integer begins.
    padded = np.frombuffer(bytes(packed) + bytes(2 * _WORD), np.uint8, offset=start)
    words = np.ndarray(len(padded) - _WORD + 1, "<u8", padded, strides=(1,))
    first = done = 0
    while done < count:
        last = np.flatnonzero(data[first : first + _PIECE] < 0x80) + first
        starts = np.empty_like(last)
        starts[0] = first
        starts[1:] = last[:-1] + 1
        lengths = last - starts + 1
        found = _joined(words[starts] & _MASKS[np.minimum(lengths, _WORD)])
        longer = np.flatnonzero(lengths > _WORD)
        if len(longer):
            rest = words[starts[longer] + _WORD] & _MASKS[lengths[longer] - _WORD]
            found[longer] |= _joined(rest) << np.uint64(7 * _WORD)
        values[done : done + len(found)] = found
        done += len(found)
        first = int(last[-1]) + 1
    return values


def write_integers(values: npt.NDArray[np.uint64]) -> bytes | memoryview:
    """Return ``values`` as variable-length integers, one after the other."""
    if not len(values):
        return b""
    if int(values.max()) < 0x80:
        return values.astype(np.uint8).data
    return b"".join(
        _written(values[start : start + _PIECE]) for start in range(0, len(values), _PIECE)
    )


def _written(values: npt.NDArray[np.uint64]) -> bytes:
    lengths = np.searchsorted(_BOUNDS, values, side="right") + 1
    ends = np.cumsum(lengths)
    starts = ends - lengths
    encoded = np.empty(int(ends[-1]), np.uint8)
    for place in range(int(lengths.max())):
        more = np.flatnonzero(lengths > place)
        group = (values[more] >> np.uint64(7 * place)).astype(np.uint8) & np.uint8(0x7F)
        encoded[starts[more] + place] = group | np.where(
            lengths[more] > place + 1, np.uint8(0x80), np.uint8(0)
        )
    return encoded.tobytes()


def _joined(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return the numbers whose bits lie in the lower seven of each byte, the lowest first."""
    for lower, gap in _HALVES:
        words = (words & lower) | ((words & ~lower) >> gap)
    return words
