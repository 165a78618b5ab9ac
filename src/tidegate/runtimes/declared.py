"""Joins what ``model.yaml`` says of a signature with what a model says of itself."""

from __future__ import annotations

from collections.abc import Sequence

from tidegate.config.model import DeclaredSignature, DeclaredTensor
from tidegate.errors import ConfigurationError
from tidegate.types import Dimension, Signature, TensorSpec


def refined(carried: Signature, declared: DeclaredSignature) -> Signature:
    """Return the model's own signature with what ``model.yaml`` adds to it.

    Names say which tensor is meant; types must agree; a dimension that the model leaves open
    may get a name or a number.

    Raises:
        ConfigurationError: the two contradict each other.
    """
    return Signature(
        _by_name(carried.inputs, declared.inputs, "input"),
        _by_name(carried.outputs, declared.outputs, "output"),
    )


def renamed_outputs(
    carried: Sequence[TensorSpec], declared: Sequence[DeclaredTensor]
) -> tuple[TensorSpec, ...]:
    """Return outputs with the declared names, for a model whose outputs have none of their own.

    Raises:
        ConfigurationError: their number differs, or the two contradict each other.
    """
    if not declared:
        return tuple(carried)
    if {d.name for d in declared} <= {spec.name for spec in carried}:
        return _by_name(carried, declared, "output")
    if len(declared) != len(carried):
        raise ConfigurationError(
            f"signature.outputs has {len(declared)} outputs, but the model gives {len(carried)}: "
            f"{_listed(carried)}"
        )
    return tuple(_refined(c, d, "output", c.name) for c, d in zip(carried, declared))


def _by_name(
    carried: Sequence[TensorSpec], declared: Sequence[DeclaredTensor], role: str
) -> tuple[TensorSpec, ...]:
    wanted = {tensor.name: tensor for tensor in declared}
    for name in wanted:
        if name not in {spec.name for spec in carried}:
            raise ConfigurationError(
                f"signature.{role}s names {name!r}, but the model has no such {role}: it has "
                f"{_listed(carried)}"
            )
    return tuple(
        _refined(spec, wanted[spec.name], role, spec.name) if spec.name in wanted else spec
        for spec in carried
    )


def _refined(carried: TensorSpec, declared: DeclaredTensor, role: str, place: str) -> TensorSpec:
    if declared.dtype is not None and declared.dtype is not carried.dtype:
        raise ConfigurationError(
            f"signature.{role}s says that {declared.name!r} is {declared.dtype.value}, but the "
            f"model's own {role} {place!r} is {carried.dtype.value}"
        )
    shape = carried.shape
    if declared.shape is not None:
        if shape is not None and not _agree(shape, declared.shape):
            raise ConfigurationError(
                f"signature.{role}s says that {declared.name!r} has the shape "
                f"{list(declared.shape)}, but the model's own {role} {place!r} has {list(shape)}"
            )
        shape = declared.shape
    return TensorSpec(declared.name, carried.dtype, shape)


def _agree(carried: Sequence[Dimension], declared: Sequence[Dimension]) -> bool:
    """Whether a shape says no more than the other leaves open."""
    return len(carried) == len(declared) and all(
        have == want for have, want in zip(carried, declared) if isinstance(have, int)
    )


def _listed(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(repr(spec.name) for spec in specs)
