"""What a runtime module offers: ``load(path, options)``, which gives a :class:`Model`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, Self

from tidegate.config.model import ModelConfig
from tidegate.types import DEFAULT_SIGNATURE, Array, Signature


@dataclass(frozen=True, slots=True)
class RuntimeOptions:
    """What a replica gives its runtime."""

    device: str = "auto"
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N``."""
    threads: int = 1
    """Threads within one operator."""
    folder: Path | None = None
    """The model's folder, whose code and samples belong to it; ``None`` for a bare file."""
    config: ModelConfig = field(default_factory=ModelConfig)
    """What ``model.yaml`` says; ``device`` and ``threads`` above are what came of it."""


class Model(Protocol):
    """A loaded model. ``run`` is called from one thread at a time."""

    @property
    def signature(self) -> Signature:
        """The tensors in and out that :meth:`run` takes and gives."""

    @property
    def signatures(self) -> Mapping[str, Signature]:
        """Every signature by its name, the default one first: it is ``signature``."""

    def under(self, signature: str) -> Model:
        """Return this model with the signature of this name, one of ``signatures``.

        The two share everything else: it is loaded and closed once.
        """

    @property
    def platform(self) -> str:
        """The name that the Open Inference Protocol's metadata gives the runtime."""

    @property
    def device(self) -> str:
        """Where it runs, after ``auto`` was decided: ``cpu`` or ``cuda:N``."""

    @property
    def most_rows(self) -> int | None:
        """The largest first dimension that it can run; ``None``: any."""

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """Run once; BYTES are object arrays of ``bytes``; only ``outputs`` come back.

        Raises:
            InsufficientMemory: the run needed more memory than there is.
            InferenceFailed: the model raised; the message is the framework's own.
        """

    def attach(self) -> None:
        """Make the thread that calls this ready to run the model; called once in each.

        Raises:
            InsufficientMemory: there is no room for what the thread needs.
        """

    def close(self) -> None:
        """Free what the model holds."""


class OneSignature:
    """What a model of one signature says of its signatures."""

    signature: Signature

    @property
    def signatures(self) -> Mapping[str, Signature]:
        """The only one, by the name that TensorFlow Serving's clients expect."""
        return {DEFAULT_SIGNATURE: self.signature}

    def under(self, signature: str) -> Self:
        """Return the model itself."""
        return self


class Loader(Protocol):
    """The entry point of a runtime's module."""

    def __call__(self, path: Path, options: RuntimeOptions) -> Model:
        """Load the model at ``path``.

        Raises:
            InvalidModel: the file is not a model that this runtime can load.
            InsufficientMemory: it does not fit.
            ConfigurationError: ``model.yaml`` asks for what the model or the machine has not.
        """
