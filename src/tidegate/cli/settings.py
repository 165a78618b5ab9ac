"""``tidegate config``: every setting, its value, and where that came from."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import orjson
from pydantic.fields import FieldInfo
from rich.markup import escape
from rich.table import Table

from tidegate.cli.options import exact_size, is_duration, is_size, options_of
from tidegate.cli.terminal import new_console
from tidegate.config.gateway import GatewayConfig
from tidegate.config.loading import (
    MODEL_FILE,
    load_gateway_config,
    load_model_settings,
    load_node_config,
    nearest,
)
from tidegate.config.model import ModelConfig
from tidegate.config.node import NodeConfig
from tidegate.config.origins import DEFAULT, Origin, fields, value_of
from tidegate.config.section import Section
from tidegate.errors import ConfigurationError, ModelNotFound
from tidegate.repository.layout import scan


def config(
    place: Path,
    model: str | None,
    options: Mapping[str, object],
    *,
    show_origin: bool,
    as_json: bool,
) -> int:
    """Print the settings of a node that serves a folder, or of one of its models, or of a gateway.

    Raises:
        ConfigurationError: there is neither a folder nor a file at ``place``, or a source holds
            an unknown name or a wrong value.
        ModelNotFound: the repository has no such model.
    """
    section, origins = _settings(place, model, options)
    found = list(fields(type(section)))
    if as_json:
        values = section.model_dump(mode="json")
        rows = [_as_json(key, values, origins[key]) for key, _ in found]
        click.echo(orjson.dumps(rows, option=orjson.OPT_INDENT_2))
        return 0
    table = Table(box=None, padding=(0, 2), header_style="dim")
    columns = ("setting", "value", "from") if show_origin else ("setting", "value")
    for column in columns:
        table.add_column(column, overflow="fold")
    for key, field in found:
        origin = origins[key]
        style = "dim" if origin == DEFAULT else ""
        for name, value in _rows(key, value_of(section, key), field):
            cells = (escape(name), escape(value), escape(str(origin)))
            table.add_row(*cells[: len(columns)], style=style)
    new_console().print(table)
    return 0


def _settings(
    place: Path, model: str | None, options: Mapping[str, object]
) -> tuple[Section, Mapping[str, Origin]]:
    if place.is_file():
        if model is not None:
            raise ConfigurationError(
                f"{place} is a gateway's file: its models are among its settings; --model is for "
                "the folder of a repository"
            )
        return load_gateway_config(place, os.environ, options_of(GatewayConfig, options, place))
    if not place.is_dir():
        raise ConfigurationError(
            f"{place} is no folder and no file; give the path of a repository or of a gateway.yaml"
        )
    if model is not None:
        return _of_model(place, model)
    return load_node_config(place, os.environ, options_of(NodeConfig, options, place))


def _of_model(repository: Path, name: str) -> tuple[ModelConfig, Mapping[str, Origin]]:
    file = repository / name / MODEL_FILE
    models = scan(repository).models
    if name not in models:
        known = nearest(name, models) if models else "there is none"
        raise ModelNotFound(f"{repository} has no model {name!r}; {known}")
    if file.is_file():
        return load_model_settings(file)
    return ModelConfig(), {key: DEFAULT for key, _ in fields(ModelConfig)}


def _as_json(key: str, values: Mapping[str, Any], origin: Origin) -> dict[str, Any]:
    """Return one setting; sizes are in bytes and durations in seconds."""
    value: Any = values
    for name in key.split("."):
        value = None if value is None else value[name]
    return {
        "setting": key,
        "value": value,
        "source": origin.source,
        "name": origin.name or None,
        "line": origin.line,
    }


def _rows(key: str, value: Any, field: FieldInfo) -> Iterator[tuple[str, str]]:
    """Return a setting and its value; of what has sections by name, as models, one for each."""
    if isinstance(value, dict) and any(isinstance(each, Section) for each in value.values()):
        for name, each in value.items():
            yield f"{key}.{name}", _text(each, field)
    else:
        yield key, _text(value, field)


def _plain(value: Any) -> Any:
    """Return what orjson can write; of a section what it was given, or nobody could read it."""
    if isinstance(value, Section):
        return value.model_dump(mode="json", exclude_unset=True)
    return str(value)


def _text(value: Any, field: FieldInfo) -> str:
    """Write a value as a file would."""
    if value is None:
        return "—"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | dict | Section):
        return orjson.dumps(value, default=_plain).decode()
    if is_size(field):
        return exact_size(value)
    if is_duration(field):
        return f"{value:g}s"
    return str(value)
