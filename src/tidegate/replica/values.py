"""What hooks return, as arrays and JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tidegate.errors import InferenceFailed
from tidegate.types import Array, DType, Json, Tensor

_DEEPEST = 100


def is_array(value: object) -> bool:
    """Whether ``value`` is an array of numpy's, or a tensor of a framework's."""
    return isinstance(value, np.ndarray) or (
        hasattr(value, "__array__")
        and hasattr(value, "shape")
        and not isinstance(value, np.generic)
    )


def as_array(where: str, value: Any) -> Array:
    """Return an array, a framework's tensor or nested lists as an array in the CPU's memory.

    Texts become BYTES: an object array of ``bytes``.

    Raises:
        InferenceFailed: it is none of these.
    """
    try:
        if hasattr(value, "detach"):  # a tensor of PyTorch's, wherever it is
            value = value.detach().cpu()
        array = np.asarray(value)
        dtype = DType.of(array.dtype)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InferenceFailed(f"{where} is no array: {error}") from error
    if dtype is not DType.BYTES:
        return np.require(array, dtype.numpy, "C")
    texts = np.empty(array.shape, np.object_)
    flat = texts.reshape(-1)
    for place, element in enumerate(array.reshape(-1).tolist()):
        if isinstance(element, str):
            element = element.encode()
        if not isinstance(element, bytes):
            raise InferenceFailed(
                f"{where} is no array of numbers, bytes or texts: it holds a "
                f"{type(element).__name__}"
            )
        flat[place] = element
    return texts


def as_dtype(array: Array, dtype: DType) -> Array:
    """Return ``array`` with the type that is wanted, if it is of the same kind: FP64 as FP32."""
    wanted = dtype.numpy
    if array.dtype == wanted or dtype is DType.BYTES or array.dtype == np.object_:
        return array
    same = np.can_cast(array.dtype, wanted, "same_kind") or (
        array.dtype.kind in "fV" and wanted.kind in "fV"
    )
    return array.astype(wanted) if same else array


def tensor_of(where: str, name: str, value: Any, dtype: DType | None = None) -> Tensor:
    """Return a tensor of what a hook gave.

    Raises:
        InferenceFailed: it is no array, or of another type than ``dtype``.
    """
    array = as_array(f"{name!r} of {where}", value)
    if dtype is None:
        return Tensor.of(name, array)
    array = as_dtype(array, dtype)
    found = DType.of(array.dtype)
    if found is not dtype:
        raise InferenceFailed(
            f"{name!r} of {where} is {found.value}, but must be {dtype.value}: convert it there"
        )
    return Tensor(name, dtype, np.require(array, requirements="C"))


def as_json(where: str, value: Any, depth: int = 0) -> Json:
    """Return plain JSON of what may hold arrays, numbers of numpy's and tuples.

    Raises:
        InferenceFailed: there is something in it that JSON has not.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if depth > _DEEPEST:
        raise InferenceFailed(f"{where} is nested more than {_DEEPEST} deep")
    if isinstance(value, Mapping):
        return {str(key): as_json(where, item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(where, item, depth + 1) for item in value]
    if isinstance(value, np.generic):
        return as_json(where, value.item(), depth + 1)
    if is_array(value):
        return as_json(where, as_array(where, value).tolist(), depth + 1)
    if isinstance(value, bytes) and depth:
        # Of an array of texts.
        try:
            return value.decode()
        except UnicodeDecodeError:
            pass
    raise InferenceFailed(
        f"{where} holds a {type(value).__name__}, which JSON has not: return text, numbers, lists "
        "and dicts of them, arrays, or bytes alone"
    )
