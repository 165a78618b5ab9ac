"""The signature of an exported PyTorch program, with what ``model.yaml`` adds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tidegate.config.model import DeclaredSignature
from tidegate.errors import ConfigurationError
from tidegate.runtimes.declared import refined, renamed_outputs
from tidegate.types import DType, Signature, TensorSpec


def of_export(carried: Signature, declared: DeclaredSignature) -> Signature:
    """Return the signature of a program that carries one, with what ``model.yaml`` adds.

    Raises:
        ConfigurationError: the two contradict each other.
    """
    inputs = refined(replace(carried, outputs=()), replace_outputs(declared)).inputs
    return Signature(inputs, renamed_outputs(carried.outputs, declared.outputs))


def replace_outputs(declared: DeclaredSignature) -> DeclaredSignature:
    """Return what is declared of the inputs alone."""
    return declared.model_copy(update={"outputs": ()})


def refuse_bytes(inputs: Sequence[TensorSpec]) -> None:
    """Refuse inputs that no tensor of PyTorch can be.

    Raises:
        ConfigurationError: one is BYTES.
    """
    for spec in inputs:
        if spec.dtype is DType.BYTES:
            raise ConfigurationError(
                f"the input {spec.name!r} is BYTES, which a PyTorch model cannot take"
            )
