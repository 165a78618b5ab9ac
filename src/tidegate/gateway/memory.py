"""What a gateway's controller leaves for the next one: which endpoints it knew last."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson

from tidegate.config.endpoints import Endpoints
from tidegate.controller.run_directory import write_whole
from tidegate.errors import ConfigurationError
from tidegate.gateway.endpoints import Endpoint
from tidegate.gateway.models import Task
from tidegate.gateway.registry import Registry
from tidegate.gateway.sources import Sources


class Memory:
    """Keeps it in a file; one that cannot be read is as none."""

    def __init__(self, file: Path) -> None:
        self.path = file
        self._known: tuple[object, int, object] | None = None
        """What is written there."""
        self.problem: str | None = None

    def keep(
        self, sources: Sources, registry: Registry, tasks: Mapping[str, Task] | None = None
    ) -> None:
        """Write down what is known, if it has changed; :attr:`problem` says why it cannot be."""
        known = sources.known(), registry.revision, dict(tasks or {})
        # Comparing is quick: a source that found nothing new gives the very same endpoints.
        if known != self._known:
            found = {key: [_written(e) for e in endpoints] for key, endpoints in known[0].items()}
            document = {
                "sources": found,
                "registry": registry.dump(),
                "tasks": {key: _written_task(task) for key, task in known[2].items()},
            }
            # What cannot be kept for a later controller is in effect all the same.
            try:
                write_whole(self.path, orjson.dumps(document))
            except OSError as error:
                self.problem = f"cannot be written: {error.strerror or error}"
                return
            self._known, self.problem = known, None

    def recall(self, sources: Sources, registry: Registry, now: float) -> dict[str, Task]:
        """Make what was written down known again, until there is something newer.

        Returns:
            The tasks of the nodefile.
        """
        try:
            document: Any = orjson.loads(self.path.read_bytes())
            known = {
                key: tuple(_read(endpoint) for endpoint in found)
                for key, found in document["sources"].items()
            }
            tasks = {key: _read_task(task) for key, task in document["tasks"].items()}
            registry.restore(document["registry"], now)
        except (OSError, ValueError, TypeError, LookupError, AttributeError, ConfigurationError):
            return {}
        sources.remember(known)
        return tasks


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


def _written_task(task: Task) -> dict[str, Any]:
    entries = [entry.model_dump(mode="json") for entry in task.endpoints]
    return {"timeout": task.timeout, "endpoints": entries}


def _read_task(document: Mapping[str, Any]) -> Task:
    entries = map(Endpoints.model_validate, document["endpoints"])
    return Task(float(document["timeout"]), tuple(entries))
