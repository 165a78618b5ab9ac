"""``tidegate inspect``: what a path is, and the signature of what can be loaded."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click
import orjson
from rich.markup import escape
from rich.table import Table

from tidegate.cli.elsewhere import signatures_by
from tidegate.cli.options import size_text
from tidegate.cli.terminal import new_console, waiting
from tidegate.config.model import ModelConfig
from tidegate.errors import ConfigurationError, ModelError
from tidegate.node.environments import is_own
from tidegate.protocols.statuses import status_of
from tidegate.replica.loading import load as load_model
from tidegate.repository.entries import ModelEntry, Problem, Repository, VersionEntry
from tidegate.repository.layout import is_model_folder, read_model, scan
from tidegate.runtimes.interface import RuntimeOptions
from tidegate.types import Signature, TensorSpec

_INVALID = status_of(ModelError()).exit


@dataclass(frozen=True, slots=True)
class _Inspected:
    """A model, and the signature of its default version where that could be read."""

    entry: ModelEntry
    served: tuple[int, ...]
    signature: Signature | None
    others: Mapping[str, Signature] = field(default_factory=dict)
    """Signatures beside the default one, by name."""


def inspect(path: Path, *, as_json: bool, load: bool) -> int:
    """Print what ``path`` is; return 65 when something there is invalid."""
    found = _found(path)
    inspected = []
    for name, entry in sorted(found.models.items()):
        with waiting(f"loading {name}"):
            inspected.append(_inspect(entry, load))
    problems = [*found.problems, *(p for each in inspected for p in each.entry.problems)]
    if as_json:
        content = {
            "path": str(path),
            "models": [_as_json(each) for each in inspected],
            "problems": [_problem_as_json(p) for p in found.problems],
        }
        click.echo(orjson.dumps(content, option=orjson.OPT_INDENT_2))
    else:
        _print(path, inspected, problems)
    return _INVALID if any(p.kind == "invalid" for p in problems) else 0


def _found(path: Path) -> Repository:
    try:
        alone = not path.is_dir() or is_model_folder(path)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    if not alone:
        return scan(path)
    entry = read_model(path)
    return Repository({entry.name: entry})


def _inspect(entry: ModelEntry, load: bool) -> _Inspected:
    served = entry.config.versions.select(list(entry.versions))
    if not served or not load:
        return _Inspected(entry, served, None)
    version = entry.versions[served[-1]]
    try:
        return _Inspected(entry, served, *_signatures(version, entry.config))
    except (ModelError, ConfigurationError) as error:
        path, folder = version.path, version.folder
        # In a repository of folders most files have the same name.
        place = path.name if folder is None else str(path.relative_to(folder.parent))
        problem = Problem(place, str(error), "invalid", "")
        return _Inspected(replace(entry, problems=(*entry.problems, problem)), served, None)


def _signatures(
    version: VersionEntry, config: ModelConfig
) -> tuple[Signature, Mapping[str, Signature]]:
    """Return the public signature, and by name those beside it."""
    interpreter = config.interpreter
    if interpreter is not None and not is_own(interpreter, sys.executable):
        return signatures_by(interpreter, version, config)
    options = RuntimeOptions(device="cpu", folder=version.folder, config=config)
    loaded = load_model(version.runtime, version.path, options)
    others = dict(list(loaded.model.signatures.items())[1:])
    loaded.model.close()
    return loaded.public, others


def _print(path: Path, inspected: list[_Inspected], problems: list[Problem]) -> None:
    console = new_console()
    for each in inspected:
        entry = each.entry
        if not entry.versions:
            continue
        first = next(iter(entry.versions.values()))
        versions = ", ".join(
            f"{v.version}{'' if v.version in each.served else ' (not served)'} "
            f"[dim]{size_text(v.size)}[/dim]"
            for v in sorted(entry.versions.values(), key=lambda v: v.version)
        )
        console.print(
            f"[bold]{escape(entry.name)}[/bold]  {first.format} on the runtime {first.runtime}",
            highlight=False,
        )
        console.print(f"  versions  {versions}", highlight=False)
        if entry.config.interpreter is not None:
            text = f"  runs in   {escape(str(entry.config.interpreter))}"
            console.print(text, highlight=False, soft_wrap=True)
        if each.signature is not None:
            console.print(_table(each.signature, f"version {each.served[-1]}"))
        for name, signature in each.others.items():
            console.print(_table(signature, f"signature {name}"))
        console.print()
    for problem in problems:
        style = "red" if problem.kind == "invalid" else "yellow"
        console.print(
            f"[{style}]{problem.kind}[/{style}]  {escape(str(problem))}",
            highlight=False,
            soft_wrap=True,
        )
    if not inspected and not problems:
        console.print(f"no models in {escape(str(path))}", highlight=False, soft_wrap=True)


def _table(signature: Signature, title: str) -> Table:
    table = Table(box=None, padding=(0, 2), header_style="dim")
    for column in (escape(title), "name", "type", "shape"):
        table.add_column(column, no_wrap=column != "shape", overflow="fold")
    for role, specs in (("input", signature.inputs), ("output", signature.outputs)):
        for spec in specs:
            table.add_row(role, escape(spec.name), spec.dtype.value, escape(_shape(spec)))
    return table


def _shape(spec: TensorSpec) -> str:
    if spec.shape is None:
        return "of any rank"
    return f"[{', '.join('?' if d is None else str(d) for d in spec.shape)}]"


def _as_json(each: _Inspected) -> dict[str, Any]:
    entry, signature = each.entry, each.signature
    return {
        "name": entry.name,
        "versions": [
            {
                "version": v.version,
                "served": v.version in each.served,
                "path": str(v.path),
                "format": v.format,
                "runtime": v.runtime,
                "bytes": v.size,
            }
            for v in sorted(entry.versions.values(), key=lambda v: v.version)
        ],
        "default_version": each.served[-1] if each.served else None,
        "inputs": None if signature is None else _specs_as_json(signature.inputs),
        "outputs": None if signature is None else _specs_as_json(signature.outputs),
        "other_signatures": {
            name: {
                "inputs": _specs_as_json(found.inputs),
                "outputs": _specs_as_json(found.outputs),
            }
            for name, found in each.others.items()
        },
        "config": entry.config.model_dump(mode="json"),
        "problems": [_problem_as_json(p) for p in entry.problems],
    }


def _specs_as_json(specs: Iterable[TensorSpec]) -> list[dict[str, Any]]:
    return [
        {
            "name": spec.name,
            "datatype": spec.dtype.value,
            "shape": None if spec.shape is None else list(spec.shape),
        }
        for spec in specs
    ]


def _problem_as_json(problem: Problem) -> dict[str, str]:
    return {
        "kind": problem.kind,
        "file": problem.file,
        "reason": problem.reason,
        "hint": problem.hint,
    }
