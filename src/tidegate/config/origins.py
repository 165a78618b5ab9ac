"""Where the value of a setting came from."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from pydantic.fields import FieldInfo

from tidegate.config.section import Section


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


def section_of(annotation: Any) -> type[Section] | None:
    """Return the part of the schema that a field is, if it is one; it may be left out."""
    kinds = [annotation]
    if typing.get_origin(annotation) in {typing.Union, types.UnionType}:
        kinds = [kind for kind in typing.get_args(annotation) if kind is not type(None)]
    (kind, *more) = kinds
    return kind if not more and isinstance(kind, type) and issubclass(kind, Section) else None


def fields(schema: type[Section], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield every key of ``schema`` with its field; sections are flattened with dots."""
    for name, field in schema.model_fields.items():
        kind = section_of(field.annotation)
        if kind is not None:
            yield from fields(kind, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def value_of(section: Section, key: str) -> Any:
    """Return the value of a key with dots."""
    value: Any = section
    for name in key.split("."):
        value = None if value is None else getattr(value, name)
    return value


def is_given(section: Section | None, key: str) -> bool:
    """Whether the source that ``section`` was made from said something of ``key``."""
    *above, last = key.split(".")
    for name in above:
        if section is None or name not in section.model_fields_set:
            return False
        section = getattr(section, name)
    return section is not None and last in section.model_fields_set
