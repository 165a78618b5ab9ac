"""Finds out by trial runs which dimensions of a signature are the batch's.

A framework that says of a dimension only that it is dynamic does not say which of them are equal.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

from tidegate.errors import InsufficientMemory, TidegateError
from tidegate.runtimes.samples import Samples
from tidegate.types import Array, Signature, TensorSpec

log = logging.getLogger(__name__)

BATCH = "batch"
_ROWS = 2
_OTHERS = (1, 3)
"""Rows of the inputs but the first, to see whether they may differ: 1 is often broadcast."""

Run = Callable[[dict[str, Array], Sequence[str]], dict[str, Array]]


def with_batch(signature: Signature, run: Run, samples: Samples) -> Signature:
    """Return ``signature`` with the name ``batch`` for first dimensions that are always equal.

    They are those of all inputs, when the model takes no inputs of different lengths, and those
    of the outputs that are as long. Nothing is named when an input has none, or when the model
    refuses made-up inputs.
    """
    if not signature.inputs or not all(map(_open, signature.inputs)):
        return signature
    try:
        lengths = _lengths(signature, run, samples)
    except InsufficientMemory:
        raise
    except TidegateError as error:
        log.info(
            "no dimension is known to be the batch's, since made-up inputs failed (%s): put real "
            "ones into warmup.sample of model.yaml",
            error,
        )
        return signature
    if lengths is None or _may_differ(signature, run, samples):
        return signature
    return Signature(
        tuple(_named(spec) for spec in signature.inputs),
        tuple(
            _named(spec) if _open(spec) and lengths[spec.name] == _ROWS else spec
            for spec in signature.outputs
        ),
    )


def _lengths(signature: Signature, run: Run, samples: Samples) -> dict[str, int] | None:
    """Return how long each output is for inputs of two rows."""
    inputs = samples.make(signature.inputs, _ROWS)
    if inputs is None:
        return None
    names = [spec.name for spec in signature.outputs]
    outputs = run(dict(zip([spec.name for spec in signature.inputs], inputs)), names)
    return {name: array.shape[0] if array.ndim else 0 for name, array in outputs.items()}


def _may_differ(signature: Signature, run: Run, samples: Samples) -> bool:
    """Whether the model takes inputs of different lengths."""
    first, *others = signature.inputs
    for rows in _OTHERS if others else ():
        given = (*_made(samples, [first], _ROWS), *_made(samples, others, rows))
        inputs = dict(zip([spec.name for spec in signature.inputs], given))
        try:
            run(inputs, [spec.name for spec in signature.outputs])
        except TidegateError:
            continue
        return True
    return False


def _made(samples: Samples, specs: Sequence[TensorSpec], rows: int) -> tuple[Array, ...]:
    return samples.make(specs, rows) or ()


def _open(spec: TensorSpec) -> bool:
    """Whether the first dimension is dynamic and has no name."""
    return bool(spec.shape) and spec.shape is not None and spec.shape[0] is None


def _named(spec: TensorSpec) -> TensorSpec:
    return replace(spec, shape=(BATCH, *(spec.shape or ())[1:]))
