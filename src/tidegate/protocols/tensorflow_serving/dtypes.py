"""TensorFlow's element types and ours, and where a ``TensorProto`` keeps elements of each.

Source: ``types.proto`` and ``tensor.proto`` of TensorFlow.
"""

from __future__ import annotations

from typing import NamedTuple

from tidegate.errors import InvalidInput
from tidegate.protocols.tensorflow_serving import messages
from tidegate.protocols.varints import write_length
from tidegate.types import DType

_NAMES = {
    value.number: value.name
    for value in messages.TensorProto.DESCRIPTOR.fields_by_name["dtype"].enum_type.values
}
_OURS = {
    1: DType.FP32,
    2: DType.FP64,
    3: DType.INT32,
    4: DType.UINT8,
    5: DType.INT16,
    6: DType.INT8,
    7: DType.BYTES,
    9: DType.INT64,
    10: DType.BOOL,
    14: DType.BF16,
    17: DType.UINT16,
    19: DType.FP16,
    22: DType.UINT32,
    23: DType.UINT64,
}
NUMBERS = {dtype: number for number, dtype in _OURS.items()}
"""TensorFlow's numbers of our types."""


class Field(NamedTuple):
    """A field of ``TensorProto``."""

    name: str
    tag: bytes
    """What comes before its length when it is packed."""


def _field(name: str) -> Field:
    number = messages.TensorProto.DESCRIPTOR.fields_by_name[name].number
    return Field(name, write_length(number << 3 | 2))


CONTENT = _field("tensor_content")
"""Where elements of any type may be."""
FIELDS = {
    dtype: _field(name)
    for name, dtypes in {
        "float_val": (DType.FP32,),
        "double_val": (DType.FP64,),
        "int_val": (DType.INT32, DType.INT16, DType.INT8, DType.UINT16, DType.UINT8),
        "string_val": (DType.BYTES,),
        "int64_val": (DType.INT64,),
        "bool_val": (DType.BOOL,),
        "half_val": (DType.FP16, DType.BF16),
        "uint32_val": (DType.UINT32,),
        "uint64_val": (DType.UINT64,),
    }.items()
    for dtype in dtypes
}
"""Where else those of a type are."""


def name_of(dtype: DType) -> str:
    """Return what TensorFlow calls a type: ``DT_FLOAT``."""
    return str(_NAMES[NUMBERS[dtype]])


def dtype_of(name: str, number: int) -> DType:
    """Return the type with TensorFlow's ``number``, that of the input ``name``.

    Raises:
        InvalidInput: it is none that a model here can take.
    """
    found = _OURS.get(number)
    if found is None:
        called = _NAMES.get(number, str(number))
        known = ", ".join(map(name_of, NUMBERS))
        raise InvalidInput(f"input {name!r} has the dtype {called}; use one of {known}")
    return found
