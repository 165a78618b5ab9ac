"""Reads a file of settings: YAML, whose top is a mapping; each mistake names its line."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from tidegate.config.hostile_yaml import check_depth, check_number
from tidegate.config.plain_yaml import read_plain
from tidegate.errors import ConfigurationError

Place: TypeAlias = tuple[str | int, ...]
"""The path of a key: keys of mappings, and numbers in lists from 0."""
Lines: TypeAlias = Mapping[Place, int]
"""The line, from 1, of each key."""

LARGEST_FILE = 2**20
"""Bytes, where nothing else is said."""
_SHORT = 2**12
"""A text of so many characters is read at once, however it is done."""
_LONG = 2**16


def read_mapping(path: Path, largest: int = LARGEST_FILE) -> tuple[dict[str, Any], Lines]:
    """Read a YAML file whose top is a mapping (or nothing).

    Returns:
        The mapping, and the line (from 1) of every key by its path.

    Raises:
        ConfigurationError: it cannot be read, is too large, is not YAML, repeats a key, or
            is something else than a mapping.
    """
    text = _read(path, largest)
    if len(text) > _SHORT and (found := read_plain(text)) is not None:
        data, lines = found
        return data, _LinesWhenAsked(path, text, lines)
    return _read_any(path, text)


def _read_any(path: Path, text: str) -> tuple[dict[str, Any], Lines]:
    """Read what may be anything."""
    try:
        loader = _loader(text)
        top = loader.get_single_node()
        if top is None:
            return {}, {}
        lines = dict(_lines(path, top))
        data = loader.construct_document(top)
    except yaml.YAMLError as error:
        place = f"{path}{_place(error)}"
        raise ConfigurationError(f"{place}: not valid YAML: {_plain(error)}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path}: not valid YAML: {error}") from error
    if data is None:
        return {}, {}
    if not isinstance(data, dict):
        found = type(data).__name__
        raise ConfigurationError(f"{path}: must be a mapping of keys to values, not a {found}")
    for key in data:
        if not isinstance(key, str):
            raise ConfigurationError(f"{path}: the key {key!r} is not text; put it in quotes")
    return data, lines


class _LinesWhenAsked(Mapping[Place, int]):
    """Knows those of the upper keys, and looks for the others when somebody asks: at a mistake."""

    def __init__(self, path: Path, text: str, upper: Lines) -> None:
        self._path = path
        self._text = text
        self._upper = upper
        self._all: Lines | None = None

    def __getitem__(self, place: Place) -> int:
        if place in self._upper:
            return self._upper[place]
        return self._found()[place]

    def __iter__(self) -> Iterator[Place]:
        return iter(self._found())

    def __len__(self) -> int:
        return len(self._found())

    def _found(self) -> Lines:
        if self._all is None:
            _, self._all = _read_any(self._path, self._text)
        return self._all


def _loader(text: str) -> Any:
    """Return what reads ``text``: libyaml is ten times as fast, and says less of mistakes."""
    quick = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    if len(text) <= _LONG:
        return yaml.SafeLoader(text)
    check_depth(text, quick)
    return quick(text)


def _read(path: Path, largest: int) -> str:
    try:
        if path.exists() and not path.is_file():
            # Opening a pipe waits for who writes into it.
            raise ConfigurationError(f"{path} is not a file; put the settings into one")
        if path.stat().st_size > largest:
            raise ConfigurationError(
                f"{path}: larger than {largest // 2**20} MiB, which no settings file is"
            )
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: is not UTF-8 text (byte {error.start})") from error


def _lines(path: Path, top: yaml.Node) -> Iterator[tuple[tuple[str | int, ...], int]]:
    check_number(top)
    pending: list[tuple[tuple[str | int, ...], yaml.Node]] = [((), top)]
    seen: set[int] = set()
    while pending:
        at, node = pending.pop()
        # An alias leads to a node that was seen; a node may even contain itself.
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            for index, child in enumerate(node.value):
                check_number(child)
                yield (*at, index), child.start_mark.line + 1
                pending.append(((*at, index), child))
        elif isinstance(node, yaml.MappingNode):
            first: dict[Hashable, int] = {}
            for key, child in node.value:
                line = key.start_mark.line + 1
                check_number(key)
                check_number(child)
                if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                    if key.value in first:
                        raise ConfigurationError(
                            f"{path}, line {line}: the key {key.value!r} was already given "
                            f"in line {first[key.value]}; keep one of them"
                        )
                    first[key.value] = line
                    yield (*at, key.value), line
                    pending.append(((*at, key.value), child))


def _place(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    return "" if mark is None else f", line {mark.line + 1}"


def _plain(error: yaml.YAMLError) -> str:
    return getattr(error, "problem", None) or str(error).splitlines()[0]
