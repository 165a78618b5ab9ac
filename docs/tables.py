"""Writes the tables of keys, commands and options into the documentation, from the code.

``python docs/tables.py`` renews every part of a page between ``<!-- table: NAME -->`` and
``<!-- end -->``; a test fails when a page is behind the code.
"""

from __future__ import annotations

import inspect
import re
import sys
import types
import typing
from pathlib import Path
from typing import Any

import annotated_types
import click
from pydantic import BeforeValidator
from pydantic.fields import FieldInfo

from tidegate.cli.exits import documented
from tidegate.cli.main import cli
from tidegate.config import endpoints, gateway
from tidegate.config.gateway import GatewayConfig
from tidegate.config.model import DeclaredTensor, ModelConfig
from tidegate.config.node import NodeConfig
from tidegate.config.origins import fields
from tidegate.config.section import Section
from tidegate.config.units import parse_duration, parse_size
from tidegate.telemetry.names import METRICS

sys.path.insert(0, str(Path(__file__).parents[1]))  # when this is run as a script

from docs import python_api
from tests.matrix import cells

PAGES = Path(__file__).parent
MARKED = re.compile(r"(?<=<!-- table: )(\w+)( -->\n).*?(?=<!-- end -->)", re.DOTALL)
GATEWAY_SECTIONS: tuple[type[Section], ...] = (
    GatewayConfig,
    gateway.GatewayModel,
    endpoints.Endpoints,
    endpoints.Kubernetes,
    gateway.Canary,
    gateway.Mirror,
    gateway.HeaderRoute,
    gateway.Traffic,
    gateway.Registration,
    gateway.Nodefile,
    gateway.ServerTls,
    gateway.ClientTls,
    gateway.ApiKeys,
    gateway.RateLimits,
    gateway.Rate,
)
NAMES = {bool: "true, false", int: "integer", float: "number", str: "text", Path: "path"}


def accepts(annotation: Any, metadata: tuple[Any, ...] = ()) -> str:
    """Say which values a field takes, as in ``duration, 0 to 10``."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        inner, *more = typing.get_args(annotation)
        return accepts(inner, (*more, *metadata))
    if origin in {typing.Union, types.UnionType}:
        kinds = [accepts(a, metadata) for a in typing.get_args(annotation) if a is not type(None)]
        return ", ".join(kinds)
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in typing.get_args(annotation))
    if origin is dict:
        value = typing.get_args(annotation)[1]
        return "mapping" if value is Any else f"mapping, each {accepts(value)}"
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return "tensors" if annotation is DeclaredTensor else named(annotation)
    if origin is tuple:
        return f"list of {accepts(typing.get_args(annotation)[0])}"
    validators = [m.func for m in flat(metadata) if isinstance(m, BeforeValidator)]
    if parse_duration in validators:
        kind = "duration"
    elif parse_size in validators:
        kind = "size"
    else:
        kind = NAMES[annotation]
    return kind + bounds(metadata)


def flat(metadata: tuple[Any, ...]) -> list[Any]:
    """Return what pydantic understands of ``metadata``, one constraint each."""
    found: list[Any] = []
    for item in metadata:
        found += flat(tuple(item.metadata)) if isinstance(item, FieldInfo) else [item]
    return found


def bounds(metadata: tuple[Any, ...]) -> str:
    """Say the limits of a number, as in ``, 1 to 256``."""
    low = high = None
    above = ""
    for item in flat(metadata):
        if isinstance(item, annotated_types.Ge | annotated_types.Gt):
            low = item.ge if isinstance(item, annotated_types.Ge) else item.gt
            above = "" if isinstance(item, annotated_types.Ge) else "above "
        if isinstance(item, annotated_types.Le):
            high = item.le
    if low is None:
        return ""
    return f", {low} to {high}" if high is not None else f", {above or 'from '}{low}"


def written(value: Any, accepted: str) -> str:
    """Return a default as a person would write it."""
    if value is None or value in ((), {}):
        return "—"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if accepted.startswith("size"):
        return f"`{value // 2**20}MiB`"
    if accepted.startswith("duration"):
        unit, scale = ("us", 1e6) if value < 1e-3 else ("s", 1)
        return f"`{value * scale:g}{unit}`" if value else "`0`"
    return f"`{value}`"


def table(head: str, rows: list[str]) -> str:
    """Return a Markdown table."""
    columns = head.count("|") - 1
    return "\n".join([head, "|" + " --- |" * columns, *rows]) + "\n"


def model_table() -> str:
    """Return the keys of ``model.yaml``."""
    rows = []
    for key, field in fields(ModelConfig):
        accepted = accepts(field.annotation, tuple(field.metadata))
        default = written(field.default, accepted)
        rows.append(f"| `{key}` | {accepted} | {default} | {field.description} |")
    return table("| key | accepts | default | meaning |", rows)


def node_table() -> str:
    """Return the settings of a node, with their options and variables."""
    rows = []
    for key, field in fields(NodeConfig):
        accepted = accepts(field.annotation, tuple(field.metadata))
        default = written(field.default, accepted)
        option, variable = f"--{key.replace('_', '-')}", f"TIDEGATE_{key.upper()}"
        names = f"`{key}` | `{option}` | `{variable}`"
        rows.append(f"| {names} | {accepted} | {default} | {field.description} |")
    return table("| key | option | variable | accepts | default | meaning |", rows)


def named(section: type[Section]) -> str:
    """Return the link to the keys of a section of ``gateway.yaml``."""
    title = section_title(section)
    return f"[{title}](#{title.replace(' ', '-')})"


def section_title(section: type[Section]) -> str:
    """Return a section's name in words, as ``header route``."""
    return re.sub("(?<=[a-z])(?=[A-Z])", " ", section.__name__).lower()


def gateway_table() -> str:
    """Return the keys of ``gateway.yaml``, a table for each of its sections."""
    parts = []
    for section in GATEWAY_SECTIONS:
        rows = []
        for key, field in section.model_fields.items():
            accepted = accepts(field.annotation, tuple(field.metadata))
            default = "needed" if field.is_required() else written(field.default, accepted)
            if isinstance(field.default, Section):
                default = "—"
            rows.append(f"| `{key}` | {accepted} | {default} | {field.description} |")
        head = "" if section is GatewayConfig else f"### {section_title(section)}\n\n"
        if section.__doc__ and head:
            head += f"{inspect.cleandoc(section.__doc__)}\n\n".replace("``", "`")
        parts.append(head + table("| key | accepts | default | meaning |", rows))
    return "\n".join(parts)


def commands() -> str:
    """Return a section for each command, with its arguments and options."""
    context = click.Context(cli, info_name="tidegate")
    sections = []
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        usage = command.collect_usage_pieces(click.Context(command, info_name=name))
        text = f"## tidegate {name}\n\n```text\ntidegate {name} {' '.join(usage)}\n```\n\n"
        text += f"{inspect.cleandoc(command.help or '')}\n"
        rows = [
            f"| {', '.join(f'`{o}`' for o in (*option.opts, *option.secondary_opts))} "
            f"| {plain(option.help or '')} |"
            for option in command.params
            if isinstance(option, click.Option)
        ]
        if rows:
            text += "\n" + table("| option | meaning |", rows)
        sections.append(text)
    return "\n".join(sections)


def plain(text: str) -> str:
    """Return the help of an option as Markdown takes it."""
    return text.replace("  [", " [").replace("[", "\\[").replace("|", "\\|")


def exits() -> str:
    """Return the exit statuses."""
    rows = [
        f"| {status} | {', '.join(f'`{name}`' for name in names.split(', ') if name)} | {when} |"
        for status, names, when in documented()
    ]
    return table("| status | errors | when |", rows)


def metrics_table() -> str:
    """Return every metric of a node."""
    rows = []
    for metric in METRICS:
        labels = ", ".join(f"`{label}`" for label in metric.labels) or "—"
        rows.append(f"| `{metric.name}` | {metric.kind} | {labels} | {metric.help} |")
    return table("| metric | kind | labels | meaning |", rows)


TABLES = {
    "metrics": metrics_table,
    "model": model_table,
    "node": node_table,
    "gateway": gateway_table,
    "commands": commands,
    "exits": exits,
    "serving": python_api.serving,
    "clients": python_api.clients,
    "records": python_api.records,
    "hooks": python_api.hook_types,
    "errors": python_api.error_tree,
    "matrix": cells.markdown,
}


def renewed(page: str) -> str:
    """Return ``page`` with its tables as the schema has them now."""
    return MARKED.sub(lambda m: f"{m[1]}{m[2]}\n{TABLES[m[1]]()}\n", page)


def main() -> None:
    """Renew every page."""
    for path in sorted(PAGES.rglob("*.md")):
        page = path.read_text(encoding="utf-8")
        if (new := renewed(page)) != page:
            path.write_text(new, encoding="utf-8")
            print(f"renewed {path}")


if __name__ == "__main__":
    main()
