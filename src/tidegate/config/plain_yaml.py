"""The YAML that long files of settings consist of, read in one pass; pure.

A list of thousands of endpoints is mappings, lists and words. Here libyaml's events become what
they stand for at once, in a third of the time that PyYAML takes by way of a tree of nodes.
Whatever is out of the ordinary (anchors, tags, a key given twice, a mistake) is left to PyYAML.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeAlias

import yaml
from yaml import (
    DocumentEndEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
)

Lines: TypeAlias = dict[tuple[str | int, ...], int]
"""The line, from 1, of each key by its path."""

_DEEPEST = 32
_LONGEST_WORD = 100
"""Of words that are no text; numbers have no more letters."""
_TEXT = "tag:yaml.org,2002:str"
_NUMBER = re.compile("[1-9][0-9]{0,17}")
_ADDRESS = re.compile(r"[0-9]+(\.[0-9]+){3}:[0-9]+")
"""What most words of a long list of endpoints are, and no number by the rules of YAML."""
_MARK = "\ufeff"
"""What editors put before a text. In the midst of one libyaml passes it over, PyYAML does not."""
_UNKNOWN = object()
_CONSTRUCTED = frozenset(f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float"))


class _Unusual(Exception):
    """There is something that is not read here."""


def read_plain(text: str) -> tuple[dict[str, Any], Lines] | None:
    """Read a document whose top is a mapping.

    Returns:
        The mapping, and the lines of its keys and of those of the mappings in it, but no further
        down. ``None``: PyYAML is to read the document, be it right or wrong.
    """
    loader = getattr(yaml, "CSafeLoader", None)
    if loader is None or text.find(_MARK, 1) != -1:
        return None
    reading = _Reading(loader(text).get_event)
    try:
        return reading.document(), reading.lines
    except (_Unusual, yaml.YAMLError, ValueError):
        return None


class _Reading:
    """One pass over the events of a document."""

    def __init__(self, event: Callable[[], Any]) -> None:
        self._event = event
        self._words: dict[str, object] = {}
        """What the words mean that were there before: most are there many times."""
        self.lines: Lines = {}

    def document(self) -> dict[str, Any]:
        """Return the only document that there is."""
        self._event()
        self._event()
        top = self._event()
        if type(top) is not MappingStartEvent:
            raise _Unusual
        found = self._mapping(top, 1, ())
        for kind in (DocumentEndEvent, StreamEndEvent):
            if type(self._event()) is not kind:
                raise _Unusual
        return found

    def _mapping(
        self, start: Any, depth: int, at: tuple[str | int, ...] | None = None
    ) -> dict[str, Any]:
        _check(start, depth)
        next_event = self._event
        found: dict[str, Any] = {}
        while type(event := next_event()) is ScalarEvent:
            key = self._word(event)
            if type(key) is not str or key in found:
                raise _Unusual
            below = None
            if at is not None:
                mark: Any = event.start_mark
                self.lines[(*at, key)] = mark.line + 1
                below = None if at else (key,)
            event = next_event()
            if type(event) is ScalarEvent:
                found[key] = self._word(event)
            else:
                found[key] = self._collection(event, depth + 1, below)
        if type(event) is not MappingEndEvent:
            raise _Unusual
        return found

    def _sequence(self, start: Any, depth: int) -> list[Any]:
        _check(start, depth)
        next_event = self._event
        found: list[Any] = []
        while type(event := next_event()) is not SequenceEndEvent:
            if type(event) is ScalarEvent:
                found.append(self._word(event))
            else:
                found.append(self._collection(event, depth + 1))
        return found

    def _collection(
        self, start: Any, depth: int, at: tuple[str | int, ...] | None = None
    ) -> dict[str, Any] | list[Any]:
        if type(start) is MappingStartEvent:
            return self._mapping(start, depth, at)
        if type(start) is SequenceStartEvent:
            return self._sequence(start, depth)
        raise _Unusual

    def _word(self, event: Any) -> object:
        """Return what a scalar means."""
        if event.anchor is not None or event.tag is not None:
            raise _Unusual
        text: str = event.value
        if not event.implicit[0]:
            return text  # in quotes, or a block
        meaning = self._words.get(text, _UNKNOWN)
        if meaning is _UNKNOWN:
            meaning = self._words[text] = _meaning(text)
        return meaning


def _check(start: Any, depth: int) -> None:
    if start.anchor is not None or start.tag is not None or depth > _DEEPEST:
        raise _Unusual


def _meaning(text: str) -> object:
    """Return what a word without quotes means, by PyYAML's own rules."""
    if _NUMBER.fullmatch(text):
        return int(text)
    if _ADDRESS.fullmatch(text):
        return text
    for tag, pattern in yaml.SafeLoader.yaml_implicit_resolvers.get(text[:1], ()):
        if pattern.match(text):
            if tag not in _CONSTRUCTED or len(text) > _LONGEST_WORD:
                raise _Unusual
            return yaml.constructor.SafeConstructor().construct_object(yaml.ScalarNode(tag, text))
    return text
