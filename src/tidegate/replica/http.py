"""The listener of a process behind an edge: HTTP/1.1 and HTTP/2 on one Unix socket."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import cast

from tidegate.replica.exchange import Handler, OpenConnections
from tidegate.replica.http1 import Http1Connection
from tidegate.replica.http2 import IDLE_TIMEOUT, Http2Connection
from tidegate.replica.http2_frames import PREFACE
from tidegate.replica.streams import Opener

_BACKLOG = 4096
_MARK = PREFACE[:3]


class _Newcomer(asyncio.Protocol):
    """A connection until its first bytes tell which HTTP it speaks."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._begun = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the first bytes."""
        self._transport = cast("asyncio.Transport", transport)
        self._server.connections.all.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """It said nothing."""
        self._server.connections.discard(self)

    def close(self) -> None:
        """Close the connection."""
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Hand over to the protocol that it speaks."""
        self._begun += data
        if len(self._begun) < len(_MARK):
            return
        server = self._server
        shared = (server.handler, server.limit, server.room, server.connections)
        connection: Http1Connection | Http2Connection
        if self._begun.startswith(_MARK):
            connection = Http2Connection(*shared, server.idle_timeout)
        else:
            connection = Http1Connection(*shared, server.opener)
        self._transport.set_protocol(connection)
        connection.connection_made(self._transport)
        self._server.connections.discard(self)
        connection.data_received(self._begun)


class Server:
    """Listens on a Unix socket and gives every request to a handler.

    A body of more than ``limit`` bytes is refused, or rather one of ``room`` bytes more: room
    for what frames a message of the limit. ``idle_timeout`` is for HTTP/2; see there. ``opener``
    begins streaming calls, which HTTP/1.1 alone has.
    """

    def __init__(
        self,
        path: Path,
        handler: Handler,
        limit: int,
        *,
        room: int = 0,
        idle_timeout: float = IDLE_TIMEOUT,
        connections: OpenConnections | None = None,
        opener: Opener | None = None,
    ) -> None:
        self.opener = opener
        self._path = path
        self.handler = handler
        self.limit = limit
        self.room = room
        self.idle_timeout = idle_timeout
        self.connections = connections or OpenConnections()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Server:
        """Listen; a file that a dead process left at the path is replaced."""
        self._path.unlink(missing_ok=True)
        self._server = await asyncio.get_running_loop().create_unix_server(
            lambda: _Newcomer(self), path=str(self._path), backlog=_BACKLOG
        )
        self._path.chmod(0o600)
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Stop listening and close what is open."""
        assert self._server is not None
        self._server.close()
        for connection in list(self.connections.all):
            connection.close()
        self._path.unlink(missing_ok=True)

    async def drain(self, timeout: float) -> None:
        """Serve on until the edge has closed its connections, at most ``timeout`` seconds.

        The edge closes them once the endpoint is no longer in its configuration.
        """
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.connections.none_left(), timeout)
