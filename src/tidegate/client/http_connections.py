"""The connections to one server over HTTP/1.1, one call on each at a time.

httpcore's own pool looks at every connection for every call, so that the time of a call grows with
their number. Here the one that was used last is used next; the others come to rest, and end.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import httpcore


class HttpConnections:
    """Connections of one event loop.

    Args:
        make: makes them, whichever proxy is on the way; it carries no calls itself.
        kept: how many are kept without a call.
    """

    def __init__(self, make: httpcore.AsyncConnectionPool, kept: int) -> None:
        self._make = make
        self._kept = kept
        self._idle: list[httpcore.AsyncConnectionInterface] = []

    @contextlib.asynccontextmanager
    async def send(self, request: httpcore.Request) -> AsyncIterator[httpcore.Response]:
        """Send a request; the connection is free again when its answer is let go."""
        connection = await self._taken(request)
        try:
            response = await connection.handle_async_request(request)
            try:
                yield response
            finally:
                await response.aclose()
        finally:
            if connection.is_idle() and not connection.is_closed():
                self._idle.append(connection)
            elif not connection.is_closed():
                await connection.aclose()
        await self._rest()

    async def close(self) -> None:
        """Close those that carry no call."""
        idle, self._idle = self._idle, []
        for connection in idle:
            await connection.aclose()

    async def _taken(self, request: httpcore.Request) -> httpcore.AsyncConnectionInterface:
        while self._idle:
            connection = self._idle.pop()
            if not connection.has_expired():
                return connection
            await connection.aclose()
        return self._make.create_connection(request.url.origin)

    async def _rest(self) -> None:
        """Let the one go that was not used for the longest time, if that is due."""
        if self._idle and (len(self._idle) > self._kept or self._idle[0].has_expired()):
            await self._idle.pop(0).aclose()
