"""Network streams of asyncio, for httpcore.

httpcore's own go by way of anyio, which takes several times as long for a small answer, and drops
what a server says of a certificate when it ends TLS.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import httpcore

_SMALL = 2**12
"""Bytes."""
_MOST_AHEAD = 2**20
"""Bytes that are taken from a server before somebody reads them."""


class AsyncioBackend(httpcore.AsyncNetworkBackend):
    """Connects in the running event loop.

    Args:
        renewed: given the context that httpcore has for TLS, returns the one to take.
    """

    def __init__(self, renewed: Callable[[ssl.SSLContext], ssl.SSLContext]) -> None:
        self._renewed = renewed
        self._open: set[asyncio.Transport] = set()
        self._closed = False

    def close(self) -> None:
        """Cut all connections, those too that are just being made."""
        self._closed = True
        for transport in list(self._open):
            transport.abort()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to a port."""
        loop = asyncio.get_running_loop()
        with _mapped(httpcore.ConnectTimeout, httpcore.ConnectError):
            async with asyncio.timeout(timeout):
                # One address of a name after the other: asyncio's race between them leaves a
                # socket behind when it is cancelled.
                transport, protocol = await loop.create_connection(
                    lambda: _Protocol(self._open), host, port
                )
            if self._closed:
                transport.abort()
                await asyncio.sleep(0)  # the loop closes the socket in its next turn
                raise ConnectionAbortedError("the client was closed")
        return _Stream(transport, protocol, self._renewed)


class _Stream(httpcore.AsyncNetworkStream):
    """One connection, in the clear or over TLS."""

    def __init__(
        self,
        transport: asyncio.Transport,
        protocol: _Protocol,
        renewed: Callable[[ssl.SSLContext], ssl.SSLContext],
    ) -> None:
        self._transport = transport
        self._protocol = protocol
        self._renewed = renewed

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with _mapped(httpcore.ReadTimeout, httpcore.ReadError):
            if timeout is None:
                return await self._protocol.read(max_bytes)
            async with asyncio.timeout(timeout):
                return await self._protocol.read(max_bytes)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        with _mapped(httpcore.WriteTimeout, httpcore.WriteError):
            async with asyncio.timeout(timeout):
                await self._protocol.write(buffer)

    async def aclose(self) -> None:
        # What was sent is answered, or nobody waits for it any more.
        self._transport.abort()
        await asyncio.sleep(0)

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.AsyncNetworkStream:
        loop = asyncio.get_running_loop()
        self._protocol.flush()
        try:
            with _mapped(httpcore.ConnectTimeout, httpcore.ConnectError):
                async with asyncio.timeout(timeout):
                    transport = await loop.start_tls(
                        self._transport,
                        self._protocol,
                        self._renewed(ssl_context),
                        server_hostname=server_hostname,
                    )
                if transport is None:
                    raise ConnectionResetError("the connection ended in the TLS handshake")
        except BaseException:
            self._transport.abort()
            raise
        self._protocol.connection_made(transport)
        return _Stream(transport, self._protocol, self._renewed)

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable":
            return self._protocol.readable
        return self._transport.get_extra_info(info)


class _Protocol(asyncio.Protocol):
    """Keeps what has come until it is read."""

    def __init__(self, among: set[asyncio.Transport]) -> None:
        """``among`` are all that are open."""
        self._among = among
        self._transport: asyncio.Transport | None = None
        self._unsent: list[bytes] = []
        self._pieces: list[bytes] = []
        self._size = 0
        self._ended = False
        self._fault: Exception | None = None
        self._paused = self._full = False
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None

    @property
    def readable(self) -> bool:
        """Whether reading would not wait: of an idle connection, that it is of no use."""
        return bool(self._pieces) or self._ended

    async def read(self, most: int) -> bytes:
        """Return some bytes, none at the end."""
        self.flush()
        while not self._pieces:
            if self._fault is not None:
                raise self._fault
            if self._ended:
                return b""
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        found = self._pieces.pop(0)
        if len(found) > most:
            self._pieces.insert(0, found[most:])
            found = found[:most]
        self._size -= len(found)
        if self._full and self._size < _MOST_AHEAD and self._transport is not None:
            self._full = False
            self._transport.resume_reading()
        return found

    async def write(self, content: bytes) -> None:
        """Send; wait while the peer takes nothing.

        What is small waits for what comes after it, another piece or a read: a request's head and
        its body go together.
        """
        if self._ended or self._transport is None:
            raise self._fault or ConnectionResetError("the server has closed the connection")
        self._unsent.append(content)
        if len(content) > _SMALL:
            self.flush()
        while self._paused:
            self._writer = asyncio.get_running_loop().create_future()
            try:
                await self._writer
            finally:
                self._writer = None
            if self._fault is not None:
                raise self._fault

    def flush(self) -> None:
        """Send what waits."""
        if self._unsent and self._transport is not None:
            self._transport.write(b"".join(self._unsent))
            self._unsent.clear()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if self._transport is not None:
            self._among.discard(self._transport)
        # Other loops, as uvloop's, have transports of their own that are no asyncio.Transport.
        self._transport = cast("asyncio.Transport", transport)
        self._among.add(self._transport)

    def data_received(self, data: bytes) -> None:
        self._pieces.append(data)
        self._size += len(data)
        if self._size >= _MOST_AHEAD and not self._full and self._transport is not None:
            self._full = True
            self._transport.pause_reading()
        _wake(self._reader)

    def eof_received(self) -> bool:
        self._ended = True
        _wake(self._reader)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if self._transport is not None:
            self._among.discard(self._transport)
        self._ended = True
        self._fault = self._fault or exc
        self._paused = False
        _wake(self._reader)
        _wake(self._writer)

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        _wake(self._writer)


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)


@contextlib.contextmanager
def _mapped(late: type[Exception], broken: type[Exception]) -> Iterator[None]:
    """Raise what httpcore and its users know; the reason is an argument, as of its own."""
    try:
        yield
    except TimeoutError as error:
        raise late(error) from error
    except OSError as error:  # what the ssl module raises is one, too
        raise broken(error) from error
