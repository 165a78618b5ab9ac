"""HTTP/2 (RFC 9113), as far as an edge needs it to speak to a replica.

One connection of each of the edge's threads carries all calls, so what arrives together is
read at once and what is answered together is written at once. With a connection for each
call a tiny model's replica took half as much CPU again for a call. The edge is the
only peer, and it has policed the HTTP. It resets a stream when the caller has gone or the
caller's deadline has passed, which is the signal to cancel.

The edge must be told to use no dynamic header table (``hpack_table_size: 0``).
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import Mapping
from typing import cast

from tidegate.errors import DeadlineExceeded, RequestError
from tidegate.replica.exchange import Exchange, Handler, Head, OpenConnections
from tidegate.replica.header_blocks import BlockReader, MalformedBlock
from tidegate.replica.http1 import PATIENCE, announced, too_large
from tidegate.replica.http2_answers import Answers
from tidegate.replica.http2_frames import (
    ACK,
    COMPRESSION_ERROR,
    CONTINUATION,
    DATA,
    DEFAULT_WINDOW,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEAD_SIZE,
    HEADERS,
    INITIAL_WINDOW,
    LARGEST_FRAME,
    LARGEST_WINDOW,
    MAX_STREAMS,
    NO_ERROR,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    PROTOCOL_ERROR,
    RESET,
    SETTINGS,
    TABLE_SIZE,
    WINDOW,
    end_of_body,
    frame,
    unpack_head,
    unpadded,
)

log = logging.getLogger(__name__)

IDLE_TIMEOUT = 60.0
"""Seconds; a sender that is silent for so long in the middle of its request, and for at most
twice as long, is not waited for. The edge cannot tell it from one that waits for an answer."""
_NOT_WHOLE = END_HEADERS | PADDED | PRIORITY
"""Flags that say whether a HEADERS frame is a header block as it is: all but the first."""
_LARGEST_BLOCK = 2**17
"""Bytes of a header block, whatever the frames it comes in; the edge takes half of it."""
_REPLENISH = 2**29
"""Bytes; the connection's window is opened again after so many. Limits are per message."""


def _head(fields: Mapping[bytes, bytes]) -> Head:
    return Head(fields.get(b":method", b""), fields.get(b":path", b""), fields)


class _Body:
    """A request body that comes in several frames."""

    __slots__ = ("parts", "size")

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.size = 0


class Http2Connection(asyncio.Protocol):
    """One connection: many requests at a time."""

    def __init__(
        self,
        handler: Handler,
        limit: int,
        room: int,
        connections: OpenConnections,
        idle_timeout: float = IDLE_TIMEOUT,
    ) -> None:
        self._handler = handler
        self._limit = limit
        self._idle_timeout = idle_timeout
        self._sizes: dict[int, int] = {}
        """How much of the requests that are coming was there at the last look."""
        self._most = limit + room
        self._whole = HEAD_SIZE + min(self._most, LARGEST_FRAME)
        """Bytes of the largest frame that may be taken for a body as it is."""
        self._connections = connections
        self._blocks = BlockReader(_head, connections.unread)
        self._coming: dict[int, Exchange] = {}
        """Requests that have not ended yet; the others wait for their answers."""
        self._bodies: dict[int, _Body] = {}
        self._last_stream = 0
        self._rest = b""
        self._started = False
        self._unfinished: tuple[int, int, bytearray] | None = None
        """Stream, flags and beginning of a header block that goes on in the next frame."""
        self._received = 0
        self._answers = Answers(connections)
        self._waiting = self._answers.waiting

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say what the peer may do."""
        self._transport = cast("asyncio.Transport", transport)
        self._answers.connect(self._transport)
        self._loop = asyncio.get_running_loop()
        self._connections.all.add(self)
        self._looking = self._loop.call_later(self._idle_timeout, self._look_for_stalled)
        window = min(LARGEST_WINDOW, self._most + 2**16)
        settings = struct.pack(
            ">HIHIHI", TABLE_SIZE, 0, MAX_STREAMS, 2**20, INITIAL_WINDOW, window
        )
        self._answers.send(frame(SETTINGS, 0, 0, settings))
        self._answers.open_window(LARGEST_WINDOW - DEFAULT_WINDOW)

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel what runs: nobody waits for it."""
        self._connections.discard(self)
        self._looking.cancel()
        self._bodies.clear()
        self._coming.clear()
        for exchange in self._answers.forget_all():
            exchange.gone()

    def close(self) -> None:
        """Close the connection, whatever runs."""
        self._transport.abort()

    # What comes

    def data_received(self, data: bytes) -> None:
        """Read whole frames; keep the rest for the next time."""
        if self._rest:
            data = self._rest + data
        at = 0
        if not self._started:
            if len(data) < len(PREFACE):
                self._rest = data
                return
            at, self._started = len(PREFACE), True
        try:
            at = self._read(data, at)
        except (MalformedBlock, struct.error, IndexError) as error:
            self._give_up(error)
            return
        self._rest = data[at:]

    def _read(self, data: bytes, at: int) -> int:
        """Read the whole frames from ``at`` on; return where they end."""
        end = len(data)
        while end - at >= HEAD_SIZE:
            word, flags, stream = unpack_head(data, at)
            begin = at + HEAD_SIZE
            stop = begin + (word >> 8)
            if word >> 8 > LARGEST_FRAME:
                raise IndexError(f"a frame of {word >> 8} bytes")
            if stop > end:
                break
            at = stop
            kind = word & 0xFF
            # A call is one of each of these, as a rule, and both are here.
            if kind == HEADERS and flags & _NOT_WHOLE == END_HEADERS:
                last = end_of_body(data, stop, stream) if flags == END_HEADERS else 0
                if last and last - stop <= self._whole and stream > self._last_stream:
                    self._take_whole(stream, data[begin:stop], data[stop + HEAD_SIZE : last])
                    at = last
                else:
                    self._take_headers(flags, stream, data[begin:stop])
            elif kind == DATA:
                self._take_data(flags, stream, data[begin:stop])
            else:
                self._take(kind, flags, stream, data[begin:stop])
        return at

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind in (HEADERS, CONTINUATION):
            self._take_block(kind, flags, stream, payload)
        elif kind == RESET:
            self._take_reset(stream)
        elif kind == WINDOW:
            more = int.from_bytes(payload, "big") & LARGEST_WINDOW
            self._answers.widen(stream, more, coming=stream in self._coming)
        elif kind == SETTINGS and not flags & ACK:
            self._take_settings(payload)
        elif kind == PING and not flags & ACK:
            self._answers.send(frame(PING, ACK, 0, payload))

    def _take_block(self, kind: int, flags: int, stream: int, block: bytes) -> None:
        first = flags
        if kind == CONTINUATION:
            if self._unfinished is None:
                raise MalformedBlock("a header block goes on that never began")
            stream, first, begun = self._unfinished
            begun += block
        else:
            begun = bytearray(unpadded(flags, block))
        if len(begun) > _LARGEST_BLOCK:
            raise IndexError(f"a header block of more than {_LARGEST_BLOCK} bytes")
        if flags & END_HEADERS:
            self._unfinished = None
            self._take_headers(first, stream, bytes(begun))
        else:
            self._unfinished = (stream, first, begun)

    def _take_reset(self, stream: int) -> None:
        self._bodies.pop(stream, None)
        self._coming.pop(stream, None)
        exchange = self._answers.forget(stream)
        if exchange is not None:
            exchange.gone()

    def _take_whole(self, stream: int, block: bytes, body: bytes) -> None:
        """Take a request that came in two frames at once."""
        self._last_stream = stream
        self._received += len(body)
        if self._received >= _REPLENISH:
            self._answers.open_window(self._received)
            self._received = 0
        head, request_id = self._blocks.read(block)
        exchange = self._waiting[stream] = Exchange(self._answers, stream, head, request_id, body)
        self._handler(exchange)

    def _take_headers(self, flags: int, stream: int, block: bytes) -> None:
        exchange = self._coming.get(stream)
        if exchange is None:
            if stream <= self._last_stream:
                return  # trailers of what was answered or reset while they were on their way
            self._last_stream = stream
            head, request_id = self._blocks.read(block)
            exchange = self._coming[stream] = Exchange(self._answers, stream, head, request_id)
            if not flags & END_STREAM and announced(head.headers) > PATIENCE * self._most:
                self._break_off(exchange, too_large(self._limit))
                return
        if flags & END_STREAM:  # a request without a body, or the trailers of one
            self._complete(exchange)

    def _take_data(self, flags: int, stream: int, payload: bytes) -> None:
        size = len(payload)
        self._received += size
        if self._received >= _REPLENISH:
            self._answers.open_window(self._received)
            self._received = 0
        exchange = self._coming.get(stream)
        if exchange is None:
            return  # answered or reset while this was on its way
        if flags & PADDED:
            payload = unpadded(flags, payload)
        if flags & END_STREAM and size <= self._most and stream not in self._bodies:
            exchange.body = payload
            del self._coming[stream]
            self._waiting[stream] = exchange
            self._handler(exchange)
        else:
            self._take_piece(exchange, payload, ended=bool(flags & END_STREAM))

    def _take_piece(self, exchange: Exchange, piece: bytes, *, ended: bool) -> None:
        body = self._bodies.get(exchange.stream)
        if body is None:
            body = self._bodies[exchange.stream] = _Body()
        body.size += len(piece)
        if body.size <= self._most:
            body.parts.append(piece)
        else:
            body.parts = []
            if piece:  # a peer takes offence at 0 (section 6.9), for which it sends an empty frame
                self._answers.open_window(len(piece), exchange.stream)
        if ended:
            self._complete(exchange)
        elif body.size > PATIENCE * self._most:
            self._break_off(exchange, too_large(self._limit))

    def _complete(self, exchange: Exchange) -> None:
        body = self._bodies.get(exchange.stream)
        if body is not None:
            if body.size > self._most:
                self._refuse(exchange, too_large(self._limit))
                return
            exchange.body = body.parts[0] if len(body.parts) == 1 else b"".join(body.parts)
            del self._bodies[exchange.stream]
        del self._coming[exchange.stream]
        self._waiting[exchange.stream] = exchange
        self._handler(exchange)

    def _refuse(self, exchange: Exchange, error: RequestError) -> None:
        """Answer a request that the handler is not to see."""
        self._bodies.pop(exchange.stream, None)
        del self._coming[exchange.stream]
        self._waiting[exchange.stream] = exchange
        self._connections.refuse(exchange, error)

    def _break_off(self, exchange: Exchange, error: RequestError) -> None:
        """Refuse a request that has not ended, and tell the peer to send no more of it.

        The reset follows the whole answer (section 8.1).
        """
        stream = exchange.stream
        self._refuse(exchange, error)
        reset = frame(RESET, 0, stream, NO_ERROR.to_bytes(4, "big"))
        self._answers.send_after(stream, reset)

    def _look_for_stalled(self) -> None:
        """Refuse what has not grown since the last look."""
        self._looking = self._loop.call_later(self._idle_timeout, self._look_for_stalled)
        sizes = {}
        for stream, exchange in list(self._coming.items()):
            body = self._bodies.get(stream)
            size = 0 if body is None else body.size
            if self._sizes.get(stream) == size:
                self._break_off(
                    exchange,
                    DeadlineExceeded(
                        "the rest of the request did not come: nothing was received for "
                        f"{self._idle_timeout:g} s"
                    ),
                )
            else:
                sizes[stream] = size
        self._sizes = sizes

    def _take_settings(self, payload: bytes) -> None:
        self._answers.take_settings(payload)
        self._answers.send(frame(SETTINGS, ACK, 0))
        self._answers.pump()

    def _give_up(self, error: Exception) -> None:
        log.error("the edge sent what is not HTTP/2: %s", error)
        code = COMPRESSION_ERROR if isinstance(error, MalformedBlock) else PROTOCOL_ERROR
        self._answers.send(frame(GOAWAY, 0, 0, struct.pack(">II", self._last_stream, code)))
        self._answers.flush()
        self._transport.close()
