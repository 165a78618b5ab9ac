"""The answers on one HTTP/2 connection: their frames, and the windows that the peer opens.

What is answered together is written at once. The common answer, one small gRPC message and OK,
is three frames that are laid out in advance, but for the stream's number and the lengths.
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import Sequence

from tidegate.protocols.grpc_frames import PREFIX_SIZE, frame_prefix
from tidegate.protocols.load_reports import callers_own
from tidegate.replica.exchange import Bytes, Exchange, Headers, OpenConnections
from tidegate.replica.header_blocks import encode_block
from tidegate.replica.http1 import REPORT
from tidegate.replica.http2_frames import (
    DATA,
    DEFAULT_WINDOW,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    INITIAL_WINDOW,
    LARGEST_FRAME,
    MAX_FRAME,
    WINDOW,
    frame,
    pack_head,
)

_NO_TABLE = b"\x20"
"""The first block must say that its table has no entries (RFC 7541, section 4.2)."""
_GRPC_HEAD = b"\x88" + encode_block([(b"content-type", b"application/grpc")])
_GRPC_TRAILERS = encode_block([(b"grpc-status", b"0")])


class _Success:
    """A successful gRPC call, but for the stream's number: frame heads without it, payloads."""

    __slots__ = ("after", "before", "block", "pack")

    def __init__(self, block: bytes) -> None:
        head = frame(HEADERS, END_HEADERS, 0, block)
        self.block = block
        self.before, self.after = head[:5], head[9:]
        # The frame of the head, then the heads of a DATA frame and of the gRPC frame in it.
        self.pack = struct.Struct(f">5sI{len(self.after)}sIBIBI").pack


_PLAIN = _Success(_GRPC_HEAD)
_TAIL_FRAME = frame(HEADERS, END_HEADERS | END_STREAM, 0, _GRPC_TRAILERS)
_TAIL_BEFORE, _TAIL_AFTER = _TAIL_FRAME[:5], _TAIL_FRAME[9:]
_TRAILERS = struct.Struct(f">{len(_TAIL_BEFORE)}sI{len(_TAIL_AFTER)}s")


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


class Answers:
    """Writes the answers to what came over one connection (a :class:`Connection` of exchanges).

    Args:
        connections: when they are flushed, and the load that those are told who ask for it.
    """

    def __init__(self, connections: OpenConnections) -> None:
        self.waiting: dict[int, Exchange] = {}
        """Requests that wait for their answers, by stream."""
        self._transport: asyncio.Transport
        self._connections = connections
        self._out: list[Bytes] = []
        self._flushing = False
        self._first_block = True
        self._window = DEFAULT_WINDOW
        self._initial_window = DEFAULT_WINDOW
        self._windows: dict[int, int] = {}
        """What was added to a stream's window before its answer began."""
        self._max_frame = LARGEST_FRAME
        self._outgoing: dict[int, _Outgoing] = {}
        self._reported: bytes | None = None
        """The load report in what follows."""
        self._with_report = _PLAIN

    def connect(self, transport: asyncio.Transport) -> None:
        """Write to ``transport`` from now on."""
        self._transport = transport

    def write_message(self, stream: int, parts: Sequence[Bytes]) -> None:
        """Answer with a gRPC message and OK."""
        exchange = self.waiting.pop(stream, None)
        if exchange is None:
            return
        success = _PLAIN if not exchange.head.asks_load else self._reporting()
        length = sum(map(len, parts))
        size = length + PREFIX_SIZE
        window = self._initial_window
        if self._windows:
            window += self._windows.pop(stream, 0)
        trailers = _TRAILERS.pack(_TAIL_BEFORE, stream, _TAIL_AFTER)
        if self._first_block or size > min(self._max_frame, self._window, window):
            self.send(self.head(stream, 0, success.block))
            framed: Sequence[Bytes] = (frame_prefix(length), *parts)
            if size <= self._max_frame:
                framed = (b"".join(framed),)
            self._queue(stream, _Outgoing(framed, trailers, window))
            return
        self._window -= size
        head = success.pack(success.before, stream, success.after, size << 8, 0, stream, 0, length)
        self.send(head, *parts, trailers)

    def write_response(
        self, stream: int, status: int, fields: Headers, parts: Sequence[Bytes]
    ) -> None:
        """Answer with a head and a body."""
        exchange = self.waiting.pop(stream, None)
        if exchange is None:
            return
        window = self._initial_window + self._windows.pop(stream, 0)
        load = self._connections.load
        if load is not None and exchange.head.asks_load:
            fields = (*fields, (REPORT, callers_own(load(), status, fields)))
        block = encode_block([(b":status", b"%d" % status), *fields])
        self.send(self.head(stream, 0 if parts else END_STREAM, block))
        if parts:
            self._queue(stream, _Outgoing(parts, None, window))

    def send_after(self, stream: int, data: bytes) -> None:
        """Send ``data`` when all of the stream's answer has been sent."""
        outgoing = self._outgoing.get(stream)
        if outgoing is None:
            self.send(data)
        else:
            outgoing.then = data

    def head(self, stream: int, flags: int, block: bytes) -> bytes:
        """Return the frame of an answer's head, which is the next to be sent."""
        if self._first_block:
            self._first_block = False
            block = _NO_TABLE + block
        return frame(HEADERS, END_HEADERS | flags, stream, block)

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

    # What the peer takes

    def forget(self, stream: int) -> Exchange | None:
        """Drop the stream's answer, begun or not; return the request that waits for it."""
        self._outgoing.pop(stream, None)
        self._windows.pop(stream, None)
        return self.waiting.pop(stream, None)

    def forget_all(self) -> list[Exchange]:
        """Drop every answer; return the requests that wait for one."""
        self._outgoing.clear()
        waiting = list(self.waiting.values())
        self.waiting.clear()
        return waiting

    def take_settings(self, payload: bytes) -> None:
        """Keep to the settings of the peer.

        Raises:
            struct.error: they are cut.
        """
        for name, value in struct.iter_unpack(">HI", payload):
            if name == INITIAL_WINDOW:
                for outgoing in self._outgoing.values():
                    outgoing.window += value - self._initial_window
                self._initial_window = value
            elif name == MAX_FRAME:
                self._max_frame = value

    def widen(self, stream: int, more: int, *, coming: bool) -> None:
        """Send ``more`` bytes on a stream, on all of them together if it is 0.

        ``coming`` says that the stream's request has not ended yet.
        """
        if stream == 0:
            self._window += more
        elif (outgoing := self._outgoing.get(stream)) is not None:
            outgoing.window += more
        elif coming or stream in self.waiting:
            self._windows[stream] = self._windows.get(stream, 0) + more
        if self._outgoing:
            self.pump()

    def _queue(self, stream: int, outgoing: _Outgoing) -> None:
        self._outgoing[stream] = outgoing
        self.pump()

    def pump(self) -> None:
        """Send what the windows allow, in turns by stream."""
        for stream in list(self._outgoing):
            outgoing = self._outgoing[stream]
            self._pump_one(stream, outgoing)
            if not outgoing.parts:
                del self._outgoing[stream]
                self.send(outgoing.trailers or frame(DATA, END_STREAM, stream), outgoing.then)

    def _pump_one(self, stream: int, outgoing: _Outgoing) -> None:
        parts = outgoing.parts
        while parts:
            part = parts[0]
            size = min(len(part), self._max_frame, self._window, outgoing.window)
            if size <= 0:
                return
            self.send(pack_head(size << 8, 0, stream), part[:size])
            self._window -= size
            outgoing.window -= size
            if size == len(part):
                parts.popleft()
            else:
                parts[0] = part[size:]

    def open_window(self, more: int, stream: int = 0) -> None:
        """Let the peer send ``more`` bytes on a stream; 0: on all of them together."""
        self.send(frame(WINDOW, 0, stream, more.to_bytes(4, "big")))

    def send(self, *parts: Bytes) -> None:
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
