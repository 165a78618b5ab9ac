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
from collections import deque
from collections.abc import Mapping, Sequence
from typing import cast

from tidegate.errors import DeadlineExceeded, RequestError
from tidegate.protocols.grpc_frames import frame_prefix
from tidegate.protocols.load_reports import callers_own
from tidegate.replica.exchange import Bytes, Exchange, Handler, Head, Headers, OpenConnections
from tidegate.replica.header_blocks import BlockReader, MalformedBlock, encode_block
from tidegate.replica.http1 import PATIENCE, REPORT, too_large

log = logging.getLogger(__name__)

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
IDLE_TIMEOUT = 60.0
"""Seconds; a sender that is silent for so long in the middle of its request, and for at most
twice as long, is not waited for. The edge cannot tell it from one that waits for an answer."""
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY, _WINDOW, _CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
_END_STREAM, _ACK, _END_HEADERS, _PADDED, _PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20
_NOT_WHOLE = _END_HEADERS | _PADDED | _PRIORITY
"""Flags that say whether a HEADERS frame is a header block as it is: all but the first."""
_TABLE_SIZE, _MAX_STREAMS, _INITIAL_WINDOW, _MAX_FRAME = 1, 3, 4, 5
_NO_ERROR, _PROTOCOL_ERROR, _COMPRESSION_ERROR = 0, 1, 9
_LARGEST_FRAME = 2**14
"""Bytes, what a peer may send that was not told otherwise."""
_LARGEST_BLOCK = 2**17
"""Bytes of a header block, whatever the frames it comes in; the edge takes half of it."""
_LARGEST_WINDOW = 2**31 - 1
_DEFAULT_WINDOW = 2**16 - 1
_REPLENISH = 2**29
"""Bytes; the connection's window is opened again after so many. Limits are per message."""
_FRAME_HEAD = struct.Struct(">IBI")
"""Length and type in one, flags, stream."""
_LONGEST_NUMBER = 20
"""Digits of a content-length."""
_GRPC_FRAME = 5
_NO_TABLE = b"\x20"
"""The first block must say that its table has no entries (RFC 7541, section 4.2)."""
_GRPC_HEAD = b"\x88" + encode_block([(b"content-type", b"application/grpc")])
_GRPC_TRAILERS = encode_block([(b"grpc-status", b"0")])


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return _FRAME_HEAD.pack(len(payload) << 8 | kind, flags, stream) + payload


class _Success:
    """A successful gRPC call, but for the stream's number: frame heads without it, payloads."""

    __slots__ = ("after", "before", "block", "pack")

    def __init__(self, block: bytes) -> None:
        frame = _frame(_HEADERS, _END_HEADERS, 0, block)
        self.block = block
        self.before, self.after = frame[:5], frame[9:]
        # The frame of the head, then the heads of a DATA frame and of the gRPC frame in it.
        self.pack = struct.Struct(f">5sI{len(self.after)}sIBIBI").pack


_PLAIN = _Success(_GRPC_HEAD)
_TAIL_FRAME = _frame(_HEADERS, _END_HEADERS | _END_STREAM, 0, _GRPC_TRAILERS)
_TAIL_BEFORE, _TAIL_AFTER = _TAIL_FRAME[:5], _TAIL_FRAME[9:]
_TRAILERS = struct.Struct(f">{len(_TAIL_BEFORE)}sI{len(_TAIL_AFTER)}s")


def _head(fields: Mapping[bytes, bytes]) -> Head:
    return Head(fields.get(b":method", b""), fields.get(b":path", b""), fields)


class _Body:
    """A request body that comes in several frames."""

    __slots__ = ("parts", "size")

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.size = 0


class _Outgoing:
    """A response that waits for the peer to open its windows."""

    __slots__ = ("parts", "then", "trailers", "window")

    def __init__(self, parts: Sequence[Bytes], trailers: bytes | None, window: int) -> None:
        self.then = b""
        """What is sent when the response has ended."""
        # A view of an array without elements cannot be cast.
        views = [view for part in parts if (view := memoryview(part)).nbytes]
        self.parts = deque(view.cast("B") for view in views)
        self.trailers = trailers
        self.window = window


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
        self._whole = 9 + min(self._most, _LARGEST_FRAME)
        """Bytes of the largest frame that may be taken for a body as it is."""
        self._connections = connections
        self._blocks = BlockReader(_head, connections.unread)
        self._coming: dict[int, Exchange] = {}
        """Requests that have not ended yet; the others wait for their answers."""
        self._exchanges: dict[int, Exchange] = {}
        self._bodies: dict[int, _Body] = {}
        self._last_stream = 0
        self._rest = b""
        self._started = False
        self._unfinished: tuple[int, int, bytearray] | None = None
        """Stream, flags and beginning of a header block that goes on in the next frame."""
        self._received = 0
        self._out: list[Bytes] = []
        self._flushing = False
        self._first_block = True
        self._window = _DEFAULT_WINDOW
        self._initial_window = _DEFAULT_WINDOW
        self._windows: dict[int, int] = {}
        """What was added to a stream's window before its answer began."""
        self._max_frame = 2**14
        self._outgoing: dict[int, _Outgoing] = {}
        self._reported: bytes | None = None
        """The load report in what follows."""
        self._with_report = _PLAIN

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say what the peer may do."""
        self._transport = cast("asyncio.Transport", transport)
        self._loop = asyncio.get_running_loop()
        self._connections.all.add(self)
        self._looking = self._loop.call_later(self._idle_timeout, self._look_for_stalled)
        window = min(_LARGEST_WINDOW, self._most + 2**16)
        settings = struct.pack(
            ">HIHIHI", _TABLE_SIZE, 0, _MAX_STREAMS, 2**20, _INITIAL_WINDOW, window
        )
        self._send(_frame(_SETTINGS, 0, 0, settings))
        self._open_window(_LARGEST_WINDOW - _DEFAULT_WINDOW)

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel what runs: nobody waits for it."""
        self._connections.discard(self)
        self._outgoing.clear()
        self._looking.cancel()
        self._bodies.clear()
        self._coming.clear()
        exchanges, self._exchanges = self._exchanges, {}
        for exchange in exchanges.values():
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
        while end - at >= 9:
            word, flags, stream = _FRAME_HEAD.unpack_from(data, at)
            begin = at + 9
            stop = begin + (word >> 8)
            if word >> 8 > _LARGEST_FRAME:
                raise IndexError(f"a frame of {word >> 8} bytes")
            if stop > end:
                break
            at = stop
            kind = word & 0xFF
            # A call is one of each of these, as a rule, and both are here.
            if kind == _HEADERS and flags & _NOT_WHOLE == _END_HEADERS:
                last = _end_of_body(data, stop, stream) if flags == _END_HEADERS else 0
                if last and last - stop <= self._whole and stream > self._last_stream:
                    self._take_whole(stream, data[begin:stop], data[stop + 9 : last])
                    at = last
                else:
                    self._take_headers(flags, stream, data[begin:stop])
            elif kind == _DATA:
                self._take_data(flags, stream, data[begin:stop])
            else:
                self._take(kind, flags, stream, data[begin:stop])
        return at

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind in (_HEADERS, _CONTINUATION):
            self._take_block(kind, flags, stream, payload)
        elif kind == _RESET:
            self._take_reset(stream)
        elif kind == _WINDOW:
            self._take_window(stream, int.from_bytes(payload, "big") & _LARGEST_WINDOW)
        elif kind == _SETTINGS and not flags & _ACK:
            self._take_settings(payload)
        elif kind == _PING and not flags & _ACK:
            self._send(_frame(_PING, _ACK, 0, payload))

    def _take_block(self, kind: int, flags: int, stream: int, block: bytes) -> None:
        first = flags
        if kind == _CONTINUATION:
            if self._unfinished is None:
                raise MalformedBlock("a header block goes on that never began")
            stream, first, begun = self._unfinished
            begun += block
        else:
            begun = bytearray(_unpadded(flags, block))
        if len(begun) > _LARGEST_BLOCK:
            raise IndexError(f"a header block of more than {_LARGEST_BLOCK} bytes")
        if flags & _END_HEADERS:
            self._unfinished = None
            self._take_headers(first, stream, bytes(begun))
        else:
            self._unfinished = (stream, first, begun)

    def _take_reset(self, stream: int) -> None:
        self._outgoing.pop(stream, None)
        self._windows.pop(stream, None)
        self._bodies.pop(stream, None)
        self._coming.pop(stream, None)
        exchange = self._exchanges.pop(stream, None)
        if exchange is not None:
            exchange.gone()

    def _take_whole(self, stream: int, block: bytes, body: bytes) -> None:
        """Take a request that came in two frames at once."""
        self._last_stream = stream
        self._received += len(body)
        if self._received >= _REPLENISH:
            self._open_window(self._received)
            self._received = 0
        head, request_id = self._blocks.read(block)
        exchange = self._exchanges[stream] = Exchange(self, stream, head, request_id, body)
        self._handler(exchange)

    def _take_headers(self, flags: int, stream: int, block: bytes) -> None:
        exchange = self._coming.get(stream)
        if exchange is None:
            if stream <= self._last_stream:
                return  # trailers of what was answered or reset while they were on their way
            self._last_stream = stream
            head, request_id = self._blocks.read(block)
            exchange = self._coming[stream] = Exchange(self, stream, head, request_id)
            if not flags & _END_STREAM and _announced(head) > PATIENCE * self._most:
                self._break_off(exchange, too_large(self._limit))
                return
        if flags & _END_STREAM:  # a request without a body, or the trailers of one
            self._complete(exchange)

    def _take_data(self, flags: int, stream: int, payload: bytes) -> None:
        size = len(payload)
        self._received += size
        if self._received >= _REPLENISH:
            self._open_window(self._received)
            self._received = 0
        exchange = self._coming.get(stream)
        if exchange is None:
            return  # answered or reset while this was on its way
        if flags & _PADDED:
            payload = _unpadded(flags, payload)
        if flags & _END_STREAM and size <= self._most and stream not in self._bodies:
            exchange.body = payload
            del self._coming[stream]
            self._exchanges[stream] = exchange
            self._handler(exchange)
        else:
            self._take_piece(exchange, payload, ended=bool(flags & _END_STREAM))

    def _take_piece(self, exchange: Exchange, piece: bytes, *, ended: bool) -> None:
        body = self._bodies.get(exchange.stream)
        if body is None:
            body = self._bodies[exchange.stream] = _Body()
        body.size += len(piece)
        if body.size <= self._most:
            body.parts.append(piece)
        else:
            body.parts = []
            self._open_window(len(piece), exchange.stream)
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
        self._exchanges[exchange.stream] = exchange
        self._handler(exchange)

    def _refuse(self, exchange: Exchange, error: RequestError) -> None:
        """Answer a request that the handler is not to see."""
        self._bodies.pop(exchange.stream, None)
        del self._coming[exchange.stream]
        self._exchanges[exchange.stream] = exchange
        self._connections.refuse(exchange, error)

    def _break_off(self, exchange: Exchange, error: RequestError) -> None:
        """Refuse a request that has not ended, and tell the peer to send no more of it.

        The reset follows the whole answer (section 8.1).
        """
        stream = exchange.stream
        self._refuse(exchange, error)
        reset = _frame(_RESET, 0, stream, _NO_ERROR.to_bytes(4, "big"))
        outgoing = self._outgoing.get(stream)
        if outgoing is None:
            self._send(reset)
        else:
            outgoing.then = reset

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
        for name, value in struct.iter_unpack(">HI", payload):
            if name == _INITIAL_WINDOW:
                for outgoing in self._outgoing.values():
                    outgoing.window += value - self._initial_window
                self._initial_window = value
            elif name == _MAX_FRAME:
                self._max_frame = value
        self._send(_frame(_SETTINGS, _ACK, 0))
        self._pump()

    def _take_window(self, stream: int, more: int) -> None:
        if stream == 0:
            self._window += more
        elif (outgoing := self._outgoing.get(stream)) is not None:
            outgoing.window += more
        elif stream in self._exchanges or stream in self._coming:
            self._windows[stream] = self._windows.get(stream, 0) + more
        if self._outgoing:
            self._pump()

    def _give_up(self, error: Exception) -> None:
        log.error("the edge sent what is not HTTP/2: %s", error)
        code = _COMPRESSION_ERROR if isinstance(error, MalformedBlock) else _PROTOCOL_ERROR
        self._send(_frame(_GOAWAY, 0, 0, struct.pack(">II", self._last_stream, code)))
        self.flush()
        self._transport.close()

    # What goes

    def write_message(self, stream: int, parts: Sequence[Bytes]) -> None:
        """Answer with a gRPC message and OK."""
        exchange = self._exchanges.pop(stream, None)
        if exchange is None:
            return
        success = _PLAIN if not exchange.head.asks_load else self._reporting()
        length = sum(map(len, parts))
        size = length + _GRPC_FRAME
        window = self._initial_window
        if self._windows:
            window += self._windows.pop(stream, 0)
        trailers = _TRAILERS.pack(_TAIL_BEFORE, stream, _TAIL_AFTER)
        if self._first_block or size > min(self._max_frame, self._window, window):
            self._send(self._head(stream, 0, success.block))
            framed: Sequence[Bytes] = (frame_prefix(length), *parts)
            if size <= self._max_frame:
                framed = (b"".join(framed),)
            self._queue(stream, _Outgoing(framed, trailers, window))
            return
        self._window -= size
        head = success.pack(success.before, stream, success.after, size << 8, 0, stream, 0, length)
        self._send(head, *parts, trailers)

    def write_response(
        self, stream: int, status: int, fields: Headers, parts: Sequence[Bytes]
    ) -> None:
        """Answer with a head and a body."""
        exchange = self._exchanges.pop(stream, None)
        if exchange is None:
            return
        window = self._initial_window + self._windows.pop(stream, 0)
        load = self._connections.load
        if load is not None and exchange.head.asks_load:
            fields = (*fields, (REPORT, callers_own(load(), status, fields)))
        block = encode_block([(b":status", b"%d" % status), *fields])
        self._send(self._head(stream, 0 if parts else _END_STREAM, block))
        if parts:
            self._queue(stream, _Outgoing(parts, None, window))

    def _reporting(self) -> _Success:
        """Return how a call is answered that asks for the load."""
        load = self._connections.load
        if load is None:
            return _PLAIN
        report = load()
        if report is not self._reported:
            self._reported = report
            self._with_report = _Success(_GRPC_HEAD + encode_block([(REPORT, report)]))
        return self._with_report

    def _head(self, stream: int, flags: int, block: bytes) -> bytes:
        if self._first_block:
            self._first_block = False
            block = _NO_TABLE + block
        return _frame(_HEADERS, _END_HEADERS | flags, stream, block)

    def _queue(self, stream: int, outgoing: _Outgoing) -> None:
        self._outgoing[stream] = outgoing
        self._pump()

    def _pump(self) -> None:
        """Send what the windows allow, in turns by stream."""
        for stream in list(self._outgoing):
            outgoing = self._outgoing[stream]
            self._pump_one(stream, outgoing)
            if not outgoing.parts:
                del self._outgoing[stream]
                self._send(outgoing.trailers or _frame(_DATA, _END_STREAM, stream), outgoing.then)

    def _pump_one(self, stream: int, outgoing: _Outgoing) -> None:
        parts = outgoing.parts
        while parts:
            part = parts[0]
            size = min(len(part), self._max_frame, self._window, outgoing.window)
            if size <= 0:
                return
            self._send(_FRAME_HEAD.pack(size << 8, 0, stream), part[:size])
            self._window -= size
            outgoing.window -= size
            if size == len(part):
                parts.popleft()
            else:
                parts[0] = part[size:]

    def _open_window(self, more: int, stream: int = 0) -> None:
        self._send(_frame(_WINDOW, 0, stream, more.to_bytes(4, "big")))

    def _send(self, *parts: Bytes) -> None:
        """Write with everything else that is sent until the next flush."""
        self._out += parts
        if not self._flushing:
            self._flushing = True
            self._connections.flush_soon(self)

    def flush(self) -> None:
        """Write what was gathered."""
        self._flushing = False
        out, self._out = self._out, []
        if not self._transport.is_closing():
            self._transport.write(b"".join(out))


def _end_of_body(data: bytes, at: int, stream: int) -> int:
    """Return where the DATA frame at ``at`` ends; 0 if it is not there or not all of a body."""
    if len(data) - at < 9:
        return 0
    word, flags, same = _FRAME_HEAD.unpack_from(data, at)
    end: int = at + 9 + (word >> 8)
    whole = same == stream and word & 0xFF == _DATA and flags == _END_STREAM and end <= len(data)
    return end if whole else 0


def _announced(head: Head) -> int:
    """Return how many bytes of body a head says that there are."""
    length = head.headers.get(b"content-length", b"")
    return int(length) if length.isdigit() and len(length) < _LONGEST_NUMBER else 0


def _unpadded(flags: int, payload: bytes) -> bytes:
    """Return the payload without padding and priority (sections 6.1 and 6.2)."""
    if flags & _PADDED:
        if payload[0] >= len(payload):
            raise IndexError("a frame is all padding and more")
        payload = payload[1 : len(payload) - payload[0]]
    return payload[5:] if flags & _PRIORITY else payload
