"""Typed contents of the gRPC protocol: the elements of a tensor as numbers in a message.

Source: ``InferTensorContents`` in ``inference_grpc.md`` of
https://github.com/kserve/open-inference-protocol.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tidegate.errors import InvalidInput
from tidegate.protocols.grpc_frames import Buffer
from tidegate.protocols.open_inference.tensors import INTEGER_RANGES, object_array
from tidegate.types import Array, DType, Parameter, element_count

CONTENT_FIELDS = {
    DType.BOOL: "bool_contents",
    DType.INT8: "int_contents",
    DType.INT16: "int_contents",
    DType.INT32: "int_contents",
    DType.INT64: "int64_contents",
    DType.UINT8: "uint_contents",
    DType.UINT16: "uint_contents",
    DType.UINT32: "uint_contents",
    DType.UINT64: "uint64_contents",
    DType.FP32: "fp32_contents",
    DType.FP64: "fp64_contents",
    DType.BYTES: "bytes_contents",
}
"""The field for typed contents of each type; FP16 and BF16 have none."""

_WORD = 8
_PIECE = 2**16
"""Bytes of variable-length integers that are read at once."""
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


def typed_data(name: str, dtype: DType, shape: tuple[int, ...], contents: Any) -> Array:
    """Return the data in the ``InferTensorContents`` of the input ``name``.

    The contents are serialised again: whatever form they came in, protobuf writes one field
    packed, so that its numbers are read from bytes instead of through Python objects.

    Raises:
        InvalidInput: the contents are not in the field of ``dtype``, are not as many as
            ``shape`` says, or have a value that ``dtype`` cannot hold.
    """
    field = CONTENT_FIELDS.get(dtype)
    if field is None:
        raise InvalidInput(
            f"input {name!r} is {dtype.value}, which has no typed contents; "
            "send it in raw_input_contents"
        )
    found = [descriptor.name for descriptor, _ in contents.ListFields()]
    if any(other != field for other in found):
        raise InvalidInput(
            f"input {name!r} is {dtype.value} but its contents are in {', '.join(found)}; "
            f"put them into {field}"
        )
    count = element_count(shape)
    present = len(getattr(contents, field))
    if present != count:
        raise InvalidInput(
            f"input {name!r} has {present} elements in {field}, but shape {list(shape)} takes "
            f"{count}; send the shape of the data or the data in raw_input_contents"
        )
    if dtype is DType.BYTES:
        return object_array(list(contents.bytes_contents), shape)
    if not count:
        return np.empty(shape, dtype.numpy)
    packed = contents.SerializeToString()
    _, start = read_length(packed, 1)
    if dtype.numpy.kind in "fb":
        return np.frombuffer(packed, dtype.numpy, count, start).reshape(shape)
    return _ranged(name, dtype, _integers(packed, start, count)).reshape(shape)


def _integers(packed: bytes, start: int, count: int) -> npt.NDArray[np.uint64]:
    """Return the ``count`` variable-length integers that ``packed`` holds from ``start`` on."""
    data = np.frombuffer(packed, np.uint8, offset=start)
    if len(data) == count:
        return data.astype(np.uint64)
    values = np.empty(count, np.uint64)
    # Eight bytes can be taken from anywhere, even where the last integer begins.
    padded = np.frombuffer(packed + bytes(2 * _WORD), np.uint8, offset=start)
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


def _joined(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return the numbers whose bits lie in the lower seven of each byte, the lowest first."""
    for lower, gap in _HALVES:
        words = (words & lower) | ((words & ~lower) >> gap)
    return words


def _ranged(name: str, dtype: DType, values: npt.NDArray[np.uint64]) -> Array:
    """Return the integers as ``dtype``; a signed one's come in two's complement."""
    wide: Array = values.view(np.int64) if dtype.numpy.kind == "i" else values
    least, greatest = INTEGER_RANGES[dtype]
    lowest, highest = int(wide.min()), int(wide.max())
    if lowest < least or highest > greatest:
        raise InvalidInput(
            f"input {name!r} has the value {lowest if lowest < least else highest}, which "
            f"{dtype.value} cannot hold; send values from {least} to {greatest}"
        )
    return wide.astype(dtype.numpy)


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
    """Return ``value`` as protobuf's variable-length integer."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def write_parameter(entry: Any, value: Parameter) -> None:
    """Put ``value`` into an ``InferParameter``.

    Raises:
        TypeError: it is no bool, integer, float or text.
        ValueError: an integer has more than 64 bits, or a text no UTF-8 form.
    """
    if isinstance(value, bool):
        entry.bool_param = value
    elif isinstance(value, int):
        if value < 2**63:
            entry.int64_param = value
        else:
            entry.uint64_param = value
    elif isinstance(value, float):
        entry.double_param = value
    else:
        entry.string_param = value
