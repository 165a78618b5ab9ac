"""Where the value of a setting came from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from pydantic.fields import FieldInfo

from tidegate.config.model import Section


@dataclass(frozen=True, slots=True)
class Origin:
    """Where one value came from; ``str()`` is how it is told."""

    source: Literal["default", "file", "environment", "command line"] = "default"
    name: str = ""
    """The file's path, the variable's name or the option's; empty for a default."""
    line: int | None = None
    """In the file, from 1."""

    def __str__(self) -> str:
        if self.source == "file":
            return self.name if self.line is None else f"{self.name}:{self.line}"
        if self.source == "command line":
            return f"command line ({self.name})"
        return self.name or self.source


DEFAULT = Origin()


def fields(schema: type[Section], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield every key of ``schema`` with its field; sections are flattened with dots."""
    for name, field in schema.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            yield from fields(kind, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def value_of(section: Section, key: str) -> Any:
    """Return the value of a key with dots."""
    value: Any = section
    for name in key.split("."):
        value = getattr(value, name)
    return value


def is_given(section: Section, key: str) -> bool:
    """Whether the source that ``section`` was made from said something of ``key``."""
    *above, last = key.split(".")
    for name in above:
        if name not in section.model_fields_set:
            return False
        section = getattr(section, name)
    return last in section.model_fields_set
