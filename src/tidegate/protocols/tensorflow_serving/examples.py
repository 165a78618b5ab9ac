"""``tf.Example``: the features of examples as the inputs of a model, without TensorFlow.

Source: ``example.proto`` and ``feature.proto`` of TensorFlow, ``input.proto`` of TensorFlow
Serving. A TensorFlow model that was exported for Classify or Regress takes the examples
themselves, serialized, and reads them in its graph. For any other model, each feature is the input
of its name, and the examples are the rows of the batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tidegate.errors import InvalidInput
from tidegate.protocols.open_inference.tensors import INTEGER_RANGES, object_array, shown
from tidegate.protocols.tensorflow_serving.dtypes import name_of
from tidegate.types import Array, DType, Signature, Tensor, TensorSpec

_KINDS = {"bytes_list": "O", "float_list": "fV", "int64_list": "fViub"}
"""The kinds of numpy types that take the values of each list."""


class Examples(NamedTuple):
    """What ``Input`` holds: parsed examples, and one whose features all of them share."""

    rows: Sequence[Any]
    context: Any = None


def examples_of(found: Any) -> Examples:
    """Return what is in a parsed ``Input``.

    Raises:
        InvalidInput: there is no example.
    """
    kind = found.WhichOneof("kind")
    if kind == "example_list_with_context":
        listed = found.example_list_with_context
        examples = Examples(listed.examples, listed.context)
    else:
        examples = Examples(found.example_list.examples)
    if not examples.rows:
        raise InvalidInput("the input is empty: send at least one example")
    return examples


def tensors_of(examples: Examples, signature: Signature) -> tuple[Tensor, ...]:
    """Return the inputs that ``signature`` takes, read from ``examples``.

    Raises:
        InvalidInput: an input has no feature, or one that does not fit.
    """
    if _takes_examples(examples, signature):
        [spec] = signature.inputs
        common = b"" if examples.context is None else examples.context.SerializeToString()
        # What is parsed from two messages in a row is what both say.
        serialized = [common + row.SerializeToString() for row in examples.rows]
        return (Tensor(spec.name, DType.BYTES, object_array(serialized, (len(serialized),))),)
    shared = {} if examples.context is None else examples.context.features.feature
    features = [(row.features.feature, shared) for row in examples.rows]
    return tuple(_column(spec, features) for spec in signature.inputs)


def _takes_examples(examples: Examples, signature: Signature) -> bool:
    """Say whether the model takes serialized examples."""
    if len(signature.inputs) != 1:
        return False
    [spec] = signature.inputs
    if spec.dtype is not DType.BYTES or (spec.shape is not None and len(spec.shape) != 1):
        return False
    common = examples.context
    return not any(
        spec.name in example.features.feature
        for example in (*examples.rows, *(() if common is None else (common,)))
    )


def _column(spec: TensorSpec, features: Sequence[tuple[Any, Any]]) -> Tensor:
    """Return the input that ``spec`` describes, one row for each example."""
    rows = []
    for index, (own, shared) in enumerate(features):
        feature = own[spec.name] if spec.name in own else shared.get(spec.name)
        if feature is None:
            known = ", ".join(shown(name) for name in sorted({*own, *shared})[:16]) or "none"
            raise InvalidInput(
                f"example {index} has no feature {spec.name!r}, which is an input of the model; "
                f"it has {known}"
            )
        rows.append(_values(spec, index, feature))
    lengths = sorted({len(row) for row in rows})
    if len(lengths) > 1:
        raise InvalidInput(
            f"the examples have from {lengths[0]} to {lengths[-1]} values of the feature "
            f"{spec.name!r}; send as many in each"
        )
    data = np.concatenate(rows).reshape(_shape(spec, len(rows), lengths[0]))
    return Tensor(spec.name, spec.dtype, data)


def _values(spec: TensorSpec, index: int, feature: Any) -> Array:
    """Return the values of a feature as the input's type."""
    dtype = spec.dtype
    kind = feature.WhichOneof("kind")
    if kind is None:
        return np.empty(0, dtype.numpy)
    values = getattr(feature, kind).value
    if dtype.numpy.kind not in _KINDS[kind]:
        raise InvalidInput(
            f"the feature {spec.name!r} of example {index} is a {kind}, but the model takes "
            f"{name_of(dtype)}"
        )
    if dtype is DType.BYTES:
        return object_array(list(values), (len(values),))
    if kind == "float_list":
        return np.array(values, np.float32).astype(dtype.numpy)
    whole = np.array(values, np.int64)
    least, greatest = INTEGER_RANGES.get(dtype, (None, None))
    if dtype is DType.BOOL:
        least, greatest = 0, 1
    if least is not None and greatest is not None and len(whole):
        lowest, highest = int(whole.min()), int(whole.max())
        if lowest < least or highest > greatest:
            raise InvalidInput(
                f"the feature {spec.name!r} of example {index} has the value "
                f"{lowest if lowest < least else highest}, which {name_of(dtype)} cannot hold"
            )
    return whole.astype(dtype.numpy)


def _shape(spec: TensorSpec, count: int, length: int) -> tuple[int, ...]:
    """Return the shape of ``count`` rows of ``length`` values each, as near to ``spec`` as can be.

    A single example may also be all that a model without a batch dimension takes.
    """
    if spec.shape is None:
        return (count,) if length == 1 else (count, length)
    dynamic = bool(spec.shape) and not isinstance(spec.shape[0], int)
    if dynamic or spec.shape[:1] == (count,):
        row = _fit([d if isinstance(d, int) else -1 for d in spec.shape[1:]], length)
        if row is not None:
            return (count, *row)
    if count == 1 and not dynamic:
        whole = _fit([d if isinstance(d, int) else -1 for d in spec.shape], length)
        if whole is not None:
            return whole
    written = ["?" if not isinstance(d, int) else d for d in spec.shape]
    raise InvalidInput(
        f"{count} examples with {length} values each of the feature {spec.name!r} do not make an "
        f"input of shape {written}: send as many examples and values as it takes, or call Predict"
    )


def _fit(dimensions: list[int], length: int) -> tuple[int, ...] | None:
    """Return ``dimensions`` with those that are not known (-1) so that they have ``length``."""
    known = math.prod(d for d in dimensions if d >= 0)
    unknown = dimensions.count(-1)
    if not unknown:
        return tuple(dimensions) if known == length else None
    if unknown > 1 or not known or length % known:
        return None
    return tuple(length // known if d < 0 else d for d in dimensions)
