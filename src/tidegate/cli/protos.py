"""``tidegate protos``: the .proto files of every protocol, for generating clients."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

import click

from tidegate import protocols
from tidegate.errors import ConfigurationError


def write_protos(folder: Path) -> int:
    """Write all files into ``folder``, beside each other, since they import each other so.

    Raises:
        ConfigurationError: they cannot be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file in _files():
            (folder / file.name).write_bytes(file.read_bytes())
            click.echo(folder / file.name)
    except OSError as error:
        raise ConfigurationError(
            f"the files cannot be written into {folder}: {error.strerror}; name another folder"
        ) from error
    return 0


def _files() -> Iterator[Traversable]:
    packages = sorted(resources.files(protocols).iterdir(), key=lambda item: item.name)
    for package in packages:
        if package.is_dir():
            yield from (file for file in package.iterdir() if file.name.endswith(".proto"))
