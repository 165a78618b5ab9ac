"""What every part of the schema has in common."""

from __future__ import annotations

from pathlib import PurePosixPath

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of the schema: unknown keys are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


def inside(value: str) -> str:
    """Return the name of a file that must lie in the model's folder.

    Raises:
        ValueError: it leads elsewhere.
    """
    path = PurePosixPath(value)
    if path.is_absolute() or ".." in path.parts or not path.name:
        raise ValueError(f"{value!r} must lie in the model's folder: give its name there")
    return value
