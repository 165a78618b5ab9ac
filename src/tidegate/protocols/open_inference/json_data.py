"""The ``data`` of a JSON tensor: nested or flat lists to arrays, and arrays to flat lists.

Source: "Tensor Data" of the specification. What it leaves open is settled so:

- FP16 and BF16 are plain numbers, both ways (Triton refuses them in JSON).
- Types are strict: ``true`` is no number, ``1.0`` no integer, ``1`` no BOOL. A number that
  the type cannot hold is an error, never wrapped or made infinite.
- JSON has no NaN. ``null`` stands for it both ways, as MLServer has it; ``tritonclient``
  reads it as NaN too. (Triton writes a bare ``NaN``, which few parsers take.) An infinite
  output is an error that says to ask for binary data.
"""

from __future__ import annotations

import itertools
from types import NoneType
from typing import Any

import numpy as np

from tidegate.errors import InvalidInput
from tidegate.protocols.open_inference.tensors import (
    INTEGER_RANGES,
    MAX_RANK,
    object_array,
    shown,
)
from tidegate.types import Array, DType, Tensor, element_count

_FLOATS: frozenset[type] = frozenset((float, int, NoneType))
_ALLOWED: dict[str, frozenset[type]] = {
    "b": frozenset((bool,)),
    "i": frozenset((int,)),
    "u": frozenset((int,)),
    "f": _FLOATS,
    "V": _FLOATS,
    "O": frozenset((str,)),
}
"""The Python types of elements for each kind of numpy type; V is bfloat16."""
_WORDS = {"b": "true or false", "i": "integers", "u": "integers", "O": "strings"}


def from_json(name: str, dtype: DType, shape: tuple[int, ...], data: object) -> Array:
    """Return the array of the input ``name``, whose elements are ``data``.

    ``data`` is a list: flat, or nested exactly as ``shape``, which is a checked one.

    Raises:
        InvalidInput: the nesting, the number of elements, or an element is wrong.
    """
    if not isinstance(data, list):
        raise InvalidInput(
            f"the data of input {name!r} is {shown(data)}; send a list of its elements"
        )
    flat = _flat(name, shape, data)
    count = element_count(shape)
    if len(flat) != count:
        raise InvalidInput(
            f"input {name!r} has {len(flat)} elements in its data, but shape {list(shape)} takes "
            f"{count}; send the shape of the data"
        )
    kind = dtype.numpy.kind
    if not _ALLOWED[kind].issuperset(map(type, flat)):
        raise _wrong_element(name, dtype, flat)
    if kind == "O":
        return object_array([text.encode() for text in flat], shape)
    if kind in "iu":
        return _integers(name, dtype, flat).reshape(shape)
    if kind == "b":
        return np.array(flat, np.bool_).reshape(shape)
    return _floats(name, dtype, flat).reshape(shape)


def to_json(tensor: Tensor) -> Any:
    """Return the elements of ``tensor`` as orjson takes them: a flat array or list.

    Raises:
        InvalidInput: an element of a BYTES tensor is not text in UTF-8.
    """
    flat = tensor.data.reshape(-1)
    if tensor.dtype is DType.BYTES:
        try:
            return [element.decode() for element in flat.tolist()]
        except UnicodeDecodeError as error:
            raise InvalidInput(
                f"output {tensor.name!r} has the element {shown(error.object)}, which is not "
                "UTF-8 and cannot go into JSON; ask for binary data "
                '("parameters": {"binary_data": true} in the requested output)'
            ) from error
    if tensor.dtype is DType.BF16:
        with np.errstate(invalid="ignore"):
            return flat.astype(np.float32)
    return np.ascontiguousarray(flat)


def refuse_infinite(tensor: Tensor) -> None:
    """Raise when ``tensor`` has an infinite element, which JSON would turn into ``null``.

    Raises:
        InvalidInput: it has.
    """
    if tensor.dtype.numpy.kind not in "fV":
        return
    with np.errstate(invalid="ignore"):  # ml_dtypes complains of signalling NaN
        infinite = np.isinf(tensor.data).any()
    if not infinite:
        return
    raise InvalidInput(
        f"output {tensor.name!r} has an infinite element, which JSON has no number for; "
        'ask for binary data ("parameters": {"binary_data": true} in the requested output)'
    )


def _flat(name: str, shape: tuple[int, ...], data: list[Any]) -> list[Any]:
    """Return the elements of a nested list, level by level and without recursion."""
    if not data or type(data[0]) is not list:
        # A list further on is found as an element of the wrong type.
        return data
    nesting = [len(data)]
    level = data
    while level and type(level[0]) is list:
        if len(nesting) > MAX_RANK:
            raise InvalidInput(
                f"the data of input {name!r} is nested more than {MAX_RANK} deep; "
                "nest it as its shape says or send a flat list"
            )
        length = len(level[0])
        if {*map(type, level)} != {list} or {*map(len, level)} != {length}:
            raise InvalidInput(
                f"the rows in the data of input {name!r} at depth {len(nesting)} are not all "
                f"lists of {length}; nest it as its shape says or send a flat list"
            )
        nesting.append(length)
        level = list(itertools.chain.from_iterable(level))
    # Beneath a dimension of 0 there is nothing that could show the others.
    if tuple(nesting) != shape[: len(nesting)] or (level and len(nesting) != len(shape)):
        raise InvalidInput(
            f"the data of input {name!r} is nested as {nesting}, but its shape is {list(shape)}; "
            "make them agree or send a flat list"
        )
    return level


def _integers(name: str, dtype: DType, flat: list[int]) -> Array:
    least, greatest = INTEGER_RANGES[dtype]
    if flat:
        lowest, highest = min(flat), max(flat)
        if lowest < least or highest > greatest:
            raise InvalidInput(
                f"input {name!r} has the value {lowest if lowest < least else highest}, which "
                f"{dtype.value} cannot hold; send values from {least} to {greatest}"
            )
    return np.array(flat, dtype.numpy)


def _floats(name: str, dtype: DType, flat: list[float | None]) -> Array:
    narrow = dtype is DType.BF16
    try:
        with np.errstate(over="raise"):
            array = np.array(flat, np.float32 if narrow else dtype.numpy)
    except FloatingPointError:
        raise _too_great(name, dtype, flat) from None
    if narrow:
        array = array.astype(dtype.numpy)
        if np.isinf(array).any():
            raise _too_great(name, dtype, flat)
    return array


def _too_great(name: str, dtype: DType, flat: list[float | None]) -> InvalidInput:
    value = max((number for number in flat if number is not None), key=abs)
    return InvalidInput(
        f"input {name!r} has the value {value}, which {dtype.value} cannot hold; "
        "send smaller values or another datatype"
    )


def _wrong_element(name: str, dtype: DType, flat: list[Any]) -> InvalidInput:
    kind = dtype.numpy.kind
    allowed = _ALLOWED[kind]
    index, value = next((i, v) for i, v in enumerate(flat) if type(v) not in allowed)
    return InvalidInput(
        f"element {index} in the data of the {dtype.value} input {name!r} is {shown(value)}; "
        f"send {_WORDS.get(kind, 'numbers (null for NaN)')}"
    )
