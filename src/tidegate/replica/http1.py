"""HTTP/1.1, gRPC included: what an edge speaks to its controller, and a person to a replica.

A gRPC call is a POST whose body holds the gRPC frames; the edge turns the chunked trailers of
the response into gRPC trailers (Envoy's ``enable_trailers``). A success is one chunk with
the framed message and the trailer ``grpc-status: 0``; an error is a head alone with
``grpc-status`` and ``grpc-message``. A streaming call has messages as they come, both ways
(see :mod:`tidegate.replica.streams`). The peer has policed the HTTP and never pipelines. It
closes the connection when the caller has gone or the caller's deadline has passed, which is
the signal to cancel.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import cast

import httptools

from tidegate.errors import MessageTooLarge
from tidegate.protocols.grpc_frames import PREFIX_SIZE, frame_prefix
from tidegate.protocols.load_reports import REPORT_HEADER, callers_own
from tidegate.replica.exchange import Bytes, Exchange, Handler, Head, Headers, OpenConnections
from tidegate.replica.header_blocks import literal_of
from tidegate.replica.streams import GrpcStream, Opener, Outgoing

REPORT = REPORT_HEADER.encode()
PATIENCE = 4
"""A body too large is read and dropped to its end, since most clients write all before they
read the answer; but not beyond so many times the limit."""
_LONGEST_NUMBER = 20
"""Digits of a content-length."""
_GRPC_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/grpc\r\ntransfer-encoding: chunked\r\n\r\n"
)
_GRPC_TAIL = b"\r\n0\r\ngrpc-status: 0\r\n\r\n"
_REASONS = {
    200: b"OK", 400: b"Bad Request", 404: b"Not Found", 405: b"Method Not Allowed",
    413: b"Content Too Large", 415: b"Unsupported Media Type",
    422: b"Unprocessable Content", 429: b"Too Many Requests", 500: b"Internal Server Error",
    501: b"Not Implemented", 503: b"Service Unavailable", 504: b"Gateway Timeout",
}  # fmt: skip


class Http1Connection(asyncio.Protocol):
    """One connection: one request at a time."""

    def __init__(
        self,
        handler: Handler,
        limit: int,
        room: int,
        connections: OpenConnections,
        opener: Opener | None = None,
    ) -> None:
        self._handler = handler
        self._limit = limit
        self._room = room
        self._connections = connections
        self._opener = opener
        self._stream: GrpcStream | None = None
        self._exchange: Exchange | None = None
        self._url = b""
        self._headers: dict[bytes, bytes] = {}
        # Straight into the dictionary: a method would be called for each header of each request.
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
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.gone()
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

    def on_headers_complete(self) -> None:
        """Begin a streaming call, if it is one."""
        self._stream = None
        if self._opener is None:
            return
        head = Head(self._parser.get_method(), self._url, self._headers)
        if head.grpc:
            outgoing = Outgoing(self._write)
            path = head.target.partition(b"?")[0].decode("latin-1")
            handler = self._opener(path, outgoing)
            if handler is not None:
                self._stream = GrpcStream(handler, outgoing)

    def pause_writing(self) -> None:
        """The peer does not take the answers of a stream: take no more questions."""
        if self._stream is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """It does again."""
        self._transport.resume_reading()

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body; one beyond the limit is dropped."""
        if self._stream is not None:
            self._stream.feed(body)
            return
        self._size += len(body)
        most = self._limit + self._room
        if self._size <= most and (self._body or announced(self._headers) <= PATIENCE * most):
            self._body.append(body)
            return
        self._body = []
        if max(self._size, announced(self._headers)) > PATIENCE * most:
            self._refuse()

    def _refuse(self) -> None:
        if not self._refused:
            self._refused = True
            self._connections.refuse(self._begin(b""), too_large(self._limit))

    def on_message_complete(self) -> None:
        """Hand the whole request to the handler."""
        if self._stream is not None:
            self._stream.half_closed()
            return
        if self._size > self._limit + self._room:
            self._refuse()
            return
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body = []
        self._handler(self._begin(body))

    def _begin(self, body: bytes) -> Exchange:
        method = self._parser.get_method()
        head = Head(method, self._url, self._headers)
        request_id = self._headers.get(b"x-request-id")
        literal = None if request_id is None else literal_of(request_id)
        self._exchange = Exchange(self, 0, head, literal, body)
        return self._exchange

    def write_message(self, stream: int, parts: Sequence[Bytes]) -> None:
        """Answer a gRPC call with a message and OK."""
        length = sum(map(len, parts))
        report = self._report(200, ())
        head = _GRPC_HEAD if not report else _GRPC_HEAD[:-2] + b"%s: %s\r\n\r\n" % report[0]
        head += b"%x\r\n" % (length + PREFIX_SIZE) + frame_prefix(length)
        self._write(head, *parts, _GRPC_TAIL)

    def write_response(
        self, stream: int, status: int, fields: Headers, parts: Sequence[Bytes]
    ) -> None:
        """Answer with a head and a body."""
        lines = [b"HTTP/1.1 %d %s" % (status, _REASONS.get(status, b"Status"))]
        lines += [name + b": " + value for name, value in (*fields, *self._report(status, fields))]
        self._write(b"\r\n".join((*lines, b"\r\n")), *parts)

    def _report(self, status: int, fields: Headers) -> Headers:
        load, exchange = self._connections.load, self._exchange
        if load is None or exchange is None or not exchange.head.asks_load:
            return ()
        return ((REPORT, callers_own(load(), status, fields)),)

    def _write(self, *parts: Bytes) -> None:
        self._exchange = None
        if not self._transport.is_closing():
            self._transport.writelines(parts)


def announced(headers: Mapping[bytes, bytes]) -> int:
    """Return how many bytes of body a request says that it has; 0 if it does not say."""
    length = headers.get(b"content-length", b"")
    return int(length) if length.isdigit() and len(length) < _LONGEST_NUMBER else 0


def too_large(limit: int) -> MessageTooLarge:
    """Return the error for a message beyond ``limit`` bytes."""
    return MessageTooLarge(
        f"the message is larger than the limit of {limit} bytes (max_message_size): send less, "
        "or raise the limit on the server"
    )
