"""The HTTP/1.1 that an edge speaks to a process behind it, gRPC included.

The edge forwards a gRPC call as a POST whose body holds the gRPC frames, and turns the
chunked trailers of the response into gRPC trailers (Envoy's ``enable_trailers``). A
success is one chunk with the framed message and the trailer ``grpc-status: 0``; an error is
a head alone with ``grpc-status`` and ``grpc-message``. The edge is the only peer: it has
policed the HTTP and never pipelines. It closes the connection when the caller has gone or
the caller's deadline has passed, which is the signal to cancel.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import cast

import httptools

from tidegate.errors import MessageTooLarge, QueueFull
from tidegate.protocols.grpc_frames import frame_prefix, percent_encode
from tidegate.protocols.open_inference.rest import encode_error
from tidegate.protocols.statuses import status_of

_BACKLOG = 4096
_FRAME = 5
_GRPC_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/grpc\r\ntransfer-encoding: chunked\r\n\r\n"
)
_GRPC_TAIL = b"\r\n0\r\ngrpc-status: 0\r\n\r\n"
_COALESCE = 2**16
_REASONS = {
    200: b"OK", 400: b"Bad Request", 404: b"Not Found", 405: b"Method Not Allowed",
    413: b"Content Too Large", 415: b"Unsupported Media Type",
    422: b"Unprocessable Content", 429: b"Too Many Requests", 500: b"Internal Server Error",
    501: b"Not Implemented", 503: b"Service Unavailable", 504: b"Gateway Timeout",
}  # fmt: skip

Bytes = bytes | bytearray | memoryview


class Exchange:
    """One request and the way to answer it; answering twice, or too late, does nothing."""

    __slots__ = ("_connection", "body", "grpc", "headers", "method", "on_gone", "target")

    def __init__(
        self,
        connection: Connection,
        method: bytes,
        target: bytes,
        headers: Mapping[bytes, bytes],
        body: bytes,
    ) -> None:
        self._connection: Connection | None = connection
        self.method = method
        self.target = target
        """The path as it came, with the query."""
        self.headers = headers
        """By lower-case name; of a repeated header the last. Gone with the answer."""
        self.body = body
        self.grpc = headers.get(b"content-type", b"").startswith(b"application/grpc")
        self.on_gone: Callable[[], object] | None = None
        """Called when the caller went away before there was an answer."""

    @property
    def path(self) -> str:
        """The path as it came, without the query."""
        return self.target.partition(b"?")[0].decode("latin-1")

    def _release(self) -> Connection | None:
        connection, self._connection = self._connection, None
        self.on_gone = None
        return connection

    def gone(self) -> None:
        """Say that the caller went away."""
        on_gone = self.on_gone
        if self._release() is not None and on_gone is not None:
            on_gone()

    def reply_grpc(self, *parts: Bytes) -> None:
        """Answer a gRPC call with the parts of a serialized message."""
        connection = self._release()
        if connection is None:
            return
        length = sum(map(len, parts))
        size = b"%x\r\n" % (length + _FRAME)
        prefix = frame_prefix(length)
        if length < _COALESCE:
            connection.answer(b"".join((_GRPC_HEAD, size, prefix, *parts, _GRPC_TAIL)))
        else:
            connection.answer(_GRPC_HEAD + size + prefix, *parts, _GRPC_TAIL)

    def reply(
        self,
        parts: Sequence[Bytes],
        *,
        status: int = 200,
        content_type: bytes = b"application/json",
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        """Answer a REST call with the body ``parts``."""
        connection = self._release()
        if connection is None:
            return
        length = sum(memoryview(part).nbytes for part in parts)
        lines = [
            b"HTTP/1.1 %d %s" % (status, _REASONS.get(status, b"Status")),
            b"content-type: " + content_type,
            b"content-length: %d" % length,
            *(name + b": " + value for name, value in headers),
            b"\r\n",
        ]
        # What would follow the head of an answer to HEAD is taken for the next answer.
        body = parts if self.method != b"HEAD" else ()
        connection.answer(b"\r\n".join(lines), *body)

    def fail(self, error: BaseException) -> None:
        """Answer with an error, in the words of the transport that the call came by."""
        status = status_of(error)
        message = str(error) or type(error).__name__
        if self.grpc:
            connection = self._release()
            if connection is not None:
                connection.answer(
                    b"HTTP/1.1 200 OK\r\ncontent-type: application/grpc\r\ngrpc-status: %d\r\n"
                    b"grpc-message: %s\r\ncontent-length: 0\r\n\r\n"
                    % (status.grpc, percent_encode(message))
                )
            return
        headers = []
        if isinstance(error, QueueFull):
            headers.append((b"retry-after", b"%d" % max(1, round(error.retry_after))))
        self.reply([encode_error(message)], status=status.http, headers=headers)


Handler = Callable[[Exchange], None]
"""Answers an exchange, now or later; it must not raise."""


class _OpenConnections:
    """The connections that are open, and who waits for the last to close."""

    __slots__ = ("_waiters", "all")

    def __init__(self) -> None:
        self.all: set[Connection] = set()
        self._waiters: list[asyncio.Event] = []

    def discard(self, connection: Connection) -> None:
        self.all.discard(connection)
        if not self.all:
            for waiter in self._waiters:
                waiter.set()

    async def none_left(self) -> None:
        """Return when no connection is open."""
        while self.all:
            waiter = asyncio.Event()
            self._waiters.append(waiter)
            try:
                await waiter.wait()
            finally:
                self._waiters.remove(waiter)


class Connection(asyncio.Protocol):
    """One connection of the edge: one request at a time."""

    def __init__(
        self, handler: Handler, limit: int, room: int, connections: _OpenConnections
    ) -> None:
        self._handler = handler
        self._limit = limit
        self._room = room
        self._connections = connections
        self._exchange: Exchange | None = None
        self._url = b""
        self._headers: dict[bytes, bytes] = {}
        # Straight into the dictionary: a method here would be a third of the parsing.
        self.on_header = self._headers.__setitem__
        self._parser = httptools.HttpRequestParser(self)
        self._body: list[bytes] = []
        self._size = 0
        self._refused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember the way back."""
        self._transport = cast("asyncio.Transport", transport)
        self._connections.all.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel what runs: nobody waits for it."""
        self._connections.discard(self)
        self._body = []
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.gone()

    def close(self) -> None:
        """Close the connection, whatever runs."""
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Feed the parser; what is not HTTP ends the connection."""
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._transport.close()

    def on_message_begin(self) -> None:
        """Start a request."""
        self._url = b""
        self._headers.clear()
        self._size = 0
        self._refused = False

    def on_url(self, url: bytes) -> None:
        """Take a piece of the request target."""
        self._url += url

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body, unless it grows beyond the limit."""
        if self._refused:
            return
        self._size += len(body)
        most = self._limit + self._room
        if self._size > most or (not self._body and self._announced() > most):
            self._refuse()
        else:
            self._body.append(body)

    def _announced(self) -> int:
        length = self._headers.get(b"content-length", b"0")
        return int(length) if length.isdigit() else 0

    def _refuse(self) -> None:
        # The rest of the body is read and dropped: closing now could overtake the answer.
        self._refused = True
        self._body = []
        self._begin(b"").fail(
            MessageTooLarge(
                f"the message is larger than the limit of {self._limit} bytes "
                "(max_message_size): send less, or raise the limit on the server"
            )
        )

    def on_message_complete(self) -> None:
        """Hand the whole request to the handler."""
        if self._refused:
            return
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body = []
        self._handler(self._begin(body))

    def _begin(self, body: bytes) -> Exchange:
        method = self._parser.get_method()
        self._exchange = exchange = Exchange(self, method, self._url, self._headers, body)
        return exchange

    def answer(self, *parts: Bytes) -> None:
        """Write a whole response."""
        self._exchange = None
        if self._transport.is_closing():
            return
        if len(parts) == 1:
            self._transport.write(parts[0])
        else:
            self._transport.writelines(parts)


class Server:
    """Listens on a Unix socket and gives every request to a handler.

    A body of more than ``limit`` bytes is refused, or rather one of ``room`` bytes more: room
    for what frames a message of the limit.
    """

    def __init__(self, path: Path, handler: Handler, limit: int, *, room: int = 0) -> None:
        self._path = path
        self._handler = handler
        self._limit = limit
        self._room = room
        self._connections = _OpenConnections()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Server:
        """Listen; a file that a dead process left at the path is replaced."""
        self._path.unlink(missing_ok=True)
        self._server = await asyncio.get_running_loop().create_unix_server(
            lambda: Connection(self._handler, self._limit, self._room, self._connections),
            path=str(self._path),
            backlog=_BACKLOG,
        )
        self._path.chmod(0o600)
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Stop listening and close what is open."""
        assert self._server is not None
        self._server.close()
        for connection in list(self._connections.all):
            connection.close()
        self._path.unlink(missing_ok=True)

    async def drain(self, timeout: float) -> None:
        """Serve on until the edge has closed its connections, at most ``timeout`` seconds.

        The edge closes them once the endpoint is no longer in its configuration.
        """
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._connections.none_left(), timeout)
