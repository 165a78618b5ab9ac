"""Envoy's admin interface over its Unix socket: just enough HTTP for one question at a time.

Source: https://www.envoyproxy.io/docs/envoy/latest/operations/admin
"""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tidegate.errors import EdgeFailed

_TIMEOUT = 10.0
_LINE_LIMIT = 2**20


@dataclass(frozen=True, slots=True)
class AdminClient:
    """Asks the Envoy whose admin socket is ``socket``.

    Every method raises :class:`~tidegate.errors.EdgeFailed` when Envoy cannot be reached, does
    not answer in ten seconds, or answers with an error.
    """

    socket: Path

    async def get(self, path: str) -> bytes:
        """Return the body of ``GET path``."""
        return await self._call("GET", path)

    async def post(self, path: str) -> bytes:
        """Return the body of ``POST path``."""
        return await self._call("POST", path)

    async def stats(self, pattern: str = "") -> dict[str, int]:
        """Return counters and gauges whose names match the regular expression ``pattern``."""
        return await self._stats("All", pattern)

    async def gauge(self, name: str) -> int:
        """Return a gauge, 0 if there is none: of thousands of statistics a few are gauges."""
        return (await self._stats("Gauges", f"^{re.escape(name)}$")).get(name, 0)

    async def _stats(self, kind: str, pattern: str) -> dict[str, int]:
        query = f"/stats?format=json&type={kind}&filter={quote(pattern, safe='')}"
        found = json.loads(await self.get(query))["stats"]
        return {s["name"]: s["value"] for s in found if isinstance(s.get("value"), int)}

    async def clusters(self) -> dict[str, list[dict[str, Any]]]:
        """Return the host statuses of each cluster, as Envoy writes them in JSON."""
        found = json.loads(await self.get("/clusters?format=json"))["cluster_statuses"]
        return {c["name"]: c.get("host_statuses", []) for c in found}

    async def listening_addresses(self) -> dict[str, tuple[str, int]]:
        """Return host and port of each listener: the real port where 0 was asked for."""
        found = json.loads(await self.get("/listeners?format=json"))
        addresses = {}
        for status in found.get("listener_statuses", []):
            address = status["local_address"].get("socket_address")
            if address is not None:  # the others listen inside Envoy
                addresses[status["name"]] = (address["address"], address["port_value"])
        return addresses

    async def activity(self) -> tuple[int, int]:
        """Return how many requests of clients are under way, and how many connections are open."""
        stats = await self.stats(r"^http\.clients\.downstream_(rq|cx)_active$")
        return (
            stats.get("http.clients.downstream_rq_active", 0),
            stats.get("http.clients.downstream_cx_active", 0),
        )

    async def _call(self, method: str, path: str) -> bytes:
        try:
            async with asyncio.timeout(_TIMEOUT):
                return await self._exchange(method, path)
        except (OSError, EOFError, ValueError, TimeoutError) as error:
            raise EdgeFailed(
                f"Envoy does not answer {method} {path} on {self.socket}: "
                f"{error or type(error).__name__}"
            ) from error

    async def _exchange(self, method: str, path: str) -> bytes:
        reader, writer = await asyncio.open_unix_connection(str(self.socket), limit=_LINE_LIMIT)
        try:
            writer.write(
                f"{method} {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n"
                "content-length: 0\r\n\r\n".encode()
            )
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            body = await _body(reader, head)
        finally:
            writer.close()
        status = int(head.split(" ", 2)[1])
        if status >= 400:
            raise ValueError(f"{status} {body[:200].decode(errors='replace').strip()}")
        return body


async def _body(reader: asyncio.StreamReader, head: str) -> bytes:
    if "transfer-encoding: chunked" not in head:
        return await reader.read()
    parts = []
    while size := int(await reader.readuntil(b"\r\n"), 16):
        parts.append(await reader.readexactly(size))
        await reader.readexactly(2)
    return b"".join(parts)
