"""Lists of endpoints as people and scripts write them: YAML, JSON or lines; pure.

As YAML (``.yaml``, ``.yml``) or JSON (``.json``), a list, or a mapping with the key
``endpoints``; each item is ``IP:PORT`` or a mapping::

    endpoints:
      - 10.0.0.7:8000
      - {address: 10.0.0.8:8500, protocol: tensorflow-serving, rest: 8501, weight: 300}

Any other file holds one endpoint a line, with what else is to be said as ``key=value``; ``#``
begins a comment::

    10.0.0.7:8000
    10.0.0.8:8500  protocol=tensorflow-serving rest=8501 weight=300
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

import orjson
import yaml

from tidegate.config.addresses import is_numeric, join_address, place, shortened, split_address
from tidegate.config.hostile_yaml import check_depth
from tidegate.errors import ConfigurationError
from tidegate.gateway.discovery.source import LARGEST_SET, too_many
from tidegate.gateway.endpoints import Endpoint, Traits

LARGEST_FILE = 4 * 2**20
"""Bytes."""
_MISTAKES_SHOWN = 5
_DEEPEST = 8
_KEYS = ("address", "protocol", "rest", "weight", "priority", "versions", "labels", "name")
_NUMBERS = ("weight", "priority", "rest")
# Leaves every value text, which is read below: YAML's own rules for numbers can take minutes
# (1:1:1:… is one). The one of libyaml, where PyYAML has it, is ten times as quick.
_LOADER: Any = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
_Item = tuple[str, object]
"""Where an item stands, in words, and what it is."""


def parse_endpoints(content: bytes, path: str, traits: Traits) -> tuple[Endpoint, ...]:
    """Read the list in the file ``path``, whose name tells its format.

    Args:
        content: The bytes of the file.
        path: For the format, and for errors.
        traits: What the endpoints are where the file says nothing else.

    Raises:
        ConfigurationError: something in it is wrong; the message names file, place and value of
            the first few mistakes. Nothing of such a file counts.
    """
    text = _text(content, path)
    if path.endswith((".yaml", ".yml")):
        items = _of_top(path, _yaml(path, text))
    elif path.endswith(".json"):
        items = _of_top(path, _json(path, text))
    else:
        items = _of_lines(text)
    found: dict[str, Endpoint] = {}
    mistakes: list[str] = []
    for where, item in items:
        try:
            endpoint = _endpoint(item, traits)
            if endpoint.address in found:
                raise ValueError(f"{endpoint.address} is there twice; keep one of them")
        except (ValueError, ConfigurationError) as error:
            mistakes.append(f"{path}{where}: {error}")
            if len(mistakes) > _MISTAKES_SHOWN:
                mistakes[-1] = "and more"
                break
        else:
            found[endpoint.address] = endpoint
            if len(found) > LARGEST_SET:
                raise ConfigurationError(f"{path} {too_many()}")
    if mistakes:
        raise ConfigurationError("; ".join(mistakes))
    return tuple(found.values())


def _text(content: bytes, path: str) -> str:
    if len(content) > LARGEST_FILE:
        raise ConfigurationError(f"{path}: larger than 4 MiB, which no list of endpoints is")
    if not content.strip():
        # What a full disk leaves, or a script that failed; never meant to say "none".
        raise ConfigurationError(
            f"{path}: is empty; write [] (YAML, JSON) or a comment line if there are no endpoints"
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: is not UTF-8 text (byte {error.start})") from None
    if "\0" in text:
        raise ConfigurationError(f"{path}: is not text (byte 0 at {text.index(chr(0))})")
    return text


def _yaml(path: str, text: str) -> object:
    try:
        check_depth(text, _LOADER, _DEEPEST)
        return yaml.load(text, _LOADER)  # noqa: S506 - makes nothing but texts
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f", line {mark.line + 1}"
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigurationError(f"{path}{line}: not valid YAML: {reason}") from None
    except (ValueError, RecursionError, TypeError) as error:
        raise ConfigurationError(f"{path}: not valid YAML: {error}") from None


def _json(path: str, text: str) -> object:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise ConfigurationError(
            f"{path}, line {error.lineno}: not valid JSON: {error.msg}"
        ) from None


def _of_top(path: str, top: object) -> Iterator[_Item]:
    if isinstance(top, dict):
        unknown = next((key for key in top if key != "endpoints"), None)
        if unknown is not None or "endpoints" not in top:
            raise ConfigurationError(
                f"{path}: the only key is endpoints, not {_brief(unknown)}; or write a list"
            )
        top = top["endpoints"]
    if not isinstance(top, list):
        raise ConfigurationError(
            f"{path}: must be a list of endpoints, not {_brief(top)}; write [] for none"
        )
    return ((f", endpoint {number}", item) for number, item in enumerate(top, start=1))


def _of_lines(text: str) -> Iterator[_Item]:
    for number, whole in enumerate(text.splitlines(), start=1):
        address, *words = whole.partition("#")[0].split() or [""]
        if address:
            yield f", line {number}", _line(address, words)


def _line(address: str, words: list[str]) -> Mapping[str, object] | ValueError:
    said: dict[str, object] = {"address": address}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not value:
            return ValueError(f"{shortened(word)} is not key=value, as weight=300")
        if key in said:
            return ValueError(f"{shortened(key)} is there twice; keep one of them")
        said[key] = value
        if key in ("versions", "labels"):
            said[key] = value.split(",")
    return said


def _endpoint(item: object, traits: Traits) -> Endpoint:
    if isinstance(item, ValueError):
        raise item
    if isinstance(item, str):
        item = {"address": item}
    if not isinstance(item, Mapping):
        raise ValueError(f"must be IP:PORT, or a mapping with an address, not {_brief(item)}")
    for key in item:
        if key not in _KEYS:
            close = difflib.get_close_matches(str(key)[:40], _KEYS, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(_KEYS)}"
            raise ValueError(f"unknown key {_brief(key)}; {hint}")
    host, port = _place(item.get("address"))
    said = {key: _number(item[key], key) for key in _NUMBERS if key in item}
    rest = said.get("rest", traits.rest_port)
    return Endpoint(
        address=join_address(host, port),
        protocol=item.get("protocol", traits.protocol),
        rest=None if rest is None else join_address(host, rest),
        weight=said.get("weight", traits.weight),
        priority=said.get("priority", traits.priority),
        versions=_versions(item["versions"]) if "versions" in item else traits.versions,
        labels=_labels(item["labels"]) if "labels" in item else traits.labels,
        name=_string(item["name"], "name") if "name" in item else "",
        secure=traits.secure,
    )


def _place(value: object) -> tuple[str, int]:
    text = _string(value, "address")
    host, port = split_address(place(text))
    if not is_numeric(host):
        raise ValueError(
            f"{shortened(text)} is a name: a list holds IP addresses; give names in gateway.yaml, "
            "where they are looked up"
        )
    return host, port


def _number(value: object, key: str) -> int:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
        return int(value)  # Every value of a line and of YAML is text.
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise ValueError(f"{key} must be a whole number, not {_brief(value)}")


def _versions(value: object) -> frozenset[int]:
    if not isinstance(value, list) or len(value) > 1000:
        raise ValueError(f"versions must be a list of numbers, as [1, 2], not {_brief(value)}")
    found = frozenset(_number(version, "each of versions") for version in value)
    if any(not 1 <= version < 2**63 for version in found):
        raise ValueError("versions are numbers from 1 to 2**63 - 1")
    return found


def _labels(value: object) -> frozenset[str]:
    if not isinstance(value, list) or len(value) > 1000:
        raise ValueError(f"labels must be a list of names, as [stable], not {_brief(value)}")
    return frozenset(_string(label, "each of labels") for label in value)


def _string(value: object, key: str) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{key} must be text, not {_brief(value)}")
    return value


def _brief(value: object) -> str:
    """Return a value as an error may show it; a mapping that holds itself a million times too."""
    if value is None:
        return "nothing"
    if isinstance(value, str):
        return shortened(value)
    if isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < 10**30):
        return repr(value)
    return f"a {type(value).__name__}"
