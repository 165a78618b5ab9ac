"""What a runtime module offers: ``load(path, options)``, which gives a :class:`Model`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from tidegate.config.model import ModelConfig
from tidegate.types import Array, Signature


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
        """The tensors in and out."""

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


class Loader(Protocol):
    """The entry point of a runtime's module."""

    def __call__(self, path: Path, options: RuntimeOptions) -> Model:
        """Load the model at ``path``.

        Raises:
            InvalidModel: the file is not a model that this runtime can load.
            InsufficientMemory: it does not fit.
            ConfigurationError: ``model.yaml`` asks for what the model or the machine has not.
        """
