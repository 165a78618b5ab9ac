"""gRPC on the admin port: the calls of the public port, without its restrictions.

It is for callers on this machine alone, wherever the port can be reached from. The port's own
server speaks HTTP/1.1. A connection that begins with the preface of HTTP/2 is relayed to a gRPC
server on a Unix socket.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, cast

import grpc.aio
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tidegate.controller.machine import is_from_here
from tidegate.controller.server_calls import ServerCalls
from tidegate.errors import MethodNotFound, TidegateError
from tidegate.protocols.open_inference.documents import LARGEST
from tidegate.protocols.statuses import status_of
from tidegate.replica.http2_frames import PREFACE
from tidegate.replica.streams import Outgoing, StreamHandler

_MARK = PREFACE[:3]
_CODES = {code.value[0]: code for code in grpc.StatusCode}
_LONGEST_HEAD = 2**16
"""Bytes; as the edge has it."""
HEAD_TIMEOUT = 10.0
"""Seconds in which the head of a request must have come; as TLS handshakes at the edge."""
MOST_CONNECTIONS = 2048
"""From then on other machines are not heard, so that there are descriptors for everything else."""
_HEAD_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\n"
    b"content-length: 0\r\n\r\n"
)
_STOP_GRACE = 1.0
"""Seconds; as that of the admin port's other calls."""


class AdminGrpc(grpc.GenericRpcHandler):  # type: ignore[misc] # grpc has no types
    """Answers ``calls`` on a Unix socket, in ``async with``."""

    def __init__(self, calls: ServerCalls, socket: Path) -> None:
        self._calls = calls
        self._socket = socket
        self._server: grpc.aio.Server | None = None
        self._streams: set[_Queued] = set()

    async def __aenter__(self) -> AdminGrpc:
        self._socket.unlink(missing_ok=True)
        options = [("grpc.max_receive_message_length", LARGEST), ("grpc.so_reuseport", 0)]
        self._server = grpc.aio.server(handlers=(self,), options=options)
        self._server.add_insecure_port(f"unix:{self._socket}")
        await self._server.start()
        self._socket.chmod(0o600)
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._server is not None
        # Streams that end by themselves are no errors in grpc's log, as cancelled ones are.
        for stream in self._streams:
            stream.end()
        await self._server.stop(_STOP_GRACE)
        self._socket.unlink(missing_ok=True)

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        """Return what answers a method."""
        path = details.method
        if self._calls.has_stream(path):
            return grpc.stream_stream_rpc_method_handler(partial(self._converse, path))
        return grpc.unary_unary_rpc_method_handler(partial(self._answer, path))

    async def _answer(self, path: str, message: bytes, context: Any) -> bytes:
        try:
            if not self._calls.has_method(path):
                raise MethodNotFound(
                    f"there is no method {path} on the admin port: call the public port"
                )
            return await self._calls.answer_method(path, message, trusted=True)
        except TidegateError as error:
            return cast("bytes", await _abort(context, error))

    async def _converse(
        self, path: str, messages: AsyncIterator[bytes], context: Any
    ) -> AsyncIterator[bytes]:
        outgoing = _Queued()
        handler = self._calls.open_stream(path, outgoing)
        assert handler is not None
        self._streams.add(outgoing)
        listening = asyncio.create_task(_listen(messages, handler, outgoing))
        try:
            while (message := await outgoing.queue.get()) is not None:
                yield message
                outgoing.queue.task_done()
            if outgoing.error is not None:
                await _abort(context, outgoing.error)
        finally:
            self._streams.discard(outgoing)
            listening.cancel()
            handler.gone()


async def _listen(
    messages: AsyncIterator[bytes], handler: StreamHandler, outgoing: _Queued
) -> None:
    try:
        async for message in messages:
            handler.message(message)
            # Who does not take the answers is asked for no more questions.
            await outgoing.queue.join()
        handler.half_closed()
    except TidegateError as error:
        outgoing.end(error)


class _Queued(Outgoing):
    """Keeps what is to be sent until the gRPC server takes it."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.error: TidegateError | None = None
        self.ended = False

    def send(self, message: bytes) -> None:
        """Send a message."""
        if not self.ended:
            self.queue.put_nowait(message)

    def end(self, error: TidegateError | None = None) -> None:
        """End the call, well or with an error."""
        if not self.ended:
            self.ended, self.error = True, error
            self.queue.put_nowait(None)


async def _abort(context: Any, error: TidegateError) -> object:
    """End a call with an error; it raises what ends it."""
    return await context.abort(_CODES[status_of(error).grpc], str(error))


def http_or_grpc(socket: Path) -> type[asyncio.Protocol]:
    """Return the admin port's protocol: HTTP/1.1, or what is relayed to ``socket``."""

    class Either(_Either):
        grpc_socket = socket

    return Either


class _Either(HttpToolsProtocol):
    """One connection: HTTP/1.1, or what is relayed to ``grpc_socket``."""

    grpc_socket: ClassVar[Path]
    begun: bytes | None = b""
    """The first bytes, until they tell which HTTP it is."""
    head = 0
    """Bytes that have come since a head, or a body, ended."""
    ended = in_body = False
    late: asyncio.TimerHandle | None = None
    """Closes the connection if a head does not come."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        many = len(self.connections) > MOST_CONNECTIONS
        if many and not is_from_here(self.client, self.server):
            transport.abort()
        self.await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self.head_came()
        super().connection_lost(exc)

    def await_head(self) -> None:
        if self.late is None:
            self.late = self.loop.call_later(HEAD_TIMEOUT, self.transport.abort)

    def head_came(self) -> None:
        if self.late is not None:
            self.late.cancel()
            self.late = None

    def data_received(self, data: bytes) -> None:
        if self.begun is None:
            self.feed(data)
            return
        self.begun += data
        if len(self.begun) < len(_MARK):
            return
        begun, self.begun = self.begun, None
        if begun.startswith(_MARK) and not is_from_here(self.client, self.server):
            self.transport.close()
        elif begun.startswith(_MARK):
            self.head_came()
            self.connections.discard(self)
            self.transport.pause_reading()
            self.transport.set_protocol(_Relay())
            task = asyncio.create_task(_relay(self.transport, begun, self.grpc_socket))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
        else:
            self.feed(begun)

    def feed(self, data: bytes) -> None:
        """Take HTTP/1.1; the parser itself would keep a head of any length."""
        self.ended = False
        if not self.in_body:
            self.await_head()
        super().data_received(data)
        self.head = 0 if self.ended else self.head + len(data)
        if self.head > _LONGEST_HEAD and not self.in_body:
            self.transport.write(_HEAD_TOO_LARGE)
            self.transport.close()

    def on_headers_complete(self) -> None:
        self.ended = self.in_body = True
        self.head_came()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self.ended, self.in_body = True, False
        super().on_message_complete()


class _Relay(asyncio.Protocol):
    """Passes on what comes over a connection to another one, and closes with it."""

    def __init__(self, other: asyncio.Transport | None = None) -> None:
        self.other = other

    def data_received(self, data: bytes) -> None:
        """Pass it on."""
        if self.other is not None:
            self.other.write(data)

    def pause_writing(self) -> None:
        """This side takes no more: read no more from the other."""
        if self.other is not None and not self.other.is_closing():
            self.other.pause_reading()

    def resume_writing(self) -> None:
        """It does again."""
        if self.other is not None and not self.other.is_closing():
            self.other.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """Close the other side, too."""
        if self.other is not None:
            self.other.close()


async def _relay(own: asyncio.Transport, begun: bytes, socket: Path) -> None:
    """Connect ``own``, of which nothing is read yet, with ``socket``, which gets ``begun``."""
    loop = asyncio.get_running_loop()
    try:
        other, _ = await loop.create_unix_connection(lambda: _Relay(own), str(socket))
    except OSError:  # the node is being stopped
        own.close()
        return
    if own.is_closing():
        other.close()
        return
    cast("_Relay", own.get_protocol()).other = other
    other.write(begun)
    own.resume_reading()
