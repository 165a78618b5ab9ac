"""Tensors as the protocol's raw bytes: what gRPC and the binary REST extension share.

Elements lie in row-major order, little-endian, without padding. An element of a BYTES
tensor is a little-endian length of four bytes and then as many bytes. Source: "Tensor
Data" of the specification and Triton's binary tensor data extension.
"""

from __future__ import annotations

import math
import reprlib
import struct
from collections.abc import Iterable, Sequence

import numpy as np

from tidegate.errors import InvalidInput
from tidegate.protocols.grpc_frames import Buffer
from tidegate.types import Array, DType, Tensor, element_count

MAX_RANK = 32
"""Dimensions of a tensor: the fewest that any supported numpy can hold."""

MAX_NAME = 1024
"""Characters in the name of a tensor: names are repeated in errors and remembered."""

DTYPES = {dtype.value: dtype for dtype in DType}
"""The element types by the names that the protocol gives them."""

INTEGER_RANGES = {
    dtype: (int(np.iinfo(dtype.numpy).min), int(np.iinfo(dtype.numpy).max))
    for dtype in DType
    if dtype.numpy.kind in "iu"
}
"""The least and the greatest value of each integer type."""

_MOST_ELEMENTS = 2**59
"""What numpy can address when each takes eight bytes."""
_COPY_BELOW = 16 * 1024
_LENGTH = struct.Struct("<I")
_BRIEF = reprlib.Repr()
"""Writes no more of a value than is shown, however large it is."""
_BRIEF.maxstring = _BRIEF.maxother = _BRIEF.maxlong = 100
_BRIEF.maxlist = _BRIEF.maxdict = _BRIEF.maxtuple = 40


def dtype_of(name: str, datatype: object) -> DType:
    """Return the element type called ``datatype``, the type of the input ``name``.

    Raises:
        InvalidInput: the protocol has no such type.
    """
    found = DTYPES.get(datatype) if isinstance(datatype, str) else None
    if found is None:
        raise InvalidInput(
            f"input {name!r} has the datatype {shown(datatype)}; use one of {', '.join(DTYPES)}"
        )
    return found


def checked_name(where: str, name: str) -> str:
    """Return ``name``, which a tensor can have; ``where`` says whose it is.

    Raises:
        InvalidInput: it is too long.
    """
    if len(name) > MAX_NAME:
        raise InvalidInput(
            f"the name of {where} has {len(name)} characters, {shown(name)}; at most {MAX_NAME} "
            "are possible"
        )
    return name


def checked_shape(name: str, dimensions: Sequence[int]) -> tuple[int, ...]:
    """Return ``dimensions`` as a shape that numpy can hold.

    Raises:
        InvalidInput: a negative dimension, too many of them, or a product beyond memory.
    """
    if len(dimensions) > MAX_RANK:
        raise InvalidInput(
            f"the shape of input {name!r} has {len(dimensions)} dimensions; "
            f"at most {MAX_RANK} are possible"
        )
    shape = tuple(dimensions[:])  # protobuf gives a list much sooner than numbers one by one
    if shape and min(shape) < 0:
        raise InvalidInput(
            f"the shape of input {name!r} is {list(shape)}; every dimension must be 0 or more"
        )
    # A dimension of 0 hides the others from the product, but not from numpy.
    if math.prod(filter(None, shape)) > _MOST_ELEMENTS:
        raise InvalidInput(
            f"the shape of input {name!r} is {list(shape)}, more elements than any memory holds; "
            "send the shape of the data"
        )
    return shape


def from_raw(name: str, dtype: DType, shape: tuple[int, ...], raw: Buffer) -> Tensor:
    """Return the tensor whose elements are ``raw``, lying over it without a copy.

    The elements need not be aligned in memory. ``shape`` is a checked one.

    Raises:
        InvalidInput: ``raw`` has not exactly the bytes that ``shape`` says, or holds what is
            no value of ``dtype``.
    """
    if dtype.itemsize is None:
        return Tensor(name, dtype, _elements(name, shape, raw))
    expected = element_count(shape) * dtype.itemsize
    if len(raw) != expected:
        raise InvalidInput(
            f"input {name!r} has {len(raw)} bytes of data, but {dtype.value} of shape "
            f"{list(shape)} takes {expected}; send the shape and datatype of the data"
        )
    data: Array = np.ndarray(shape, dtype.numpy, raw)
    if dtype is DType.BOOL and expected and data.view(np.uint8).max() > 1:
        raise InvalidInput(
            f"input {name!r} is BOOL but has a byte of {data.view(np.uint8).max()}; "
            "write 1 for true and 0 for false"
        )
    return Tensor(name, dtype, data)


def to_raw(tensor: Tensor) -> bytes | memoryview:
    """Return the elements of ``tensor``; a large one's without a copy."""
    data = tensor.data
    if tensor.dtype.itemsize is None:
        return packed_elements(data.reshape(-1).tolist())
    if data.nbytes < _COPY_BELOW:
        return data.tobytes()
    # As numbers of one byte, because numpy exports no buffer of bfloat16.
    return np.ascontiguousarray(data).reshape(-1).view(np.uint8).data


def packed_elements(elements: Iterable[bytes]) -> bytes:
    """Return ``elements`` of a BYTES tensor, each after its length."""
    parts: list[bytes] = []
    for element in elements:
        parts += (_LENGTH.pack(len(element)), element)
    return b"".join(parts)


def object_array(elements: list[bytes], shape: tuple[int, ...]) -> Array:
    """Return the data of a BYTES tensor; ``elements`` are as many as ``shape`` says."""
    data = np.empty(len(elements), np.object_)
    data[:] = elements
    return data.reshape(shape)


def shown(value: object) -> str:
    """Return a value that came from outside, short enough for an error message."""
    text = _BRIEF.repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _elements(name: str, shape: tuple[int, ...], raw: Buffer) -> Array:
    count, size = element_count(shape), len(raw)
    if count * _LENGTH.size > size:
        raise InvalidInput(
            f"input {name!r} has {size} bytes of data, too few for the {count} elements of shape "
            f"{list(shape)}; write each element as its length in four bytes and its bytes"
        )
    data = bytes(raw)
    elements = []
    position = 0
    for index in range(count):
        start = position + _LENGTH.size
        if start > size:
            raise _element_beyond(name, index, position, size)
        position = start + _LENGTH.unpack_from(data, position)[0]
        if position > size:
            raise _element_beyond(name, index, position, size)
        elements.append(data[start:position])
    if position != size:
        raise InvalidInput(
            f"input {name!r} has {size - position} bytes of data after its {count} elements; "
            "send the shape of the data"
        )
    return object_array(elements, shape)


def _element_beyond(name: str, index: int, end: int, size: int) -> InvalidInput:
    return InvalidInput(
        f"element {index} of the BYTES input {name!r} would end at byte {end} of {size}; "
        "write each element as its length in four little-endian bytes and its bytes"
    )
