"""From what a caller has to tensors.

A numpy array says what it is, and is sent so: when the model takes another type, the server's
error says both. A Python number, text or list does not, and takes the type that the model
declares, as long as no value is changed by it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from tidegate.errors import InvalidInput
from tidegate.protocols.open_inference.tensors import INTEGER_RANGES, object_array, shown
from tidegate.types import Array, DType, Signature, Tensor, TensorSpec

_KINDS = {"b": "bools", "i": "integers", "u": "integers", "f": "floats"}


def needs_signature(inputs: object) -> bool:
    """Say whether the model has to be asked before ``inputs`` can be sent.

    It has to, when one is not named, and when one does not say of which type it is.
    """
    if not isinstance(inputs, Mapping):
        return True
    return not all(_says_its_type(value) for value in inputs.values())


def tensors_of(model: str, inputs: object, signature: Signature | None) -> tuple[Tensor, ...]:
    """Return ``inputs``, a mapping by name or the value of the only input, as tensors.

    Args:
        model: the model's name, for messages.
        inputs: what the caller gave.
        signature: the model's; not needed when :func:`needs_signature` says so.

    Raises:
        InvalidInput: a value cannot be a tensor, or not of the type that the model takes.
    """
    specs = {} if signature is None else {spec.name: spec for spec in signature.inputs}
    if not isinstance(inputs, Mapping):
        if len(specs) != 1:
            names = ", ".join(map(repr, specs)) or "none"
            raise InvalidInput(
                f"a single value was given, but model {model!r} has {len(specs)} inputs "
                f"({names}); give a mapping from name to value"
            )
        inputs = {next(iter(specs)): inputs}
    for name in inputs:
        if not isinstance(name, str):
            raise InvalidInput(f"the name of an input is {shown(name)}; give text")
    return tuple(tensor_of(name, value, specs.get(name)) for name, value in inputs.items())


def tensor_of(name: str, value: object, spec: TensorSpec | None = None) -> Tensor:
    """Return ``value`` as the tensor ``name``; ``spec`` gives a Python value its type.

    Raises:
        InvalidInput: it cannot be one.
    """
    if _says_its_type(value):
        return _of_array(name, _as_array(name, value))
    # Text as objects, because numpy's own arrays of text lose zeros at the end.
    if spec is not None and spec.dtype is DType.BYTES:
        return _of_array(name, _as_array(name, value, np.object_))
    natural = _as_array(name, value)
    if natural.dtype.kind in "SU":
        return _of_array(name, _as_array(name, value, np.object_))
    if spec is None:
        return _of_array(name, natural)
    return Tensor(name, spec.dtype, _converted(name, natural, spec.dtype))


def _says_its_type(value: object) -> bool:
    return hasattr(value, "__array__") or hasattr(value, "__array_interface__")


def _as_array(name: str, value: Any, dtype: Any = None) -> Array:
    try:
        return np.asarray(value, dtype)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise InvalidInput(
            f"input {name!r} cannot be made an array: {error}; give a numpy array"
        ) from error


def _of_array(name: str, array: Array) -> Tensor:
    try:
        dtype = DType.of(array.dtype)
    except TypeError as error:
        raise InvalidInput(f"input {name!r}: {error}; convert the array with astype") from error
    if dtype is DType.BYTES:
        elements = [_element(name, index, e) for index, e in enumerate(array.reshape(-1).tolist())]
        return Tensor(name, dtype, object_array(elements, array.shape))
    if sys.byteorder == "big" or array.dtype.byteorder == ">":
        array = array.astype(dtype.numpy.newbyteorder("<"))
    return Tensor(name, dtype, np.require(array, requirements="C"))


def _element(name: str, index: int, element: object) -> bytes:
    if isinstance(element, str):
        try:
            return element.encode()
        except UnicodeEncodeError as error:
            raise InvalidInput(
                f"element {index} of input {name!r} is {shown(element)}, which is no text: {error}"
            ) from error
    if isinstance(element, bytes | bytearray | memoryview):
        return bytes(element)
    raise InvalidInput(
        f"element {index} of input {name!r} is {shown(element)}; an array of objects may hold "
        "text and bytes alone (rows of different lengths make such an array, too)"
    )


def _converted(name: str, natural: Array, dtype: DType) -> Array:
    """Return an array of Python numbers as ``dtype``, which must be able to hold them."""
    found, wanted = natural.dtype.kind, dtype.numpy.kind
    floats = wanted in "fV"  # V is bfloat16
    allowed = "biuf" if floats else "b" if wanted == "b" else "biu"
    if natural.size and found not in allowed:
        what = _KINDS.get(found) or f"values such as {shown(natural.reshape(-1)[0])}"
        raise InvalidInput(
            f"input {name!r} has {what}, but the model takes {dtype.value}; give values that "
            "it can hold, or a numpy array of the type you mean"
        )
    if wanted in "iu" and natural.size:
        least, greatest = INTEGER_RANGES[dtype]
        low, high = int(natural.min()), int(natural.max())
        if low < least or high > greatest:
            raise InvalidInput(
                f"input {name!r} has the value {low if low < least else high}, which "
                f"{dtype.value} cannot hold; give values from {least} to {greatest}"
            )
    with np.errstate(over="ignore", invalid="ignore"):
        converted = natural.astype(dtype.numpy)
        if floats and not np.array_equal(np.isinf(converted), np.isinf(natural)):
            raise InvalidInput(
                f"input {name!r} has a value beyond what {dtype.value} can hold; "
                "give smaller values"
            )
    return np.require(converted, requirements="C")
