"""What one look at a model repository found: models, versions, and what is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tidegate.config.model import ModelConfig


@dataclass(frozen=True, slots=True)
class Problem:
    """Something in the repository that is not served, why, and what to do about it."""

    file: str
    """Relative to the repository."""
    reason: str
    kind: Literal["invalid", "skipped"]
    """``invalid``: something must be put right; ``skipped``: nothing here can serve it."""
    hint: str

    def __str__(self) -> str:
        folder, slash, name = self.file.rpartition("/")
        # Some reasons begin with the file's name, which need not be said twice.
        said = self.reason.startswith(f"{name} ")
        place = f"{folder}{slash}" if said else f"{self.file}: "
        return place + self.reason + (f"; {self.hint}" if self.hint else "")


@dataclass(frozen=True, slots=True)
class VersionEntry:
    """One version that can be served."""

    version: int
    path: Path
    """The model's file, or its folder for a format that is one."""
    format: str
    runtime: str
    fingerprint: str
    """Changes whenever a file of the version or ``model.yaml`` does."""
    size: int = 0
    """Bytes of its files, weights beside the model included."""
    folder: Path | None = None
    """The model's folder, whose code and samples belong to it; ``None`` for a bare file."""


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """One model. Without versions, ``problems`` says why it cannot be served.

    When ``model.yaml`` is wrong there are no versions and ``config`` holds the defaults.
    """

    name: str
    config: ModelConfig
    versions: Mapping[int, VersionEntry]
    problems: tuple[Problem, ...]
    fingerprint: str
    """Changes whenever any file of the model does, whether it is served or not."""
    changed: float
    """When its newest file changed, in seconds since the epoch by the file system's clock."""


@dataclass(frozen=True, slots=True)
class Repository:
    """What one look at the folder found."""

    models: Mapping[str, ModelEntry]
    problems: tuple[Problem, ...] = ()
    """Those that belong to no model, such as a file whose name cannot be a model's."""
