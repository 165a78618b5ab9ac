"""What a gateway's controller leaves for the next one: which endpoints it knew last."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson

from tidegate.controller.run_directory import write_whole
from tidegate.errors import ConfigurationError
from tidegate.gateway.endpoints import Endpoint
from tidegate.gateway.registry import Registry
from tidegate.gateway.sources import Sources


class Memory:
    """Keeps it in a file; one that cannot be read is as none."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._written: bytes = b""

    def keep(self, sources: Sources, registry: Registry) -> None:
        """Write down what is known, if it has changed.

        Raises:
            OSError: it cannot be written.
        """
        known = {key: [_written(e) for e in found] for key, found in sources.known().items()}
        document = orjson.dumps({"sources": known, "registry": registry.dump()})
        if document != self._written:
            write_whole(self._file, document)
            self._written = document

    def recall(self, sources: Sources, registry: Registry, now: float) -> None:
        """Make what was written down known again, until there is something newer."""
        try:
            document: Any = orjson.loads(self._file.read_bytes())
            known = {
                key: tuple(_read(endpoint) for endpoint in found)
                for key, found in document["sources"].items()
            }
            registry.restore(document["registry"], now)
        except (OSError, ValueError, TypeError, LookupError, AttributeError, ConfigurationError):
            return
        sources.remember(known)


def _written(endpoint: Endpoint) -> dict[str, Any]:
    document = asdict(endpoint)
    for key in ("versions", "labels"):
        if document[key] is not None:
            document[key] = sorted(document[key])
    return document


def _read(document: Mapping[str, Any]) -> Endpoint:
    sets = {
        key: None if document[key] is None else frozenset(document[key])
        for key in ("versions", "labels")
    }
    return Endpoint(**{**document, **sets})
