"""Values with the type and the rank of an input: what a protocol without types makes of data."""

from __future__ import annotations

from typing import Any

import numpy as np

from tidegate.errors import InvalidInput
from tidegate.protocols.open_inference.tensors import INTEGER_RANGES, object_array
from tidegate.types import Array, DType, Tensor, TensorSpec


def fit_numbers(array: Array, spec: TensorSpec) -> Array:
    """Return numbers with the type of an input; digits of a fraction may be lost, no value.

    Raises:
        InvalidInput: an element has no value of that type.
    """
    wanted = spec.dtype.numpy
    if array.dtype == wanted:
        return array
    if wanted.kind in "iub":
        _check_whole(array, spec)
    with np.errstate(over="ignore", invalid="ignore"):
        found = array.astype(wanted)
        if wanted.kind in "fV" and array.size:
            grown = np.isinf(found) & np.isfinite(array.astype(np.float64, copy=False))
            if grown.any():
                raise _no_value(array[grown][0], spec)
    return found


def fit_element(content: bytes, spec: TensorSpec) -> Tensor:
    """Return bytes as the only element of an input of BYTES."""
    rank = 1 if spec.shape is None else len(spec.shape)
    return Tensor(spec.name, DType.BYTES, object_array([content], (1,) * rank))


def _check_whole(array: Array, spec: TensorSpec) -> None:
    if not array.size:
        return
    least, greatest = (0, 1) if spec.dtype is DType.BOOL else INTEGER_RANGES[spec.dtype]
    if array.dtype.kind == "f":
        broken = ~np.isfinite(array) | (array != np.rint(array))
        if broken.any():
            raise _no_value(array[broken][0], spec)
    lowest, highest = int(array.min()), int(array.max())
    if lowest < least or highest > greatest:
        raise _no_value(lowest if lowest < least else highest, spec)


def _no_value(value: Any, spec: TensorSpec) -> InvalidInput:
    return InvalidInput(
        f"the input {spec.name!r} is {spec.dtype.value}, which cannot hold {value}"
    )
