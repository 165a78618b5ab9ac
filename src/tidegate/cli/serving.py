"""``tidegate serve``: settings, what was found, and then the node."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import click

from tidegate.config.loading import load_node_config
from tidegate.errors import RuntimeMissing
from tidegate.repository.formats import REQUIREMENTS
from tidegate.repository.layout import ModelEntry, scan

_SERVING_PARTS = ("grpc", "httptools", "psutil", "starlette", "uvicorn", "uvloop", "watchfiles")


def serve(repository: Path, options: Mapping[str, object]) -> int:
    """Serve ``repository`` until a signal; return the exit status."""
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO if os.environ.get("TIDEGATE_DEBUG") else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    found = scan(repository)
    config, _ = load_node_config(repository, os.environ, options)
    check_serving_parts()
    if not found.models:
        announce(f"no models in {repository} yet; they are served as soon as they are there")
    for entry in found.models.values():
        if entry.versions:
            announce(inferred(entry))
    from tidegate.node.serving import serve as run

    run(repository, config, announce)
    return 0


def check_serving_parts() -> None:
    """Make sure that this is more than a client's install.

    Raises:
        RuntimeMissing: it is not; the message names the command.
    """
    missing = [part for part in _SERVING_PARTS if importlib.util.find_spec(part) is None]
    if missing:
        command = REQUIREMENTS["onnx"].command
        raise RuntimeMissing(
            f"this is an install without the serving parts ({', '.join(missing)} missing); "
            f"install them: {command}"
        )


def announce(line: str) -> None:
    """Tell what happens, with the time of day."""
    click.echo(f"{time.strftime('%H:%M:%S')} {line}")


def inferred(entry: ModelEntry) -> str:
    """Say in one line what a model was found to be."""
    served = entry.config.versions.select(list(entry.versions))
    if not served:
        return f"{entry.name}: none of its versions is selected"
    version = entry.versions[served[-1]]
    numbers = ", ".join(map(str, served))
    others = len(entry.versions) - len(served)
    replicas = entry.config.replicas
    return (
        f"{entry.name}: {version.format}, version{'s' if len(served) > 1 else ''} {numbers}"
        + (f" (of {len(entry.versions)})" if others else "")
        + (f", {replicas} replicas each" if replicas > 1 else "")
    )
