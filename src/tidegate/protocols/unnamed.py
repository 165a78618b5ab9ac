"""Data that came without the names and types of a model's inputs, made to fit them.

Some protocols send an array of numbers, bytes, a text or a JSON document, and leave it to the
model what that is. A model whose signature is of tensors gets what fits it, or the caller an
error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tidegate.errors import InvalidInput
from tidegate.protocols.fitting import fit_element, fit_numbers
from tidegate.protocols.open_inference.tensors import object_array, shown
from tidegate.types import Array, DType, Json, Signature, Tensor, TensorSpec

_TOO_LARGE = 2**63
"""The smallest integer that INT64 cannot hold."""
UNNAMED = "data"
"""What an array is called that goes to a model whose inputs nobody has declared."""


def fit_array(array: Array, names: Sequence[str], signature: Signature) -> tuple[Tensor, ...]:
    """Return ``array`` as the inputs of a model.

    It is the only input; or else ``names``, those of its columns, are those of all inputs.

    Raises:
        InvalidInput: it cannot be.
    """
    specs = signature.inputs
    if not specs:
        return (Tensor.of(UNNAMED, array),)
    if len(specs) == 1:
        return (Tensor(specs[0].name, specs[0].dtype, cast(array, specs[0])),)
    wanted = [spec.name for spec in specs]
    if sorted(names) != sorted(wanted) or array.ndim != 2 or array.shape[1] != len(wanted):
        raise InvalidInput(
            f"the model has the inputs {_listed(wanted)}: send an array with a column for each, "
            "and their names, or a JSON object with an array for each"
        )
    return tuple(
        Tensor(spec.name, spec.dtype, _column(array[:, names.index(spec.name)], spec))
        for spec in specs
    )


def fit_json(document: Json, signature: Signature) -> tuple[Tensor, ...]:
    """Return a JSON document as the inputs of a model: an array, or an object of arrays by name.

    Raises:
        InvalidInput: it cannot be.
    """
    specs = signature.inputs
    if isinstance(document, dict) and document.keys() == {spec.name for spec in specs}:
        return tuple(
            Tensor(spec.name, spec.dtype, cast(array_of(document[spec.name]), spec))
            for spec in specs
        )
    if isinstance(document, list) and len(specs) == 1:
        return fit_array(array_of(document), (), signature)
    names = [spec.name for spec in specs]
    raise InvalidInput(
        f"the model has the input{'s' if len(names) != 1 else ''} {_listed(names)}: send a JSON "
        f"object with an array for each, not {shown(document)}"
    )


def fit_bytes(content: bytes, signature: Signature) -> tuple[Tensor, ...]:
    """Return bytes or a text as the only element of a model's only input.

    Raises:
        InvalidInput: the model takes something else.
    """
    specs = signature.inputs
    if len(specs) != 1 or specs[0].dtype is not DType.BYTES:
        raise InvalidInput(
            f"the model takes {_listed([s.name for s in specs])} as numbers, not bytes or a text: "
            "send an array, or give the model a hooks.py that makes one of them"
        )
    return (fit_element(content, specs[0]),)


def array_of(data: object) -> Array:
    """Return nested lists as an array of numbers, or of ``bytes`` for texts.

    ``null`` is NaN.

    Raises:
        InvalidInput: rows differ in length, or elements are of different kinds.
    """
    try:
        array = np.array(data)
    except (ValueError, OverflowError) as error:
        raise InvalidInput(
            "the array is not regular: send lists of one length at each depth"
        ) from error
    if array.dtype.kind == "f" and array.size and array.max() >= _TOO_LARGE:
        # numpy makes FP64 of small and large integers together, which rounds them.
        return _of_large(data, array)
    if array.dtype.kind in "biuf":
        return array
    elements = np.array(data, np.object_).reshape(-1).tolist()
    kinds = {type(element) for element in elements}
    if kinds <= {str}:
        return object_array([text.encode() for text in elements], array.shape)
    if kinds <= {int, float, type(None)}:
        try:
            return np.array(data, np.float64)
        except OverflowError as error:
            raise InvalidInput("a number of the array is larger than any type holds") from error
    other = next((e for e in elements if not isinstance(e, int | float)), elements[0])
    raise InvalidInput(f"the array has the element {shown(other)}: send numbers alone, or texts")


def _of_large(data: object, rounded: Array) -> Array:
    elements = np.array(data, np.object_).reshape(-1).tolist()
    if not all(type(element) is int for element in elements):
        return rounded
    try:
        return np.array(data, np.uint64)
    except OverflowError:  # some are negative
        return rounded


def cast(array: Array, spec: TensorSpec) -> Array:
    """Return ``array`` with the type of an input.

    Raises:
        InvalidInput: an element has no value of that type.
    """
    dtype = spec.dtype
    texts = array.dtype.kind == "O"
    if texts or dtype is DType.BYTES:
        if texts and dtype is DType.BYTES:
            return np.ascontiguousarray(array)
        wants, sent = ("texts", "numbers") if dtype is DType.BYTES else ("numbers", "texts")
        raise InvalidInput(f"the input {spec.name!r} is {dtype.value}: send {wants}, not {sent}")
    return np.ascontiguousarray(fit_numbers(array, spec))


def _column(column: Array, spec: TensorSpec) -> Array:
    """Return a column of a table with the rank of an input."""
    found = cast(column, spec)
    rank = 1 if spec.shape is None else len(spec.shape)
    return found.reshape(-1, *(1,) * (rank - 1)) if rank else found


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))


def plain(tensors: Sequence[Tensor]) -> Mapping[str, Array]:
    """Return arrays by name, of types that JSON writers know."""
    return {
        t.name: t.data.astype(np.float32) if t.dtype in (DType.BF16, DType.FP16) else t.data
        for t in tensors
    }
