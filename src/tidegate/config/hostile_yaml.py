"""What YAML can hold that is worse than a mistake: the end of the process, or of its day; pure.

libyaml's loader crashes on lists nested ten thousand deep, and a number of YAML 1.1 in base 60
(``1:1:1:…``) takes time by the square of its length.
"""

from __future__ import annotations

from typing import Any

import yaml

_DEEPEST = 64
_LONGEST_NUMBER = 100
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


class HostileYaml(ValueError):
    """The document is not to be loaded; says why, and in which line."""


def check_depth(text: str, loader: Any, deepest: int = _DEEPEST) -> None:
    """Refuse lists in lists in lists, before anything is made of them.

    Args:
        text: The document.
        loader: A class of PyYAML's loaders, by which it is parsed.
        deepest: Lists and mappings may be in each other so many times.

    Raises:
        HostileYaml: they are deeper.
        yaml.YAMLError: it is no YAML.
    """
    depth = 0
    for event in yaml.parse(text, loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > deepest:
                mark = event.start_mark
                raise HostileYaml(f"{_line(mark)}lists in lists in lists, {deepest} deep")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def check_number(node: yaml.Node) -> None:
    """Refuse a number that is too long to be one.

    Raises:
        HostileYaml: it is.
    """
    if (
        isinstance(node, yaml.ScalarNode)
        and node.tag in _NUMBERS
        and len(node.value) > _LONGEST_NUMBER
    ):
        raise HostileYaml(
            f"{_line(node.start_mark)}{node.value[:20]!r}… is a number of {len(node.value)} "
            "characters"
        )


def _line(mark: Any) -> str:
    return "" if mark is None else f"line {mark.line + 1}: "
