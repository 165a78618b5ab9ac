from __future__ import annotations

import asyncio
import contextlib
import os
import random
import struct
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

import hpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.replica.waiting import WAIT, until
from tidegate.errors import InvalidInput, QueueFull
from tidegate.protocols.grpc_frames import frame_prefix
from tidegate.replica.exchange import Exchange, OpenConnections
from tidegate.replica.http import Server
from tidegate.replica.http1 import PATIENCE
from tidegate.replica.http2 import Http2Connection
from tidegate.replica.http2_frames import PREFACE

LIMIT = 100_000
DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY, WINDOW, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20
INITIAL_WINDOW = 4
GRPC = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/a.B/C?x=1"),
    (":authority", "edge"),
    ("content-type", "application/grpc"),
    ("te", "trailers"),
]
REST = [(":method", "POST"), (":scheme", "http"), (":path", "/v2/x"), (":authority", "edge")]


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def window(stream: int, more: int) -> bytes:
    return frame(WINDOW, 0, stream, struct.pack(">I", more))


def setting(name: int, value: int) -> bytes:
    return frame(SETTINGS, 0, 0, struct.pack(">HI", name, value))


def block_of(fields: list[tuple[str, str]], request_id: str = "") -> bytes:
    encoder = hpack.Encoder()
    encoder.header_table_size = 0
    return encoder.encode([*fields, ("x-request-id", request_id)] if request_id else fields)


def call(stream: int, body: bytes = b"", fields: list[tuple[str, str]] = GRPC) -> bytes:
    """Write a request: its body in frames of the size that every peer takes."""
    head = frame(HEADERS, END_HEADERS, stream, block_of(fields, f"id-{stream}"))
    return head + data(stream, body)


def data(stream: int, body: bytes, *, last: bool = True) -> bytes:
    pieces = [body[at : at + 2**14] for at in range(0, len(body), 2**14)] or [b""]
    out = [frame(DATA, 0, stream, piece) for piece in pieces[:-1]]
    return b"".join(out) + frame(DATA, END_STREAM if last else 0, stream, pieces[-1])


def framed(message: bytes) -> bytes:
    return frame_prefix(len(message)) + message


@dataclass
class Answer:
    """What came on a stream."""

    blocks: list[dict[str, str]] = field(default_factory=list)
    pieces: list[bytes] = field(default_factory=list)
    kinds: list[int] = field(default_factory=list)
    ended: bool = False

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)


class Edge:
    """A raw HTTP/2 peer that keeps account of the windows it gave."""

    def __init__(self) -> None:
        self.answers: defaultdict[int, Answer] = defaultdict(Answer)
        self.controls: list[tuple[int, int, int, bytes]] = []
        self.first_block: bytes | None = None
        self.closed = False
        self._decoder = hpack.Decoder()
        self._decoder.max_allowed_table_size = 0
        self._buffer = bytearray()

    async def connect(self, path: Path, *frames: bytes) -> None:
        self._reader, self._writer = await asyncio.open_unix_connection(str(path))
        self.send(PREFACE, *(frames or (frame(SETTINGS, 0, 0),)))

    def send(self, *frames: bytes) -> None:
        self._writer.write(b"".join(frames))

    def close(self) -> None:
        self._writer.transport.abort()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Read until it holds; fail after ``WAIT`` or at the end of what comes."""
        async with asyncio.timeout(WAIT):
            while not condition():
                received = await self._reader.read(2**20)
                if not received:
                    self.closed = True
                    assert condition(), "the connection was closed"
                    return
                self.take(received)

    async def answer(self, stream: int) -> Answer:
        await self.until(lambda: self.answers[stream].ended)
        return self.answers[stream]

    async def settle(self) -> None:
        """Return when everything sent until now was read and its effects have arrived."""
        token = os.urandom(8)
        self.send(frame(PING, 0, 0, token))
        await self.until(lambda: (PING, ACK, 0, token) in self.controls)

    def got(self, kind: int) -> list[tuple[int, int, int, bytes]]:
        return [control for control in self.controls if control[0] == kind]

    def take(self, received: bytes) -> None:
        self._buffer += received
        at = 0
        while len(self._buffer) - at >= 9:
            size = int.from_bytes(self._buffer[at : at + 3], "big")
            if len(self._buffer) - at < 9 + size:
                break
            kind, flags, stream = struct.unpack_from(">BBI", self._buffer, at + 3)
            assert size <= 2**14
            self._take(kind, flags, stream, bytes(self._buffer[at + 9 : at + 9 + size]))
            at += 9 + size
        del self._buffer[:at]

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind not in (DATA, HEADERS):
            self.controls.append((kind, flags, stream, payload))
            return
        answer = self.answers[stream]
        assert not answer.ended, "something after the end of a stream"
        answer.kinds.append(kind)
        if kind == DATA:
            answer.pieces.append(payload)
        else:
            assert flags & END_HEADERS
            if self.first_block is None:
                self.first_block = payload
            answer.blocks.append(
                {str(name): str(value) for name, value in self._decoder.decode(payload)}
            )
        answer.ended = bool(flags & END_STREAM)


class Desk:
    """Where exchanges arrive, for the test to answer."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.exchanges: asyncio.Queue[Exchange] = asyncio.Queue()
        self.gone: list[Exchange] = []

    def handle(self, exchange: Exchange) -> None:
        exchange.on_gone = lambda: self.gone.append(exchange)
        self.exchanges.put_nowait(exchange)

    async def next(self) -> Exchange:
        return await asyncio.wait_for(self.exchanges.get(), WAIT)


@contextlib.asynccontextmanager
async def served(
    folder: Path, *frames: bytes, limit: int = LIMIT
) -> AsyncIterator[tuple[Desk, Edge]]:
    desk = Desk(folder / "s")
    edge = Edge()
    async with Server(desk.path, desk.handle, limit):
        await edge.connect(desk.path, *frames)
        try:
            yield desk, edge
        finally:
            edge.close()


async def test_a_grpc_success_is_head_message_and_trailers(folder: Path) -> None:
    async with served(folder) as (desk, edge):
        for stream in (1, 3):
            edge.send(call(stream, framed(b"hello")))
            exchange = await desk.next()
            assert (exchange.method, exchange.path, exchange.grpc) == (b"POST", "/a.B/C", True)
            assert exchange.target == b"/a.B/C?x=1"
            assert exchange.body == framed(b"hello")
            assert exchange.headers[b"te"] == b"trailers"
            exchange.reply_grpc((b"wor", b"ld"))
            answer = await edge.answer(stream)
            assert answer.kinds == [HEADERS, DATA, HEADERS]
            assert answer.blocks == [
                {":status": "200", "content-type": "application/grpc"},
                {"grpc-status": "0"},
            ]
            assert answer.body == framed(b"world")
        assert edge.first_block is not None
        assert edge.first_block[0] == 0x20


@pytest.mark.parametrize("kind", ["fail", "reply"])
async def test_the_first_block_says_that_there_is_no_table(folder: Path, kind: str) -> None:
    async with served(folder) as (desk, edge):
        edge.send(call(1))
        exchange = await desk.next()
        if kind == "fail":
            exchange.fail(InvalidInput("no"))
        else:
            exchange.reply([b"yes"])
        await edge.answer(1)
        assert edge.first_block is not None
        assert edge.first_block[0] == 0x20


async def test_a_grpc_error_is_a_head_alone(folder: Path) -> None:
    async with served(folder) as (desk, edge):
        edge.send(call(1, framed(b"")))
        (await desk.next()).fail(InvalidInput("100 % wrong"))
        answer = await edge.answer(1)
        assert answer.kinds == [HEADERS]
        assert answer.blocks[0][":status"] == "200"
        assert answer.blocks[0]["grpc-status"] == "3"
        assert answer.blocks[0]["grpc-message"] == "100 %25 wrong"


async def test_rest_answers(folder: Path) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    empty = np.zeros((3, 0), dtype=np.float32)
    async with served(folder) as (desk, edge):
        edge.send(call(1, b"{}", REST), call(3, b"{}", REST), call(5, b"{}", REST))
        (await desk.next()).reply(
            [b"head", array.data, empty.data, bytearray(b"tail")], headers=[(b"x-extra", b"7")]
        )
        (await desk.next()).fail(QueueFull("later", retry_after=3.4))
        (await desk.next()).reply([b""])
        answer = await edge.answer(1)
        assert answer.body == b"head" + array.tobytes() + b"tail"
        assert answer.blocks == [
            {
                ":status": "200",
                "content-type": "application/json",
                "content-length": "32",
                "x-extra": "7",
            }
        ]
        refusal = await edge.answer(3)
        assert refusal.blocks[0][":status"] == "429"
        assert refusal.blocks[0]["retry-after"] == "3"
        assert len(refusal.body) == int(refusal.blocks[0]["content-length"])
        assert (await edge.answer(5)).body == b""


async def test_get_and_head_have_no_body(folder: Path) -> None:
    async with served(folder) as (desk, edge):
        for stream, method in ((1, "GET"), (3, "HEAD")):
            block = block_of([(":method", method), *REST[1:]])
            edge.send(frame(HEADERS, END_HEADERS | END_STREAM, stream, block))
            exchange = await desk.next()
            assert (exchange.method, exchange.body) == (method.encode(), b"")
            exchange.reply([b"body"])
            answer = await edge.answer(stream)
            assert answer.body == (b"body" if method == "GET" else b"")
            assert answer.blocks[0]["content-length"] == "4"


async def test_interleaved_streams_do_not_mix(folder: Path) -> None:
    rng = random.Random(7)
    async with served(folder, setting(INITIAL_WINDOW, 2**20), window(0, 2**30)) as (desk, edge):
        bodies = {stream: rng.randbytes(rng.randrange(40_000)) for stream in range(1, 400, 2)}
        lanes = {
            stream: [
                frame(HEADERS, END_HEADERS, stream, block_of(GRPC, f"id-{stream}")),
                *(
                    data(stream, body[at : at + 999], last=False)
                    for at in range(0, len(body), 999)
                ),
                data(stream, b""),
            ]
            for stream, body in bodies.items()
        }
        opened = -1
        while lanes:
            # Streams are opened in order (RFC 9113, section 5.1.1).
            stream = rng.choice([stream for stream in lanes if stream <= opened + 2])
            opened = max(opened, stream)
            edge.send(lanes[stream].pop(0))
            if not lanes[stream]:
                del lanes[stream]
        exchanges = [await desk.next() for _ in bodies]
        rng.shuffle(exchanges)
        for exchange in exchanges:
            exchange.reply_grpc((exchange.body[::-1],))
        for stream, body in bodies.items():
            answer = await edge.answer(stream)
            assert answer.body == framed(body[::-1])
            assert answer.blocks[-1] == {"grpc-status": "0"}


class Wire(asyncio.Transport):
    """Takes what a connection writes."""

    def __init__(self, edge: Edge) -> None:
        super().__init__()
        self._edge = edge
        self._closing = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._edge.take(bytes(data))

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        self._closing = True


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 1200), max_size=60), st.booleans())
async def test_frames_may_be_cut_anywhere(cuts: list[int], one_by_one: bool) -> None:
    bodies = {1: os.urandom(300), 3: b"", 5: os.urandom(100)}
    sent = PREFACE + frame(SETTINGS, 0, 0) + frame(PING, 0, 0, b"12345678")
    sent += b"".join(call(stream, body) for stream, body in bodies.items())
    edge = Edge()
    connection = Http2Connection(
        lambda exchange: exchange.reply_grpc((exchange.body,)), LIMIT, 0, OpenConnections()
    )
    connection.connection_made(Wire(edge))
    places = range(len(sent)) if one_by_one else sorted({c for c in cuts if c < len(sent)})
    for begin, end in zip([0, *places], [*places, len(sent)], strict=True):
        connection.data_received(sent[begin:end])
    await until(lambda: all(edge.answers[stream].ended for stream in bodies))
    for stream, body in bodies.items():
        assert edge.answers[stream].body == framed(body)
    assert (PING, ACK, 0, b"12345678") in edge.controls


async def test_padding_priority_continuation_and_trailers_are_read(folder: Path) -> None:
    block = block_of([*GRPC, ("x-long", "l" * 300)], "abc")
    third = len(block) // 3
    padded = b"\x07" + struct.pack(">IB", 0, 15) + block[:third] + b"\0" * 7
    async with served(folder) as (desk, edge):
        edge.send(
            frame(HEADERS, PADDED | PRIORITY, 1, padded),
            frame(CONTINUATION, 0, 1, block[third : 2 * third]),
            frame(CONTINUATION, END_HEADERS, 1, block[2 * third :]),
            frame(DATA, PADDED, 1, b"\x05hello" + b"\0" * 5),
            frame(DATA, 0, 1),
            frame(DATA, PADDED, 1, b"\0, you"),
            frame(DATA, PADDED, 1, b"\x03" + b"\0" * 3),
            frame(HEADERS, END_HEADERS | END_STREAM, 1, block_of([("x-checksum", "7")])),
        )
        exchange = await desk.next()
        assert exchange.body == b"hello, you"
        assert exchange.headers[b"x-long"] == b"l" * 300
        exchange.reply_grpc((b"",))
        assert (await edge.answer(1)).body == framed(b"")
        # A head that ends its stream and goes on in another frame.
        edge.send(
            frame(HEADERS, END_STREAM, 3, block[:third]),
            frame(CONTINUATION, END_HEADERS, 3, block[third:]),
        )
        exchange = await desk.next()
        assert exchange.body == b""
        exchange.reply_grpc((b"x",))
        assert (await edge.answer(3)).body == framed(b"x")


async def test_requests_that_stall_are_refused(folder: Path) -> None:
    edge = Edge()
    waiting: list[Exchange] = []
    connection = Http2Connection(waiting.append, LIMIT, 0, OpenConnections(), idle_timeout=9.5)
    connection.connection_made(Wire(edge))
    head = {stream: frame(HEADERS, END_HEADERS, stream, block_of(GRPC)) for stream in (1, 3, 5)}
    connection.data_received(PREFACE + head[1] + head[3] + head[5] + call(7))
    connection.data_received(data(3, b"some", last=False) + data(5, b"some", last=False))
    connection._look_for_stalled()
    connection.data_received(data(5, b"more", last=False) + head[1][:4])
    assert not edge.answers
    connection._look_for_stalled()
    await until(lambda: len(edge.answers) == 2)
    for stream in (1, 3):
        answer = edge.answers[stream]
        assert (answer.ended, answer.blocks[0]["grpc-status"]) == (True, "4")
        assert "nothing was received for 9.5 s" in unquote(answer.blocks[0]["grpc-message"])
    connection.data_received(head[1][4:] + data(3, b"too late") + data(5, b", and all"))
    assert [exchange.stream for exchange in waiting] == [7, 5]
    assert waiting[1].body == b"somemore, and all"
    connection._look_for_stalled()
    connection._look_for_stalled()  # 7 and 5 may take as long as they need
    assert len(edge.answers) == 2
    assert not connection._coming
    connection.connection_lost(None)


async def test_a_reset_is_told_once_and_the_answer_dropped(folder: Path) -> None:
    async with served(folder) as (desk, edge):
        edge.send(call(1), call(3))
        first, second = await desk.next(), await desk.next()
        edge.send(frame(RESET, 0, 1, struct.pack(">I", 8)) * 2)
        await edge.settle()
        assert desk.gone == [first]
        first.reply_grpc((b"late",))
        first.fail(InvalidInput("later"))
        second.reply_grpc((b"in time",))
        assert (await edge.answer(3)).body == framed(b"in time")
        edge.send(frame(RESET, 0, 3, struct.pack(">I", 0)))
        await edge.settle()
        assert 1 not in edge.answers
        edge.close()
        await desk_is_empty(desk)
        assert desk.gone == [first]


async def desk_is_empty(desk: Desk) -> None:
    """Return when another connection was served, so a close before it was seen."""
    other = Edge()
    await other.connect(desk.path)
    other.send(call(1))
    (await desk.next()).reply_grpc((b"",))
    await other.answer(1)
    other.close()


async def test_a_reset_before_the_end_of_a_request_forgets_it(folder: Path) -> None:
    async with served(folder) as (desk, edge):
        head = frame(HEADERS, END_HEADERS, 1, block_of(GRPC))
        edge.send(head, data(1, b"half", last=False), frame(RESET, 0, 1, b"\0\0\0\x08"))
        edge.send(data(1, b"more"), call(3))
        (await desk.next()).reply_grpc((b"3",))
        assert (await edge.answer(3)).body == framed(b"3")
        await edge.settle()
        assert desk.exchanges.empty()
        assert 1 not in edge.answers


async def test_with_the_connection_all_its_callers_leave(folder: Path) -> None:
    async with served(folder) as (desk, edge):
        edge.send(*(call(stream) for stream in range(1, 20, 2)))
        exchanges = [await desk.next() for _ in range(10)]
        exchanges[0].reply_grpc((b"answered",))
        await edge.answer(1)
        edge.close()
        await until(lambda: len(desk.gone) >= 9)
        assert desk.gone == exchanges[1:]
        exchanges[1].reply_grpc((b"late",))


async def test_an_answer_waits_for_both_windows(folder: Path) -> None:
    message = os.urandom(300_000)
    whole = framed(message)
    async with served(folder) as (desk, edge):
        edge.send(call(1))
        (await desk.next()).reply_grpc((message,))
        await edge.settle()
        got = edge.answers[1]
        assert got.body == whole[:65535]
        edge.send(window(1, 100_000))
        await edge.settle()
        assert len(got.body) == 65535
        edge.send(window(0, 60_000))
        await edge.settle()
        assert len(got.body) == 125_535
        edge.send(window(0, 2**20))
        await edge.settle()
        assert len(got.body) == 165_535
        edge.send(window(1, len(whole) - 165_535 - 1))
        await edge.settle()
        assert len(got.body) == len(whole) - 1
        assert got.kinds[-1] == DATA
        edge.send(window(1, 1))
        answer = await edge.answer(1)
        assert answer.body == whole
        assert answer.blocks[-1] == {"grpc-status": "0"}


async def test_a_window_opened_before_the_answer_counts(folder: Path) -> None:
    message = os.urandom(200_000)
    async with served(folder, frame(SETTINGS, 0, 0), window(0, 2**20)) as (desk, edge):
        head = frame(HEADERS, END_HEADERS, 1, block_of(REST))
        edge.send(head, window(1, 100_000), data(1, b""), window(1, 50_000))
        exchange = await desk.next()
        await edge.settle()
        exchange.reply([message])
        assert (await edge.answer(1)).body == message


async def test_the_initial_window_may_change_in_the_middle(folder: Path) -> None:
    message = os.urandom(5000 - 5)
    whole = framed(message)
    async with served(folder, setting(INITIAL_WINDOW, 1000)) as (desk, edge):
        edge.send(call(1))
        (await desk.next()).reply_grpc((message,))
        await edge.settle()
        got = edge.answers[1]
        assert len(got.body) == 1000
        edge.send(setting(INITIAL_WINDOW, 0))  # the window is -1000 now
        edge.send(window(1, 1000))
        await edge.settle()
        assert len(got.body) == 1000
        edge.send(window(1, 500))
        await edge.settle()
        assert len(got.body) == 1500
        edge.send(setting(INITIAL_WINDOW, 700))
        await edge.settle()
        assert len(got.body) == 2200
        edge.send(call(3))
        (await desk.next()).reply_grpc((b"y" * 1000,))
        await edge.settle()
        assert len(edge.answers[3].body) == 700
        edge.send(setting(INITIAL_WINDOW, 2**31 - 1))
        assert (await edge.answer(1)).body == whole
        assert (await edge.answer(3)).body == framed(b"y" * 1000)


async def test_a_reset_frees_an_answer_that_waits(folder: Path) -> None:
    async with served(folder) as (desk, edge):
        edge.send(call(1), call(3))
        (await desk.next()).reply_grpc((bytes(10**6),))
        (await desk.next()).reply_grpc((b"small",))
        await edge.settle()
        assert len(edge.answers[1].body) == 65535
        assert edge.answers[3].body == b""
        edge.send(frame(RESET, 0, 1, struct.pack(">I", 8)), window(0, 10))
        assert (await edge.answer(3)).body == framed(b"small")
        edge.send(window(0, 2**20))
        await edge.settle()
        assert len(edge.answers[1].body) == 65535
        assert desk.gone == []


async def test_messages_without_bytes_and_without_windows(folder: Path) -> None:
    async with served(folder, setting(INITIAL_WINDOW, 0)) as (desk, edge):
        edge.send(call(1), call(3), call(5))
        (await desk.next()).reply_grpc(())
        (await desk.next()).fail(InvalidInput("needs no window"))
        (await desk.next()).reply([b""])
        assert (await edge.answer(3)).kinds == [HEADERS]
        assert (await edge.answer(5)).body == b""
        assert not edge.answers[1].ended
        edge.send(window(1, 5))
        assert (await edge.answer(1)).body == framed(b"")


async def test_settings_and_pings_are_acknowledged(folder: Path) -> None:
    async with served(folder) as (_, edge):
        edge.send(setting(INITIAL_WINDOW, 7), frame(SETTINGS, ACK, 0), frame(0x42, 0, 0, b"new"))
        edge.send(frame(PING, ACK, 0, b"notasked"))
        await edge.settle()
        assert edge.controls[0][:3] == (SETTINGS, 0, 0)
        ours = dict(struct.iter_unpack(">HI", edge.controls[0][3]))
        assert ours[1] == 0
        assert ours[INITIAL_WINDOW] >= LIMIT
        assert edge.got(SETTINGS)[1:] == [(SETTINGS, ACK, 0, b"")] * 2
        assert len(edge.got(PING)) == 1


@pytest.mark.parametrize("last", [b"!", b""])
@pytest.mark.parametrize("fields", [GRPC, REST])
async def test_a_body_too_large_is_answered_after_its_end(
    folder: Path, fields: list[tuple[str, str]], last: bytes
) -> None:
    async with served(folder) as (desk, edge):
        edge.send(call(1, b"ok"))
        other = await desk.next()
        edge.send(frame(HEADERS, END_HEADERS, 3, block_of(fields)))
        await edge.settle()
        left = dict(struct.iter_unpack(">HI", edge.got(SETTINGS)[0][3]))[INITIAL_WINDOW]
        seen = len(edge.got(WINDOW))
        to_send = 3 * LIMIT
        while to_send:
            size = min(to_send, left, 2**14)
            assert size > 0, "the sender may not finish"
            edge.send(data(3, bytes(size), last=False))
            await edge.settle()
            updates, seen = edge.got(WINDOW)[seen:], len(edge.got(WINDOW))
            left += sum(int.from_bytes(u[3], "big") for u in updates if u[2] == 3) - size
            to_send -= size
        assert 3 not in edge.answers
        edge.send(data(3, last))
        answer = await edge.answer(3)
        assert all(int.from_bytes(u[3], "big") for u in edge.got(WINDOW)), "0 is an error"
        if fields is GRPC:
            assert answer.blocks[0]["grpc-status"] == "8"
        else:
            assert answer.blocks[0][":status"] == "413"
        edge.send(call(5, bytes(LIMIT)))
        exchange = await desk.next()
        assert len(exchange.body) == LIMIT
        exchange.reply_grpc((b"5",))
        other.reply_grpc((b"1",))
        assert (await edge.answer(5)).body == framed(b"5")
        assert (await edge.answer(1)).body == framed(b"1")
        assert desk.exchanges.empty()


async def test_patience_has_an_end(folder: Path) -> None:
    async with served(folder) as (desk, edge):
        edge.send(frame(HEADERS, END_HEADERS, 1, block_of(GRPC)))
        edge.send(data(1, bytes(PATIENCE * LIMIT), last=False))
        await edge.settle()
        assert 1 not in edge.answers
        edge.send(data(1, b"!", last=False))
        assert (await edge.answer(1)).blocks[0]["grpc-status"] == "8"
        await edge.settle()
        assert edge.got(RESET) == [(RESET, 0, 1, bytes(4))]
        # What still comes of it is not a new request: neither more of it nor its trailers.
        edge.send(data(1, b"more", last=False))
        edge.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, block_of([("x-sum", "1")])))
        edge.send(call(3))
        exchange = await desk.next()
        assert exchange.request_id is not None
        exchange.reply_grpc((b"3",))
        assert (await edge.answer(3)).body == framed(b"3")
        assert desk.exchanges.empty()


async def test_what_is_announced_beyond_all_patience_is_refused_at_once(folder: Path) -> None:
    async with served(folder) as (desk, edge):
        for stream, size in ((1, PATIENCE * LIMIT), (3, PATIENCE * LIMIT + 1)):
            fields = [*REST, ("content-length", str(size))]
            edge.send(frame(HEADERS, END_HEADERS, stream, block_of(fields)))
        assert (await edge.answer(3)).blocks[0][":status"] == "413"
        await edge.settle()
        assert edge.got(RESET) == [(RESET, 0, 3, bytes(4))]
        assert 1 not in edge.answers
        assert desk.exchanges.empty()


async def test_an_early_refusal_is_sent_whole_before_the_reset(folder: Path) -> None:
    async with served(folder, setting(INITIAL_WINDOW, 10)) as (_, edge):
        edge.send(frame(HEADERS, END_HEADERS, 1, block_of(REST)))
        edge.send(data(1, bytes(PATIENCE * LIMIT + 1), last=False))
        await edge.settle()
        assert len(edge.answers[1].body) == 10
        assert not edge.got(RESET)
        edge.send(window(1, 1000))
        answer = await edge.answer(1)
        assert len(answer.body) == int(answer.blocks[0]["content-length"])
        await edge.settle()
        assert edge.got(RESET) == [(RESET, 0, 1, bytes(4))]


async def test_a_refusal_of_what_has_ended_needs_no_reset(folder: Path) -> None:
    async with served(folder) as (_, edge):
        edge.send(call(1, bytes(LIMIT + 1)))
        assert (await edge.answer(1)).blocks[0]["grpc-status"] == "8"
        await edge.settle()
        assert not edge.got(RESET)


async def test_a_header_block_in_many_frames_has_a_bound(folder: Path) -> None:
    name = b"\0\x05x-big\x7f\x81\x0f"  # a literal field with a value of 2048 bytes
    field = name + b"v" * 2048
    async with served(folder) as (desk, edge):
        edge.send(
            frame(HEADERS, 0, 1, block_of(GRPC)),
            *(frame(CONTINUATION, 0, 1, field) for _ in range(30)),
            frame(CONTINUATION, END_HEADERS, 1, field),
            data(1, b""),
        )
        exchange = await desk.next()
        assert exchange.headers[b"x-big"] == b"v" * 2048
        edge.send(
            frame(HEADERS, 0, 3, block_of(GRPC)),
            *(frame(CONTINUATION, 0, 3, field) for _ in range(70)),
        )
        await edge.until(lambda: bool(edge.got(GOAWAY)))
        await edge.until(lambda: edge.closed)


@pytest.mark.parametrize(
    "garbage",
    [
        frame(HEADERS, END_HEADERS, 9, b"\xbe"),
        frame(HEADERS, END_HEADERS, 9, b"\x00\x7f"),
        frame(HEADERS, END_HEADERS | PADDED, 9),
        frame(CONTINUATION, END_HEADERS, 9, b"\x82"),
        frame(SETTINGS, 0, 0, b"12345"),
        frame(DATA, PADDED, 1, b"\x09few"),
        b"\xff" * 100,
        b"GET / HTTP/1.1\r\nhost: edge\r\n\r\n",
    ],
)
@pytest.mark.parametrize("at_once", [False, True])
async def test_garbage_ends_its_connection_and_no_other(
    folder: Path, garbage: bytes, at_once: bool
) -> None:
    async with served(folder) as (desk, other), contextlib.AsyncExitStack() as stack:
        other.send(call(1))
        good = await desk.next()
        edge = Edge()
        await edge.connect(desk.path)
        stack.callback(edge.close)
        half = frame(HEADERS, END_HEADERS, 1, block_of(GRPC))
        if at_once:
            edge.send(half + call(5) + garbage + call(7))
        else:
            edge.send(half + call(5))
            await edge.settle()
            edge.send(garbage)
        pending = await desk.next()
        await edge.until(lambda: bool(edge.got(GOAWAY)))
        await edge.until(lambda: edge.closed)
        assert edge.controls[0][:3] == (SETTINGS, 0, 0)
        assert len(edge.got(GOAWAY)) == 1
        await until(lambda: pending in desk.gone)
        assert good not in desk.gone
        good.reply_grpc((b"fine",))
        assert (await other.answer(1)).body == framed(b"fine")
        assert desk.exchanges.empty()


async def test_63_mib_arrive_whole(folder: Path) -> None:
    message = os.urandom(2**20) * 63
    async with served(folder, setting(INITIAL_WINDOW, 2**28), window(0, 2**28)) as (desk, edge):
        edge.send(call(1))
        (await desk.next()).reply_grpc((message,))
        answer = await edge.answer(1)
        assert answer.body == framed(message)
        assert answer.blocks[-1] == {"grpc-status": "0"}


async def test_63_mib_arrive_whole_through_small_windows(folder: Path) -> None:
    message = os.urandom(2**20) * 63
    whole = framed(message)
    async with served(folder) as (desk, edge):
        edge.send(call(1))
        (await desk.next()).reply_grpc((message,))
        got, given = edge.answers[1], 65535
        while given < len(whole):
            await edge.until(lambda: sum(map(len, got.pieces)) == given)  # noqa: B023
            more = 2**21
            edge.send(window(0, more), window(1, more))
            given = min(given + more, len(whole))
        assert (await edge.answer(1)).body == whole
