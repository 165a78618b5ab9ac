"""A gRPC client connection over HTTP/2 with prior knowledge, for loads of unary calls.

RFC 9113 (HTTP/2), RFC 7541 (HPACK) and gRPC's PROTOCOL-HTTP2.md. What makes it fast: the
request's header block is the same for every call; our SETTINGS forbid the peer a dynamic
table, so equal blocks mean equal headers and are read once (``response_fields``); replies that
arrive together are answered with one write.
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import Sequence
from typing import cast

from tidegate.load.driver import Call, Driver, Lane, now
from tidegate.load.outcomes import CANCEL, REFUSED_STREAM, of_reset, of_response
from tidegate.load.request_fields import Plan, request_blocks
from tidegate.load.response_fields import NO_FIELDS, Fields, read_block

_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE, _CONTINUATION = (
    0, 1, 3, 4, 6, 7, 8, 9,
)  # fmt: skip
_END_STREAM, _ACK, _END_HEADERS, _PADDED, _PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20
_WHOLE_HEADERS = _END_HEADERS | _PADDED | _PRIORITY

_LARGEST_WINDOW = 2**31 - 1
_LAST_STREAM = 2**31 - 1
LAST_STREAM_USED = _LAST_STREAM - 2**20
"""A connection whose stream ids have come this far is replaced."""
_CACHED_BLOCKS = 4096

_frame_head = struct.Struct(">IBI").unpack_from  # length and type in one word, flags, stream
_NOTHING = memoryview(b"")
_grpc_head = struct.Struct(">BI").unpack_from  # compressed flag, length


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Return one HTTP/2 frame."""
    return struct.pack(">IBI", len(payload) << 8 | kind, flags, stream) + payload


_PREFACE = (
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    # No dynamic table for the peer's encoder, no push, streams without a receive limit.
    + frame(_SETTINGS, 0, 0, struct.pack(">HIHIHI", 1, 0, 2, 0, 4, _LARGEST_WINDOW))
    + frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", _LARGEST_WINDOW - 65535))
)


class GrpcConnection(asyncio.Protocol):
    """One connection; its life is: settings exchanged (``ready``), calls, ``gone``, ``closed``."""

    def __init__(self, lane: Lane, plan: Plan) -> None:
        loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[None] = loop.create_future()
        self.gone: asyncio.Future[None] = loop.create_future()
        self.closed: asyncio.Future[None] = loop.create_future()
        self._lane = lane
        self._driver: Driver = lane.driver
        self._plan = plan
        self._transport: asyncio.Transport
        self._leaving = False
        self._rest = b""
        self._out: list[bytes] = []
        self._received = 0
        self._streams: dict[int, Call] = {}
        self._next = 1
        self._waiting: deque[Call] = deque()  # for a free stream
        self._unsent: deque[int] = deque()  # streams whose message waits for a window
        self._headers: tuple[int, bytes] | None = None  # flags and block to be continued
        self._last_processed = _LAST_STREAM
        # What the peer allows, until its SETTINGS say otherwise (RFC 9113, 6.5.2).
        self._table_size = 4096
        self._most_streams = 2**31
        self._stream_window = self._window = 65535
        self._largest_frame = 16384
        self._first_block: bytes | None = None
        self._block = b""
        self._head = b""
        self._shapes: list[tuple[bytes, bytes, int]] = []

    # What a lane does.

    def launch(self, calls: Sequence[Call]) -> None:
        """Make calls on this connection for as long as it and they last."""
        at = now()
        for call in calls:
            self._make_next(call, at)
        self._flush()

    def expire(self, before: float) -> None:
        """Cancel and fail the calls that started before this time."""
        for stream, call in list(self._streams.items()):
            if call.started < before:
                self._reset(stream)
                self._fail(stream, call, "DEADLINE_EXCEEDED", "no answer in time")
        self._flush()

    def close(self) -> None:
        """Close the connection; calls under way end as UNAVAILABLE."""
        self._leave()
        self._transport.close()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the preface."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(_PREFACE)

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail what was under way; what the server never processed goes to the next one."""
        reason = f"connection lost: {exc or 'closed by the server'}"
        if not self.ready.done():
            self.ready.set_exception(ConnectionError(reason))
        self._leave()
        for stream, call in list(self._streams.items()):
            if stream > self._last_processed:
                self._refused(stream, call)
            else:
                self._fail(stream, call, "UNAVAILABLE", reason)
        self.closed.set_result(None)

    def data_received(self, data: bytes) -> None:
        """Read frames; a caller whose call has ended makes its next one."""
        if self._rest:
            data = self._rest + data
        at = now()
        streams, blocks = self._streams, self._plan.blocks
        position, end = 0, len(data)
        while end - position >= 9:
            word, flags, stream = _frame_head(data, position)
            start = position + 9
            stop = start + (word >> 8)
            if stop > end:
                break
            position = stop
            kind = word & 0xFF
            call = streams.get(stream)
            if call is not None and kind == _DATA and not flags & (_PADDED | _END_STREAM):
                self._received += stop - start
                if not call.body:
                    call.body = data[start:stop]
                else:
                    call.append(data[start:stop])
            elif call is not None and kind == _HEADERS and flags & _WHOLE_HEADERS == _END_HEADERS:
                block = data[start:stop]
                fields = blocks.get(block) or self._decode(block)
                if flags & _END_STREAM:
                    self._end(stream, call, fields, at)
                else:
                    self._take_headers(stream, call, flags, fields, at)
            else:
                self._other(kind, flags, stream, data[start:stop])
        self._rest = data[position:]
        self._flush()

    # Calls

    def _end(self, stream: int, call: Call, fields: Fields, at: float) -> None:
        """Take the outcome of a call whose trailers have come, and make the next."""
        body = call.body
        head = call.head or fields
        if (
            fields.succeeds
            and head.opens
            and len(body) >= 5
            and _grpc_head(body) == (0, len(body) - 5)
        ):
            if call.unsent:
                self._reset(stream)
            del self._streams[stream]
            self._driver.succeed(call, "OK", at, body, 5)
            self._make_next(call, at)
        else:
            if call.unsent:
                self._reset(stream)
            self._fail(stream, call, *of_response(head, fields, body))

    def _make_next(self, call: Call, at: float) -> None:
        """Let the caller of ``call`` make its next call, here or on the next connection."""
        if self._leaving:
            self._lane.give((call,))
            return
        if self._waiting and len(self._streams) < self._most_streams:
            self._send(self._waiting.popleft())
        if self._driver.issue(call, at):
            if len(self._streams) < self._most_streams:
                self._send(call)
            else:
                self._waiting.append(call)

    def _fail(self, stream: int, call: Call, code: str, message: str) -> None:
        del self._streams[stream]
        self._driver.fail(call, code, message)
        self._make_next(call, now())

    def _refused(self, stream: int, call: Call) -> None:
        """Send a call again that the server has not processed; once, as gRPC clients do (A6)."""
        if call.refused:
            self._fail(stream, call, "UNAVAILABLE", "the server refused the stream twice")
            return
        del self._streams[stream]
        self._driver.result.refused += 1
        call.refused = True
        self._make_next(call, now())

    # Sending

    def _send(self, call: Call) -> None:
        stream = self._next
        self._next = stream + 2
        self._streams[stream] = call
        call.head = None
        call.body = b""
        middle, message, size = self._shapes[call.message]
        if size > self._window or self._first_block is not None:
            self._send_apart(stream, call, message)
            return
        self._window -= size
        name = stream.to_bytes(4, "big")
        self._out += (self._head, name, middle, name, message)

    def _send_apart(self, stream: int, call: Call, message: bytes) -> None:
        """Send the headers, and of the message what the windows allow."""
        block, self._first_block = self._first_block or self._block, None
        self._out.append(frame(_HEADERS, _END_HEADERS, stream, block))
        call.unsent = memoryview(message)
        call.window = self._stream_window
        self._unsent.append(stream)
        self._send_rest()

    def _send_rest(self) -> None:
        for _ in range(len(self._unsent)):
            stream = self._unsent.popleft()
            call = self._streams.get(stream)
            if call is None:
                continue
            while call.unsent and call.window > 0 and self._window > 0:
                size = min(len(call.unsent), call.window, self._window, self._largest_frame)
                part, call.unsent = call.unsent[:size], call.unsent[size:]
                call.window -= size
                self._window -= size
                last = 0 if call.unsent else _END_STREAM
                self._out.append(frame(_DATA, last, stream, bytes(part)))
            if call.unsent:
                self._unsent.append(stream)

    def _reset(self, stream: int) -> None:
        self._streams[stream].unsent = _NOTHING
        self._out.append(frame(_RST_STREAM, 0, stream, struct.pack(">I", CANCEL)))

    def _flush(self) -> None:
        if self._received >= 2**30:
            self._out.append(frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", self._received)))
            self._received = 0
        if self._out:
            self._transport.write(b"".join(self._out))
            self._out.clear()
        if self._leaving:
            if not self._streams:
                self._transport.close()
        elif self._next > LAST_STREAM_USED:
            self._leave()

    def _leave(self) -> None:
        """Take no more calls; those that wait for a stream go to the next connection."""
        if not self._leaving:
            self._leaving = True
            self.gone.set_result(None)
            waiting, self._waiting = self._waiting, deque()
            self._lane.give(waiting)

    # Receiving what is not the plain answer of a call

    def _other(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == _SETTINGS and not flags & _ACK:
            self._settings(payload)
        elif kind == _PING and not flags & _ACK:
            self._out.append(frame(_PING, _ACK, 0, payload))
        elif kind == _WINDOW_UPDATE:
            self._window_update(stream, int.from_bytes(payload, "big"))
        elif kind == _GOAWAY:
            self._goaway(int.from_bytes(payload[:4], "big"))
        elif kind in (_DATA, _HEADERS, _CONTINUATION, _RST_STREAM):
            self._unusual(kind, flags, stream, payload)

    def _unusual(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        """Read padded, prioritised and continued frames, and those of calls given up."""
        if kind == _DATA:
            self._received += len(payload)
        elif kind == _CONTINUATION:
            assert self._headers is not None, "CONTINUATION without HEADERS"
            first_flags, block = self._headers
            kind, flags, payload = _HEADERS, first_flags | flags & _END_HEADERS, block + payload
        if kind != _RST_STREAM and flags & _PADDED:
            payload = payload[1 : len(payload) - payload[0]]
        if kind == _HEADERS and flags & _PRIORITY:
            payload = payload[5:]
        flags &= ~(_PADDED | _PRIORITY)
        call = self._streams.get(stream)
        if kind == _HEADERS and not flags & _END_HEADERS:
            self._headers = flags, payload
        elif call is None:
            return
        elif kind == _HEADERS:
            self._take_headers(stream, call, flags, self._decode(payload), now())
        elif kind == _RST_STREAM:
            self._reset_by_peer(stream, call, int.from_bytes(payload, "big"))
        else:
            call.append(payload)
            if flags & _END_STREAM:
                self._end(stream, call, NO_FIELDS, now())

    def _take_headers(
        self, stream: int, call: Call, flags: int, fields: Fields, at: float
    ) -> None:
        if flags & _END_STREAM:
            self._end(stream, call, fields, at)
        elif call.head is None or call.head.interim:
            call.head = fields

    def _decode(self, block: bytes) -> Fields:
        fields = read_block(block)
        if len(self._plan.blocks) >= _CACHED_BLOCKS:
            self._plan.blocks.clear()
        self._plan.blocks[block] = fields
        return fields

    def _reset_by_peer(self, stream: int, call: Call, code: int) -> None:
        if code == REFUSED_STREAM:
            self._refused(stream, call)
        else:
            self._fail(stream, call, *of_reset(code))

    def _goaway(self, last: int) -> None:
        self._last_processed = last & _LAST_STREAM
        self._leave()
        for stream, call in list(self._streams.items()):
            if stream > self._last_processed:
                self._refused(stream, call)

    def _settings(self, payload: bytes) -> None:
        table_size = self._table_size
        for key, value in struct.iter_unpack(">HI", payload):
            if key == 1:
                table_size = min(value, 4096)
            elif key == 3:
                self._most_streams = value
            elif key == 4:
                for call in self._streams.values():
                    call.window += value - self._stream_window
                self._stream_window = value
            elif key == 5:
                self._largest_frame = value
        self._out.append(frame(_SETTINGS, _ACK, 0, b""))
        if not self.ready.done():
            self._table_size = table_size
            self._first_block, self._block = request_blocks(self._plan.fields, table_size)
            self.ready.set_result(None)
        elif table_size < self._table_size:
            # Our block refers to the table, so a connection made anew is the simple answer.
            self._leave()
        self._shape()
        self._send_rest()

    def _shape(self) -> None:
        """Prepare the frames of a call, around its stream's id."""
        self._head = frame(_HEADERS, _END_HEADERS, 0, self._block)[:5]
        self._shapes = []
        for message in self._plan.messages:
            whole = len(message) <= min(self._largest_frame, self._stream_window)
            middle = self._block + frame(_DATA, _END_STREAM, 0, message)[:5] if whole else b""
            # What does not fit into one frame is sent apart: it is larger than any window.
            size = len(message) if whole else 2**32
            self._shapes.append((middle, message, size))

    def _window_update(self, stream: int, increment: int) -> None:
        if stream == 0:
            self._window += increment
        elif stream in self._streams:
            self._streams[stream].window += increment
        if self._unsent:
            self._send_rest()


async def connect_grpc(host: str, port: int, plan: Plan, lane: Lane) -> GrpcConnection:
    """Open a connection and wait for the server's settings."""
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(lambda: GrpcConnection(lane, plan), host, port)
    try:
        await connection.ready
    except asyncio.CancelledError:
        connection.close()
        raise
    return connection
