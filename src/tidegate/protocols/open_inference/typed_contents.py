"""Typed contents of the gRPC protocol: the elements of a tensor as numbers in a message.

Source: ``InferTensorContents`` in ``inference_grpc.md`` of
https://github.com/kserve/open-inference-protocol.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tidegate.errors import InvalidInput
from tidegate.protocols.open_inference.tensors import INTEGER_RANGES, object_array
from tidegate.protocols.varints import read_integers, read_length
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
    return _ranged(name, dtype, read_integers(packed, start, count)).reshape(shape)


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
