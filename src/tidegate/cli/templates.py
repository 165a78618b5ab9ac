"""``tidegate init``: files to begin with."""

from __future__ import annotations

import importlib.resources
from pathlib import Path

import click

from tidegate.errors import ConfigurationError

_HOOKS = "hooks.py"


def write_hooks(folder: Path) -> int:
    """Write ``hooks.py`` into a model's folder.

    Raises:
        ConfigurationError: there is no such folder, it has one already, or it cannot be written.
    """
    if not folder.is_dir():
        raise ConfigurationError(f"{folder} is no folder: give that of a model")
    path = folder / _HOOKS
    text = importlib.resources.files(__package__).joinpath("hooks_template.py").read_text("utf-8")
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ConfigurationError(f"{path} is there already; it is not changed") from None
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from error
    click.echo(f"wrote {path}: edit it, and a node that serves the model takes it at once")
    return 0
