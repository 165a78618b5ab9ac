"""From files, variables and options to the typed schema; every mistake names its place."""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pydantic

from tidegate.config.gateway import GatewayConfig
from tidegate.config.model import ModelConfig
from tidegate.config.node import NodeConfig
from tidegate.config.node_tls import server_tls
from tidegate.config.origins import DEFAULT, Origin, fields, is_given, section_of
from tidegate.config.section import Section
from tidegate.config.yaml_file import LARGEST_FILE, Lines, read_mapping
from tidegate.errors import ConfigurationError

MODEL_FILE = "model.yaml"
"""What a model's folder may hold."""
NODE_FILE = "tidegate.yaml"
"""What a repository's root may hold."""
PREFIX = "TIDEGATE_"
"""How the variables of a node's settings begin."""

_OTHER_VARIABLES = frozenset({"TIDEGATE_DEBUG"})
# Kubernetes gives every pod such variables for a service that is named "tidegate".
_SERVICE_VARIABLES = re.compile(r"TIDEGATE_(SERVICE_(HOST|PORT.*)|PORT_[0-9]+_(TCP|UDP|SCTP).*)")
_SERVICE_ADDRESS = re.compile(r"(tcp|udp|sctp)://")
_LARGEST_GATEWAY_FILE = 2**26
"""Thousands of endpoints, a line each, are a file that people do have."""
_LARGEST: Mapping[type[Section], int] = {GatewayConfig: _LARGEST_GATEWAY_FILE}
_PATTERNS = {
    "otlp_endpoint": "an address, as http://127.0.0.1:4318",
    "device": "auto, cpu, cuda or cuda:N",
    "join": "the admin port of a gateway, as http://gateway:8002",
    "allowed_origins": "a site as browsers name it, as https://app.example",
}
"""What is said of a text that is not as its key wants it."""
_NO_PATHS = (str, int, float, bool, type(None))
_SERVERS: tuple[type[Section], ...] = (NodeConfig, GatewayConfig)
_S = TypeVar("_S", bound=Section)


def load_model_config(path: Path) -> ModelConfig:
    """Read a ``model.yaml``; an empty file means every default.

    Raises:
        ConfigurationError: the file cannot be read, is not a YAML mapping, or holds an
            unknown key or a wrong value; the message names file, line, key and value.
    """
    return load_model_settings(path)[0]


def load_model_settings(path: Path) -> tuple[ModelConfig, Mapping[str, Origin]]:
    """Read a ``model.yaml`` as :func:`load_model_config` does, and tell the origins.

    Returns:
        The settings, and where the value of each key (as ``batching.enabled``) came from.

    Raises:
        ConfigurationError: as :func:`load_model_config`.
    """
    data, lines = read_mapping(path)
    config = _validate(ModelConfig, data, str(path), lines)
    return config, dict.fromkeys(keys_of(ModelConfig), DEFAULT) | _in_file(path, config, lines)


def load_node_config(
    root: Path, environ: Mapping[str, str], options: Mapping[str, object]
) -> tuple[NodeConfig, Mapping[str, Origin]]:
    """Merge a node's settings: options, then ``TIDEGATE_…``, then ``ROOT/tidegate.yaml``.

    An option that is ``None`` and a variable that is empty count as not given. Relative
    paths in the file are relative to ``root``, all others to the working directory.

    Returns:
        The settings, and where the value of each key came from.

    Raises:
        ConfigurationError: a source holds an unknown name or a wrong value, or some settings of
            TLS are given without the others.
    """
    file = root / NODE_FILE
    config, origins = _merge(NodeConfig, file if file.is_file() else None, environ, options)
    server_tls(config)  # settings that go together may come from several sources
    return config, origins


def load_gateway_config(
    file: Path, environ: Mapping[str, str], options: Mapping[str, object]
) -> tuple[GatewayConfig, Mapping[str, Origin]]:
    """Merge a gateway's settings: options, then ``TIDEGATE_…``, then ``file``.

    Relative paths in the file are relative to its folder, as those of a node's are.

    Returns:
        The settings, and where the value of each key came from.

    Raises:
        ConfigurationError: a source holds an unknown name or a wrong value, or there is no file,
            or nothing in it: that is what a full disk or a script that failed leaves.
    """
    if not file.exists():
        raise ConfigurationError(
            f"there is no file {file}: write one that begins with 'models:', or give its path"
        )
    if file.is_dir():
        raise ConfigurationError(
            f"{file} is a folder; give the gateway's file, or serve the models in it with "
            f"'tidegate serve {file}'"
        )
    return _merge(GatewayConfig, file, environ, options)


def _merge(
    schema: type[_S],
    file: Path | None,
    environ: Mapping[str, str],
    options: Mapping[str, object],
) -> tuple[_S, Mapping[str, Origin]]:
    values: dict[str, object] = {}
    origins = dict.fromkeys(keys_of(schema), DEFAULT)
    if file is not None:
        data, lines = read_mapping(file, _LARGEST.get(schema, LARGEST_FILE))
        if not data and schema is GatewayConfig:
            raise ConfigurationError(
                f"{file}: says nothing; write 'models: {{}}' for a gateway without models"
            )
        config = _validate(schema, data, str(file), lines)
        found = _below(config, file.parent)
        values = {name: getattr(found, name) for name in data}
        origins |= _in_file(file, config, lines)
    for name, variable, text in _variables(schema, environ):
        values[name] = _single(schema, name, text, variable)
        origins[name] = Origin("environment", variable)
    for name, value in options.items():
        if value is not None:
            option = "--" + name.replace("_", "-")
            values[name] = _single(schema, name, value, option)
            origins[name] = Origin("command line", option)
    return _validate(schema, values, "settings", {}), origins


def _below(value: Any, root: Path) -> Any:
    """Return ``value`` with every relative path in it below ``root``."""
    if isinstance(value, Section):
        below = {}
        for name in value.model_fields_set:
            each = getattr(value, name)
            # Most of what a long file holds are words and numbers.
            if type(each) not in _NO_PATHS and (moved := _below(each, root)) is not each:
                below[name] = moved
        return value.model_copy(update=below) if below else value
    if isinstance(value, Path):
        return root / value.expanduser()
    if isinstance(value, tuple):
        items = tuple(_below(item, root) for item in value)
        return items if any(a is not b for a, b in zip(items, value)) else value
    if isinstance(value, dict):
        found = {key: _below(item, root) for key, item in value.items()}
        return found if any(found[key] is not value[key] for key in found) else value
    return value


def keys_of(schema: type[Section]) -> list[str]:
    """Return every key of ``schema``; sections are flattened with dots."""
    return [key for key, _ in fields(schema)]


def _in_file(path: Path, config: Section, lines: Lines) -> dict[str, Origin]:
    """Return the origins of the keys that ``config``, read from ``path``, was given."""
    found = {}
    for key in keys_of(type(config)):
        if is_given(config, key):
            # Of a short form, as "versions: all", only the key above has a line.
            above: tuple[str | int, ...] = tuple(key.split("."))
            while above and above not in lines:
                above = above[:-1]
            found[key] = Origin("file", str(path), lines.get(above))
    return found


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``"did you mean X?"``, or the list of what is known when nothing is near."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(names)}"


def plain_fields(schema: type[Section]) -> list[str]:
    """Return the keys whose values fit into one word: those that options and variables set."""
    return [
        name
        for name, field in schema.model_fields.items()
        if section_of(field.annotation) is None and typing.get_origin(field.annotation) is not dict
    ]


def _variables(
    schema: type[Section], environ: Mapping[str, str]
) -> Iterator[tuple[str, str, str]]:
    known = {PREFIX + name.upper(): name for name in plain_fields(schema)}
    # What is for the other kind of server says nothing here.
    elsewhere = {
        PREFIX + name.upper() for other in _SERVERS for name in plain_fields(other)
    } - known.keys()
    for variable in sorted(environ):
        if not variable.startswith(PREFIX) or variable in _OTHER_VARIABLES:
            continue
        value = environ[variable]
        if _SERVICE_VARIABLES.fullmatch(variable) or _SERVICE_ADDRESS.match(value):
            continue
        if variable in elsewhere:
            continue
        if variable not in known:
            raise ConfigurationError(
                f"the environment variable {variable} is unknown; {nearest(variable, known)}"
            )
        if value:
            yield known[variable], variable, value


def _single(schema: type[Section], name: str, value: object, source: str) -> object:
    """Validate one value by itself, so that the message can name the place it came from."""
    return getattr(_validate(schema, {name: value}, source, {}), name)


def _validate(schema: type[_S], data: Mapping[str, object], source: str, lines: Lines) -> _S:
    try:
        return schema.model_validate(data)
    except pydantic.ValidationError as error:
        raise ConfigurationError(_explain(schema, data, source, lines, error)) from None


def _explain(
    schema: type[Section],
    data: Mapping[str, object],
    source: str,
    lines: Lines,
    error: pydantic.ValidationError,
) -> str:
    by_key: dict[tuple[str | int, ...], list[str]] = {}
    for detail in error.errors(include_url=False):
        where = _in_data(detail["loc"], data)
        reason = _reason(schema, where, detail)
        reasons = by_key.setdefault(where, [])
        if reason not in reasons:
            reasons.append(reason)
    parts = []
    for where in sorted(by_key, key=lambda where: lines.get(where, 0)):
        reason = " or ".join(by_key[where]).replace(" or must be ", " or ")
        if reason.startswith("must"):
            reason += _offending(data, where)
        line = f", line {lines[where]}" if where in lines else ""
        # A variable or an option says by its own name which setting it is.
        named = source.startswith(("--", PREFIX))
        subject = source if named else f"{source}{line}: {'.'.join(map(str, where))}"
        parts.append(f"{subject}{' ' if reason.startswith('must') else ': '}{reason}")
    return "; ".join(parts)


def _in_data(loc: tuple[str | int, ...], data: object) -> tuple[str | int, ...]:
    """Cut off what pydantic adds to a place beyond the keys: the branch of a union."""
    where: list[str | int] = []
    for step in loc:
        try:
            data = data[step]  # type: ignore[index]
        except (KeyError, IndexError, TypeError):
            break
        where.append(step)
    return tuple(where)


def _reason(schema: type[Section], where: tuple[str | int, ...], detail: Any) -> str:
    kind = detail["type"]
    if where and where[-1] == "versions":
        return "must be latest, all, version numbers as [1, 3], or {latest: N}"
    if where and where[-1] == "warmup" and kind in ("model_type", "model_attributes_type"):
        keys = ", ".join(_section(schema, where).model_fields)
        return f"must be true, false, the name of a file with inputs, or a mapping with {keys}"
    if kind == "extra_forbidden":
        section = _section(schema, where[:-1])
        return f"unknown key; {nearest(str(where[-1]), section.model_fields)}"
    if kind == "dict_type":
        return "must be a mapping"
    if kind in ("model_type", "model_attributes_type"):
        return f"must be a mapping with some of {', '.join(_section(schema, where).model_fields)}"
    if kind == "value_error":
        return str(detail["ctx"]["error"])
    message: str = detail["msg"]
    if kind == "string_pattern_mismatch":
        for key, what in _PATTERNS.items():
            if key in where:
                return f"must be {what}"
    return message.replace("Input should be", "must be", 1).split(", unable to")[0]


def _section(schema: type[Section], where: tuple[str | int, ...]) -> type[Section]:
    """Return the part of the schema at a place, or the one above it if it is no part."""
    kind: Any = schema
    for step in where:
        found = section_of(kind)
        if found is not None:
            schema = found
            field = schema.model_fields.get(str(step))
            kind = None if field is None else field.annotation
        elif typing.get_origin(kind) is tuple:
            kind = typing.get_args(kind)[0]
        elif typing.get_origin(kind) is dict:
            kind = typing.get_args(kind)[1]
        else:
            return schema
    return section_of(kind) or schema


def _offending(data: object, where: tuple[str | int, ...]) -> str:
    for step in where:
        data = data[step]  # type: ignore[index]
    if isinstance(data, Mapping):
        return ", not a mapping"
    return ", not a list" if isinstance(data, list) else f", not {data!r:.80}"
