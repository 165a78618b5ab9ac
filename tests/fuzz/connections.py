"""Conversations with the connections of a replica, without a network."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from functools import cache
from typing import Any

import hpack

from tidegate.errors import InvalidInput
from tidegate.protocols.grpc_frames import frame_prefix
from tidegate.replica.exchange import Exchange, OpenConnections
from tidegate.replica.http1 import PATIENCE, Http1Connection
from tidegate.replica.http2 import Http2Connection
from tidegate.replica.http2_frames import PREFACE
from tidegate.replica.streams import Outgoing, StreamHandler

_LIMIT = 2000
_KEPT = 2**18
"""Bytes that a connection may hold of what came: a header block, a body, an unfinished frame."""


class _Wire(asyncio.Transport):
    """Takes what a connection writes."""

    def __init__(self) -> None:
        super().__init__()
        self.written = 0
        self.closing = False

    def write(self, data: Any) -> None:
        self.written += len(data)

    def writelines(self, parts: Any) -> None:
        self.written += sum(len(part) for part in parts)

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    def abort(self) -> None:
        self.closing = True

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


class _Loop:
    """As much of an event loop as a connection needs: what is to run soon, in order."""

    def __init__(self) -> None:
        self.soon: list[Callable[[], object]] = []

    def call_soon(self, callback: Callable[[], object]) -> None:
        self.soon.append(callback)

    def call_later(self, delay: float, callback: Callable[[], object]) -> Any:
        return asyncio.TimerHandle(0, callback, (), self)  # type: ignore[arg-type]

    def get_debug(self) -> bool:
        return False

    def _timer_handle_cancelled(self, handle: Any) -> None:
        pass

    def turn(self) -> None:
        soon, self.soon = self.soon, []
        for callback in soon:
            callback()


class _Echo:
    """Answers a streaming call."""

    def __init__(self, outgoing: Outgoing) -> None:
        self._outgoing = outgoing

    def message(self, message: bytes) -> None:
        self._outgoing.send(message)

    def half_closed(self) -> None:
        self._outgoing.end()

    def gone(self) -> None:
        pass


def _open(path: str, outgoing: Outgoing) -> StreamHandler | None:
    return _Echo(outgoing) if path == "/a.B/Stream" else None


def _talk(connection: Http1Connection | Http2Connection, loop: _Loop, data: bytes) -> None:
    """Feed it in two pieces, and end."""
    wire = _Wire()
    before = asyncio._get_running_loop()
    asyncio._set_running_loop(loop)  # type: ignore[arg-type]
    try:
        connection.connection_made(wire)
        middle = data[0] * len(data) // 256 if data else 0
        for piece in (data[:middle], data[middle:]):
            if not wire.closing:
                connection.data_received(piece)
            loop.turn()
        if isinstance(connection, Http2Connection) and not wire.closing:
            connection._look_for_stalled()
            connection._look_for_stalled()
            loop.turn()
            assert len(connection._rest) < _KEPT
            assert sum(b.size for b in connection._bodies.values() if b.parts) < _KEPT
        connection.connection_lost(None)
        loop.turn()
    finally:
        asyncio._set_running_loop(before)


def _answer(exchange: Exchange) -> None:
    if exchange.stream % 4 == 3:
        exchange.fail(InvalidInput("no"))
    elif exchange.grpc:
        exchange.reply_grpc((exchange.body,))
    else:
        exchange.reply([exchange.path.encode("latin-1"), exchange.body])


def http2(data: bytes) -> None:
    """Hold a conversation over HTTP/2; the preface was said."""
    loop = _Loop()
    connection = Http2Connection(_answer, _LIMIT, 5, OpenConnections())
    _talk(connection, loop, PREFACE + data)


def http1(data: bytes) -> None:
    """Hold a conversation over HTTP/1.1."""
    loop = _Loop()
    _talk(Http1Connection(_answer, _LIMIT, 5, OpenConnections(), _open), loop, data)


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    head = struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream)
    return head + payload


def _block(content_type: str) -> bytes:
    encoder = hpack.Encoder()
    encoder.header_table_size = 0
    fields = [(":method", "POST"), (":path", "/a.B/C"), ("content-type", content_type)]
    return encoder.encode([*fields, ("x-request-id", "0-1-2")])


@cache
def http2_conversations() -> tuple[bytes, ...]:
    body = frame_prefix(5) + b"hello"
    start = _frame(4, 0, 0) + _frame(8, 0, 0, struct.pack(">I", 2**20))
    grpc, rest = _block("application/grpc"), _block("application/json")
    whole = _frame(1, 4, 1, grpc) + _frame(0, 1, 1, body)
    pieces = _frame(1, 4, 3, rest) + _frame(0, 0, 3, body[:4]) + _frame(0, 9, 3, b"\2rest\0\0")
    split = _frame(1, 0, 5, grpc[:5]) + _frame(9, 0, 5, grpc[5:9]) + _frame(9, 4, 5, grpc[9:])
    trailers = _frame(1, 5, 5, _block("x"))
    large = _frame(1, 4, 7, rest) + _frame(0, 0, 7, bytes(2100)) * (PATIENCE + 1)
    narrow = _frame(4, 0, 0, struct.pack(">HI", 4, 3)) + whole
    others = _frame(6, 0, 0, bytes(8)) + _frame(3, 0, 1, bytes(4)) + _frame(7, 0, 0, bytes(8))
    return (
        start + whole + pieces, start + split + trailers, start + large + whole, narrow,
        start + whole + others + _frame(8, 0, 1, struct.pack(">I", 9)) + pieces,
    )  # fmt: skip


@cache
def http1_conversations() -> tuple[bytes, ...]:
    body = frame_prefix(5) + b"hello"
    grpc = b"POST /a.B/C HTTP/1.1\r\nhost: e\r\ncontent-type: application/grpc\r\n"
    stream = grpc.replace(b"/C", b"/Stream") + b"transfer-encoding: chunked\r\n\r\n"
    return (
        grpc + b"content-length: 10\r\n\r\n" + body + b"GET /x?y HTTP/1.1\r\nhost: e\r\n\r\n",
        stream + b"a\r\n" + body + b"\r\na\r\n" + body + b"\r\n0\r\n\r\n",
        b"POST /x HTTP/1.1\r\ncontent-length: 20000\r\n\r\n" + bytes(20000),
        b"PUT /x HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nx: y\r\n\r\n",
    )
