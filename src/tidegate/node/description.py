"""``/openapi.json``: the REST calls of this node, with the inputs of the models that it serves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import orjson

from tidegate import __version__
from tidegate.controller.server_calls import Call, Endpoint, Extension
from tidegate.node.fleet import Fleet
from tidegate.node.probing import ask_metadata
from tidegate.protocols.open_inference import openapi
from tidegate.protocols.open_inference.openapi import Operation

PATH = "/openapi.json"


class Description:
    """Describes what is served; ``endpoints`` returns those of the controller."""

    def __init__(self, fleet: Fleet, endpoints: Callable[[], list[Endpoint]]) -> None:
        self._fleet = fleet
        self._endpoints = endpoints

    def extension(self) -> Extension:
        """Return the call."""
        summary = "This document"
        return Extension(
            endpoints=(Endpoint("GET", PATH, self._answer, summary, {"type": "object"}),)
        )

    async def document(self) -> dict[str, Any]:
        """Return the document. A model whose replica does not answer has no path of its own."""
        served = [
            (name, replica.spec.socket)
            for name in sorted(self._fleet.models)
            if (default := self._fleet.default(name)) is not None
            for replica in default.ready[:1]
            if replica.spec is not None
        ]
        found = await asyncio.gather(*(ask_metadata(socket, name) for name, socket in served))
        operations = openapi.model_operations()
        operations += [openapi.inference_of(metadata) for metadata in found if metadata]
        operations += [
            Operation(e.method, e.path, e.summary, e.gives, e.takes) for e in self._endpoints()
        ]
        return openapi.document("Tidegate", __version__, operations, sorted(self._fleet.models))

    async def _answer(self, call: Call) -> bytes:
        return orjson.dumps(await self.document())
