"""Command-line options made from the configuration schema, so that the two cannot drift."""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click
from pydantic.fields import FieldInfo

from tidegate.config.gateway import GatewayConfig
from tidegate.config.loading import PREFIX, plain_fields
from tidegate.config.node import NodeConfig
from tidegate.config.section import Section
from tidegate.config.units import parse_duration, parse_size
from tidegate.errors import ConfigurationError

_F = TypeVar("_F", bound=Callable[..., Any])


def node_options(only: Iterable[str] | None = None) -> Callable[[_F], _F]:
    """Add one option for each setting of a node, or for those in ``only``.

    The options hand over what was typed: the schema checks it, as it checks a file.
    """
    return _options(NodeConfig, NodeConfig.model_fields if only is None else only)


def gateway_options() -> Callable[[_F], _F]:
    """Add one option for each setting of a gateway that fits into a word."""
    return _options(GatewayConfig, plain_fields(GatewayConfig))


def settings_options(only: Iterable[str] | None = None) -> Callable[[_F], _F]:
    """Add one option for each setting of a node, or for those in ``only``.

    Then come those that gateways alone have.
    """
    wanted = list(
        dict.fromkeys((*NodeConfig.model_fields, *plain_fields(GatewayConfig)))
        if only is None
        else only
    )
    own = [name for name in wanted if name in NodeConfig.model_fields]
    more = [name for name in wanted if name not in NodeConfig.model_fields]

    def decorate(command: _F) -> _F:
        return node_options(own)(_options(GatewayConfig, more)(command))

    return decorate


def _options(schema: type[Section], names: Iterable[str]) -> Callable[[_F], _F]:
    def decorate(command: _F) -> _F:
        for name in reversed(list(names)):
            command = _option(name, schema.model_fields[name])(command)
        return command

    return decorate


def options_of(
    schema: type[Section], options: Mapping[str, object], place: Path | str
) -> Mapping[str, object]:
    """Return the options that this kind of server has.

    Raises:
        ConfigurationError: another one was given.
    """
    for name, value in options.items():
        if value is not None and name not in schema.model_fields:
            kind = "a gateway" if schema is GatewayConfig else "a node"
            option = "--" + name.replace("_", "-")
            raise ConfigurationError(f"{kind} has no {option}, and {place} is for {kind}")
    return {name: value for name, value in options.items() if name in schema.model_fields}


def which_node(command: _F) -> _F:
    """Add ``--port`` and ``--run-dir`` for a command that asks a node which runs already."""
    for option, metavar, note in (
        ("run_dir", "PATH", "the run directory that it was started with, if one was given"),
        ("port", "N", "the node on this port; may be left out where only one runs"),
    ):
        flag, variable = f"--{option.replace('_', '-')}", f"{PREFIX}{option.upper()}"
        note = f"{note}  [{variable}]"
        command = click.option(flag, option, default=None, metavar=metavar, help=note)(command)
    return command


def _option(name: str, field: FieldInfo) -> Callable[[_F], _F]:
    option = "--" + name.replace("_", "-")
    shown = "" if field.default is None else f"default: {_text(field)}; "
    note = f"{field.description}  [{shown}{PREFIX}{name.upper()}]"
    if field.annotation is bool:
        return click.option(f"{option}/--no-{option[2:]}", name, default=None, help=note)
    return click.option(option, name, default=None, metavar=_metavar(field), help=note)


def _metavar(field: FieldInfo) -> str:
    if is_size(field):
        return "SIZE"
    if is_duration(field):
        return "TIME"
    annotation = str(field.annotation)
    if "Path" in annotation:
        return "PATH"
    return "N" if "int" in annotation else "TEXT"


def _text(field: FieldInfo) -> str:
    if is_size(field):
        return size_text(field.default)
    if is_duration(field):
        return f"{field.default:g}s"
    if field.annotation is bool:
        return "on" if field.default else "off"
    return str(field.default)


def is_size(field: FieldInfo) -> bool:
    """Whether the field is a number of bytes."""
    return _reads(field, parse_size)


def is_duration(field: FieldInfo) -> bool:
    """Whether the field is a number of seconds."""
    return _reads(field, parse_duration)


def _reads(field: FieldInfo, parser: Callable[[object], object]) -> bool:
    parts: list[Any] = [*field.metadata, field.annotation]
    while parts:
        part = parts.pop()
        if getattr(part, "func", None) is parser:
            return True
        # Of an optional setting, what is said of its type lies within the union.
        parts += typing.get_args(part)
        parts += getattr(part, "metadata", ())
    return False


def exact_size(size: int) -> str:
    """Write a number of bytes with the largest unit that tells it exactly."""
    for unit, bytes_of in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size and size % bytes_of == 0:
            return f"{size // bytes_of}{unit}"
    return f"{size}B"


def size_text(size: int) -> str:
    """Write a number of bytes as people do: ``64MiB``, ``1.5GiB``, ``12B``."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.3g}{unit}" if value < 999.5 else f"{value:.0f}{unit}"
        value /= 1024
    return f"{value:.3g}TiB"
