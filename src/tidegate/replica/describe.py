"""``python -m tidegate.replica.describe``: the signatures of a model of another environment.

It reads a :class:`Wanted` as JSON, loads the model, and writes a :class:`Described`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from tidegate import errors
from tidegate.config.model import ModelConfig
from tidegate.errors import InvalidModel, TidegateError
from tidegate.replica.loading import load
from tidegate.runtimes.interface import RuntimeOptions
from tidegate.types import Dimension, DType, Signature, TensorSpec


class Wanted(BaseModel):
    """Which model, and how it is to be loaded."""

    runtime: str
    path: Path
    folder: Path | None
    config: ModelConfig


class Tensor(BaseModel):
    """A tensor of a signature."""

    name: str
    dtype: DType
    shape: tuple[Dimension, ...] | None


class Form(BaseModel):
    """A signature."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    @classmethod
    def of(cls, signature: Signature) -> Form:
        """Return the form of a signature."""
        inputs, outputs = (
            tuple(Tensor(name=s.name, dtype=s.dtype, shape=s.shape) for s in specs)
            for specs in (signature.inputs, signature.outputs)
        )
        return cls(inputs=inputs, outputs=outputs)

    def signature(self) -> Signature:
        """Return the signature."""
        inputs, outputs = (
            tuple(TensorSpec(t.name, t.dtype, t.shape) for t in tensors)
            for tensors in (self.inputs, self.outputs)
        )
        return Signature(inputs, outputs)


class Described(BaseModel):
    """The signatures of a model, or why it cannot be loaded."""

    model_config = ConfigDict(extra="forbid")

    public: Form = Form(inputs=(), outputs=())
    others: dict[str, Form] = {}
    """Those beside the public one, by name."""
    kind: str | None = None
    """The name of the error's class."""
    reason: str = ""

    def signatures(self) -> tuple[Signature, dict[str, Signature]]:
        """Return the public signature, and by name those beside it.

        Raises:
            TidegateError: the model cannot be loaded.
        """
        if self.kind is not None:
            known = getattr(errors, self.kind, InvalidModel)
            raise known(self.reason)
        others = {name: form.signature() for name, form in self.others.items()}
        return self.public.signature(), others


def describe(wanted: Wanted) -> Described:
    """Load a model and describe it."""
    options = RuntimeOptions(device="cpu", folder=wanted.folder, config=wanted.config)
    try:
        loaded = load(wanted.runtime, wanted.path, options)
    except TidegateError as error:
        return Described(kind=type(error).__name__, reason=str(error))
    others = {name: Form.of(other) for name, other in list(loaded.model.signatures.items())[1:]}
    loaded.model.close()
    return Described(public=Form.of(loaded.public), others=others)


def main() -> None:
    """Answer on the standard output, which the model's own code may not write to."""
    answer = os.dup(1)
    os.dup2(2, 1)
    wanted = Wanted.model_validate_json(sys.stdin.buffer.read())
    with os.fdopen(answer, "wb") as output:
        output.write(describe(wanted).model_dump_json().encode())


if __name__ == "__main__":
    main()
    # Threads of a framework must not hold up the end.
    os._exit(0)
