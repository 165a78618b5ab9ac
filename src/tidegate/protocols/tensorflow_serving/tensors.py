"""``TensorProto``: bytes to tensors and back, without a Python object for each element.

Source: ``tensor.proto`` of TensorFlow. What it leaves to the code is settled as TensorFlow's
``Tensor::FromProto`` does it: ``tensor_content`` goes before the typed fields, the last value of a
typed field stands for all that are missing, and none at all for zeros.

Here the elements of a typed field are taken from where they lie, if they lie in one piece behind
the type and the shape, as every serializer writes them. Anything else goes through protobuf's own
parser, which has the last word on what is malformed.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt

from tidegate.errors import InvalidInput
from tidegate.protocols.descriptors import parsed
from tidegate.protocols.grpc_frames import Buffer
from tidegate.protocols.open_inference.tensors import (
    INTEGER_RANGES,
    checked_shape,
    from_raw,
    object_array,
    to_raw,
)
from tidegate.protocols.tensorflow_serving import messages
from tidegate.protocols.tensorflow_serving.dtypes import (
    CONTENT,
    FIELDS,
    NUMBERS,
    dtype_of,
    name_of,
)
from tidegate.protocols.varints import (
    count_integers,
    read_integers,
    read_length,
    write_integers,
    write_length,
)
from tidegate.types import Array, DType, Tensor, element_count

_DTYPE, _SHAPE, _VERSION = 0x08, 0x12, 0x18
_BY_TAG = {field.tag: field for field in (CONTENT, *FIELDS.values())}
_STRINGS = FIELDS[DType.BYTES]
_MOST_TEXTS = 4096
"""Strings that are read one by one; the parser is quicker with many."""
_LONGEST_HEAD = 4096
"""Bytes of a tensor's type and shape that are worth remembering."""


class Unusual(Exception):
    """A message is not laid out as serializers do it, or it is malformed."""


def read_tensor(name: str, message: Buffer, start: int, end: int, limit: int) -> Tensor:
    """Return the tensor ``name``, whose ``TensorProto`` lies from ``start`` to ``end``.

    Args:
        name: what it is called.
        message: what it lies in; a large tensor lies over it without a copy.
        start: where it begins.
        end: where it ends, within ``message``.
        limit: the most bytes that a few values may stand for.

    Raises:
        Unusual: it must be read by :func:`tensor_of`.
        InvalidInput: type, shape and elements do not agree.
    """
    at = _end_of_head(message, start, end)
    dtype, shape = _head(name, bytes(message[start:at]))
    if at == end:
        return Tensor(name, dtype, _filled(name, dtype, shape, None, limit))
    width = 1 if message[at] < 0x80 else 2
    field = _BY_TAG.get(bytes(message[at : at + width]))
    if field is None:
        raise Unusual
    if field == _STRINGS and dtype is DType.BYTES:
        values = _texts(message, at, end)
        return Tensor(name, dtype, _filled(name, dtype, shape, values, limit))
    size, at = read_length(message, at + width)
    if at + size != end:
        raise Unusual
    elements = memoryview(message)[at:end]
    if field == CONTENT:
        if not size:
            raise Unusual
        return _from_content(name, dtype, shape, elements)
    if field != FIELDS[dtype]:
        raise _wrong_field(name, dtype, field.name)
    values = _numbers(name, dtype, elements)
    return Tensor(name, dtype, _filled(name, dtype, shape, values, limit))


def _texts(message: Buffer, at: int, end: int) -> Array:
    """Return the strings that lie between, if nothing else does and they are few."""
    found: list[bytes] = []
    while at < end:
        if message[at] != _STRINGS.tag[0] or len(found) >= _MOST_TEXTS:
            raise Unusual
        size, start = read_length(message, at + 1)
        at = start + size
        found.append(bytes(message[start:at]))
    if at != end:
        raise Unusual
    return object_array(found, (len(found),))


def _end_of_head(message: Buffer, start: int, end: int) -> int:
    """Return where a tensor's type and shape end and its elements begin."""
    at = start
    while at < end:
        tag = message[at]
        if tag == _SHAPE:
            size, at = read_length(message, at + 1)
            at += size
        elif tag in (_DTYPE, _VERSION):
            _, at = read_length(message, at + 1)
        else:
            break
    if at > end or at - start > _LONGEST_HEAD:
        raise Unusual
    return at


def tensor_of(name: str, proto: Any, limit: int) -> Tensor:
    """Return the tensor ``name`` of a parsed ``TensorProto``, however it was laid out.

    Raises:
        InvalidInput: type, shape and elements do not agree.
    """
    dtype, shape = _dtype_and_shape(name, proto)
    if proto.tensor_content:
        return _from_content(name, dtype, shape, proto.tensor_content)
    field = FIELDS[dtype]
    fields = [descriptor.name for descriptor, _ in proto.ListFields()]
    others = [other for other in fields if other.endswith("_val") and other != field.name]
    if field.name not in fields:
        if others:
            raise _wrong_field(name, dtype, others[0])
        return Tensor(name, dtype, _filled(name, dtype, shape, None, limit))
    if dtype is DType.BYTES:
        values: Array = object_array(list(proto.string_val), (len(proto.string_val),))
        return Tensor(name, dtype, _filled(name, dtype, shape, values, limit))
    # Written again, the field is packed, whatever form it came in.
    alone = messages.TensorProto()
    getattr(alone, field.name).MergeFrom(getattr(proto, field.name))
    packed = alone.SerializeToString()
    _, at = read_length(packed, len(field.tag))
    values = _numbers(name, dtype, memoryview(packed)[at:])
    return Tensor(name, dtype, _filled(name, dtype, shape, values, limit))


def write_tensor(tensor: Tensor) -> tuple[bytes, bytes | memoryview]:
    """Return the ``TensorProto`` of ``tensor`` in two parts; a large second one is no copy.

    The elements are in the typed field, where TensorFlow Serving puts those of its answers.
    """
    dtype = tensor.dtype
    raw = _packed(tensor)
    size = len(raw)
    tag = b"" if not size or dtype is DType.BYTES else FIELDS[dtype].tag
    return _tensor_head(NUMBERS[dtype], tensor.data.shape, tag, size), raw


@functools.lru_cache(maxsize=1024)
def _tensor_head(number: int, shape: tuple[int, ...], tag: bytes, size: int) -> bytes:
    head = messages.TensorProto(dtype=number)
    head.tensor_shape.SetInParent()
    for dimension in shape:
        head.tensor_shape.dim.add(size=dimension)
    return bytes(head.SerializeToString()) + (tag + write_length(size) if tag else b"")


def _packed(tensor: Tensor) -> bytes | memoryview:
    """Return what comes after the tag of the typed field, or all of the strings."""
    dtype, data = tensor.dtype, tensor.data
    if dtype is DType.BYTES:
        parts: list[bytes] = []
        for element in data.reshape(-1).tolist():
            parts += (_STRINGS.tag, write_length(len(element)), element)
        return b"".join(parts)
    if dtype in (DType.FP32, DType.FP64, DType.BOOL):
        return to_raw(tensor)
    flat = np.ascontiguousarray(data).reshape(-1)
    if flat.dtype.kind == "i":
        return write_integers(flat.astype(np.int64).view(np.uint64))
    if flat.dtype.itemsize == 2:  # the bits of half precision, or integers that fit
        flat = flat.view(np.uint16)
    return write_integers(flat.astype(np.uint64))


@functools.lru_cache(maxsize=1024)
def _head(name: str, head: bytes) -> tuple[DType, tuple[int, ...]]:
    """Return the type and the shape in a ``TensorProto`` without elements."""
    return _dtype_and_shape(name, parsed(messages.TensorProto, head))


def _dtype_and_shape(name: str, proto: Any) -> tuple[DType, tuple[int, ...]]:
    dtype = dtype_of(name, proto.dtype)
    shape = proto.tensor_shape
    if shape.unknown_rank:
        raise InvalidInput(
            f"the shape of input {name!r} has an unknown rank; send the shape of the data"
        )
    return dtype, checked_shape(name, [dimension.size for dimension in shape.dim])


def _from_content(name: str, dtype: DType, shape: tuple[int, ...], content: Buffer) -> Tensor:
    if dtype is DType.BYTES:
        return Tensor(name, dtype, _strings(name, shape, content))
    return from_raw(name, dtype, shape, content)


def _strings(name: str, shape: tuple[int, ...], content: Buffer) -> Array:
    """Read the lengths of all elements, and then the elements."""
    count, size = element_count(shape), len(content)
    data = bytes(content)
    lengths, at = [], 0
    if count <= size:
        try:
            for _ in range(count):
                length, at = read_length(data, at)
                lengths.append(length)
        except IndexError:
            lengths = []
    if len(lengths) != count or at + sum(lengths) != size:
        raise InvalidInput(
            f"the tensor_content of input {name!r} has {size} bytes, which are not the "
            f"{count} strings of shape {list(shape)}; write the length of each as a varint, and "
            "then all of them, or put them into string_val"
        )
    elements = []
    for length in lengths:
        elements.append(data[at : at + length])
        at += length
    return object_array(elements, shape)


def _numbers(name: str, dtype: DType, packed: Buffer) -> Array:
    """Return the values of a packed field of ``dtype``.

    Raises:
        Unusual: it is no such field.
        InvalidInput: a value is none of the type.
    """
    numpy = dtype.numpy
    if dtype in (DType.FP32, DType.FP64):
        if len(packed) % numpy.itemsize:
            raise Unusual
        return np.ndarray((len(packed) // numpy.itemsize,), numpy, packed)
    try:
        count = count_integers(packed)
    except IndexError:
        raise Unusual from None
    if dtype is DType.BOOL and count == len(packed):
        found: Array = np.frombuffer(packed, np.uint8) != 0
        return found
    if count == len(packed):  # none is above 127
        small = np.frombuffer(packed, np.uint8)
        return small.astype(np.uint16).view(numpy) if numpy.kind in "fV" else small.astype(numpy)
    return _narrowed(name, dtype, read_integers(packed, 0, count))


def _narrowed(name: str, dtype: DType, wide: npt.NDArray[np.uint64]) -> Array:
    """Return the integers of a field as ``dtype``."""
    numpy = dtype.numpy
    if dtype is DType.BOOL:
        truth: Array = wide != 0
        return truth
    if dtype in (DType.FP16, DType.BF16):
        return wide.astype(np.uint16).view(numpy)
    if dtype in (DType.INT64, DType.UINT64):
        return wide.view(numpy)
    if dtype is DType.UINT32:
        return wide.astype(np.uint32)
    # The field is one of 32 bits, whatever a caller wrote.
    narrow: Array = wide.astype(np.uint32).view(np.int32)
    if dtype is DType.INT32:
        return narrow
    least, greatest = INTEGER_RANGES[dtype]
    if len(narrow) and (narrow.min() < least or narrow.max() > greatest):
        worst = narrow.min() if narrow.min() < least else narrow.max()
        raise InvalidInput(
            f"input {name!r} has the value {worst}, which {name_of(dtype)} cannot hold; send "
            f"values from {least} to {greatest}"
        )
    return narrow.astype(numpy)


def _filled(
    name: str, dtype: DType, shape: tuple[int, ...], values: Array | None, limit: int
) -> Array:
    """Return ``values`` as an array of ``shape``, the last one repeated; ``None``: zeros."""
    count = element_count(shape)
    present = 0 if values is None else len(values)
    if values is not None and present == count:
        return values.reshape(shape)
    if present > count:
        raise InvalidInput(
            f"input {name!r} has {present} elements in {FIELDS[dtype].name}, but shape "
            f"{list(shape)} takes {count}; send the shape of the data"
        )
    size = count * dtype.numpy.itemsize
    if size > limit:
        raise InvalidInput(
            f"input {name!r} has {present} elements in {FIELDS[dtype].name} for the shape "
            f"{list(shape)}, which takes {size} bytes; so few stand for at most {limit}, the "
            "limit of a message: send all elements"
        )
    array: Array = np.empty(count, dtype.numpy)
    if values is None or not present:
        array.fill(b"" if dtype is DType.BYTES else 0)
    else:
        array[:present] = values
        array[present:] = values[-1]
    return array.reshape(shape)


def _wrong_field(name: str, dtype: DType, found: str) -> InvalidInput:
    return InvalidInput(
        f"input {name!r} is {name_of(dtype)} but its elements are in {found}; put them into "
        f"{FIELDS[dtype].name} or tensor_content"
    )
