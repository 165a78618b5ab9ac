"""The first runs of a model: warm it up, and find out whether rows of a batch mix."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from tidegate.config.model import Batching
from tidegate.errors import ConfigurationError, InsufficientMemory, InvalidModel, TidegateError
from tidegate.runtimes.interface import Model
from tidegate.runtimes.samples import Samples
from tidegate.types import Array, Signature, TensorSpec

log = logging.getLogger(__name__)

_RANDOM = Samples()
_ROWS = 2
_TOLERANCE = 1e-2
_NOISE = 1e-4
"""Differences between numbers that are all smaller than this mean nothing."""


def common_batch_dimension(signature: Signature) -> bool:
    """Say whether every tensor begins with a dynamic dimension, all of them of one name."""
    first = [_first(spec) for spec in (*signature.inputs, *signature.outputs)]
    return bool(signature.inputs) and first[0] is not None and len(set(first)) == 1


def _first(spec: TensorSpec) -> str | None:
    dimension = spec.shape[0] if spec.shape else None
    return dimension if isinstance(dimension, str) else None


def can_batch(model: Model, batching: Batching, samples: Samples = _RANDOM) -> bool:
    """Decide whether requests may be joined along the first dimension.

    ``auto`` asks the signature for a common dynamic dimension, then compares rows that are
    run alone with the same rows run beside each other.

    Raises:
        ConfigurationError: ``batching.enabled`` is true for a model whose inputs have no
            dimension to join along.
    """
    if batching.enabled == "auto":
        return common_batch_dimension(model.signature) and _rows_are_independent(model, samples)
    if batching.enabled:
        _check_can_be_joined(model.signature)
    return batching.enabled


def batched_signatures(
    model: Model, batching: Batching, samples: Samples = _RANDOM
) -> dict[str, bool]:
    """Decide for each signature, by name, whether its requests may be joined.

    ``samples`` are those of the default signature.

    Raises:
        ConfigurationError: ``batching.enabled`` is true, but requests of the default signature
            cannot be joined.
    """
    default = next(iter(model.signatures))
    made_up = Samples(None, samples.sizes)
    decided = {default: can_batch(model, batching, samples)}
    for name in model.signatures:
        if name != default:
            try:
                decided[name] = can_batch(model.under(name), batching, made_up)
            except ConfigurationError:
                decided[name] = False
    return decided


def _check_can_be_joined(signature: Signature) -> None:
    if not signature.inputs:
        raise ConfigurationError(
            "batching.enabled is true, but the model has no inputs to join: set it to false"
        )
    for spec in signature.inputs:
        if spec.shape is not None and (not spec.shape or isinstance(spec.shape[0], int)):
            raise ConfigurationError(
                f"batching.enabled is true, but the input {spec.name!r} of shape "
                f"{list(spec.shape)} has no dynamic first dimension to join along: set it to "
                "false, or export the model with one"
            )


def _rows_are_independent(model: Model, samples: Samples) -> bool:
    joined = samples.make(model.signature.inputs, _ROWS)
    if joined is None:
        return False
    names = [spec.name for spec in model.signature.outputs]
    try:
        # Copies: code in a model's folder may change what it is given.
        together = _run(model, [a.copy() for a in joined], names)
        alone = [_run(model, [a[row : row + 1] for a in joined], names) for row in range(_ROWS)]
    except TidegateError as error:
        log.info("batching is off: a trial run failed: %s", error)
        return False
    for name in names:
        if not all(_same(one[name], together[name], row) for row, one in enumerate(alone)):
            log.warning("batching is off: %r of one row depends on the other rows", name)
            return False
    return True


def _same(alone: Array, together: Array, row: int) -> bool:
    if together.ndim == 0 or together.shape[0] != _ROWS or alone.shape[:1] != (1,):
        return False
    if alone.dtype.kind not in "fV":
        return bool(np.array_equal(alone[0], together[row]))
    one, two = alone[0].astype(np.float64), together[row].astype(np.float64)
    # Small numbers are compared as closely as large ones: a softmax over a thousand classes
    # would pass for anything.
    scale = np.max(np.abs(one), initial=0.0, where=np.isfinite(one))
    close = _TOLERANCE * min(1.0, max(float(scale), _NOISE))
    return bool(np.allclose(one, two, rtol=_TOLERANCE, atol=close, equal_nan=True))


def _run(model: Model, inputs: Sequence[Array], names: Sequence[str]) -> dict[str, Array]:
    specs = model.signature.inputs
    return model.run({spec.name: array for spec, array in zip(specs, inputs)}, names)


def warm_up(model: Model, samples: Samples = _RANDOM) -> None:
    """Run the model once under each signature: the first caller does not pay for lazy set-up.

    What a made-up sample makes the model say is of no concern: it may need real input.

    Raises:
        InsufficientMemory: not even one row fits.
        InvalidModel: it failed on the operator's own sample, which is for the default signature.
    """
    for place, name in enumerate(model.signatures):
        _warm_up(model.under(name), Samples(None, samples.sizes) if place else samples)


def _warm_up(model: Model, samples: Samples) -> None:
    inputs = samples.make(model.signature.inputs, None)
    if inputs is None:
        log.info("no warm-up: the signature leaves a rank open")
        return
    try:
        _run(model, inputs, [spec.name for spec in model.signature.outputs])
    except InsufficientMemory:
        raise
    except TidegateError as error:
        if samples.given is not None:
            raise InvalidModel(f"the model failed on the sample of warmup: {error}") from error
        log.info("the warm-up run failed, which real input may not: %s", error)
