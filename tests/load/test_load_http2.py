"""The gRPC load generator against a server that does the uncommon things of HTTP/2."""

from __future__ import annotations

import asyncio
import struct
from collections import Counter

import pytest

from tests.load import scripted_h2 as h2
from tests.load.scripted_h2 import Request, scripted
from tidegate.load import http2
from tidegate.load.driver import Result
from tidegate.load.generator import grpc_load
from tidegate.load.http2 import frame


async def load(
    server: h2.ScriptedServer, calls: int = 10, connections: int = 1, in_flight: int = 2
) -> Result:
    return await grpc_load(
        server.target, "/s/m", b"abc", connections=connections, in_flight=in_flight, calls=calls,
        timeout=60, check=lambda message: message == b"abc",
    )  # fmt: skip


async def test_what_is_sent() -> None:
    async def script(request: Request) -> None:
        assert request.headers == {
            ":method": "POST",
            ":scheme": "http",
            ":path": "/s/m",
            ":authority": server.target,
            "te": "trailers",
            "content-type": "application/grpc",
            "user-agent": "tidegate-bench",
            "grpc-timeout": "5S",
        }
        assert request.body == h2.message(b"abc")
        request.answer()

    async with scripted(script) as server:
        result = await grpc_load(
            server.target, "/s/m", b"abc", connections=2, in_flight=3, calls=100,
            headers={"grpc-timeout": "5S"},
        )  # fmt: skip
        assert result.codes == Counter(OK=100)
        assert sum(c.requests for c in server.connections) == 100
        for connection in server.connections:
            blocks = [f[3] for f in connection.frames if f[0] == h2.HEADERS]
            # From the second on, all is in the peer's table: one byte a field.
            assert {len(block) for block in blocks[1:]} == {8}


@pytest.mark.parametrize("size", [0, 100])
async def test_a_peer_without_room_for_a_table(size: int) -> None:
    settings = struct.pack(">HI", 1, size)
    async with scripted(Request.answer, settings) as server:
        assert (await load(server)).codes == Counter(OK=10)


async def test_messages_take_turns() -> None:
    seen: list[bytes] = []

    def script(request: Request) -> None:
        seen.append(request.body[5:])
        request.answer()

    async with scripted(script) as server:
        await grpc_load(
            server.target, "/s/m", [b"a", b"bb", b""], connections=1, in_flight=1, calls=7
        )
    assert seen == [b"a", b"bb", b"", b"a", b"bb", b"", b"a"]


async def test_a_wrong_answer_is_no_success() -> None:
    def script(request: Request) -> None:
        right = request.connection.requests % 2
        request.send(h2.answer(request.stream, b"abc" if right else b"abd"))

    async with scripted(script) as server:
        result = await load(server)
    assert result.codes == Counter(OK=5, WRONG=5)
    assert (result.ok, result.failed, len(result.latencies_ms)) == (5, 5, 5)
    assert "abd" in result.failures[0].message


@pytest.mark.parametrize(
    ("error", "code"),
    [(0x2, "INTERNAL"), (0x8, "CANCELLED"), (0xB, "RESOURCE_EXHAUSTED"), (0x1, "INTERNAL")],
)
async def test_reset_streams(error: int, code: str) -> None:
    def script(request: Request) -> None:
        request.send(frame(h2.RST_STREAM, 0, request.stream, struct.pack(">I", error)))

    async with scripted(script) as server:
        assert (await load(server)).codes == Counter({code: 10})
        assert len(server.connections) == 1


async def test_a_refused_stream_is_sent_again_once() -> None:
    refusal = struct.pack(">I", 7)

    def script(request: Request) -> None:
        if request.connection.requests % 2:
            request.send(frame(h2.RST_STREAM, 0, request.stream, refusal))
        else:
            request.answer()

    async with scripted(script) as server:
        result = await load(server, in_flight=1)
        assert result.codes == Counter(OK=10)
        assert result.refused == 10

    def refuse(request: Request) -> None:
        request.send(frame(h2.RST_STREAM, 0, request.stream, refusal))

    async with scripted(refuse) as server:
        result = await load(server)
        assert result.codes == Counter(UNAVAILABLE=10)
        assert sum(c.requests for c in server.connections) == 20


async def test_goaway_hands_back_what_was_not_processed() -> None:
    held: list[Request] = []

    def script(request: Request) -> None:
        if request.connection.number > 0 or request.connection.requests <= 4:
            request.answer()
            return
        held.append(request)
        if len(held) == 4:
            # Two of the four were taken; those are answered after the announcement.
            last = sorted(r.stream for r in held)[1]
            request.send(frame(h2.GOAWAY, 0, 0, struct.pack(">II", last, 0)))
            for taken in held:
                if taken.stream <= last:
                    taken.answer()

    async with scripted(script) as server:
        result = await load(server, calls=50, in_flight=4)
        assert result.codes == Counter(OK=50)
        assert result.refused == 2
        assert result.connections == 2
        assert server.connections[0].requests == 8
        assert server.connections[1].requests == 44


async def test_graceful_goaway_in_two_steps() -> None:
    async def script(request: Request) -> None:
        if request.connection.requests == 5 and request.connection.number < 3:
            request.send(frame(h2.GOAWAY, 0, 0, struct.pack(">II", 2**31 - 1, 0)))
            request.send(frame(h2.PING, 0, 0, b"12345678"))
            request.send(frame(h2.GOAWAY, 0, 0, struct.pack(">II", request.stream + 100, 0)))
        request.answer()

    async with scripted(script) as server:
        result = await load(server, calls=100, in_flight=3)
        assert (result.codes, result.refused) == (Counter(OK=100), 0)
        assert len(server.connections) == 4
        acks = [f for f in server.connections[0].frames if f[0] == h2.PING]
        assert acks == [(h2.PING, h2.ACK, 0, b"12345678")]


async def test_a_lost_connection_fails_what_was_under_way() -> None:
    def script(request: Request) -> None:
        if request.connection.number == 0 and request.connection.requests == 10:
            request.connection.writer.close()
        elif request.connection.number > 0 or request.connection.requests < 8:
            request.answer()

    async with scripted(script) as server:
        result = await load(server, calls=100, in_flight=3)
    assert result.codes == Counter(OK=97, UNAVAILABLE=3)
    assert result.connections == 2
    assert "connection lost" in result.failures[0].message


async def test_uncommon_frames() -> None:
    opening = b"\x01" + bytes(5) + h2.OPENING + b"\0"

    def script(request: Request) -> None:
        stream = request.stream
        body = h2.message(request.body[5:])
        interim = h2.block((":status", "103"))
        request.send(frame(99, 0, 0, b"unknown"))
        request.send(frame(h2.HEADERS, h2.END_HEADERS, stream, interim))
        flags = h2.END_HEADERS | h2.PADDED | h2.WITH_PRIORITY
        request.send(frame(h2.HEADERS, flags, stream, opening))
        request.send(frame(h2.DATA, h2.PADDED, stream, b"\x03" + body[:2] + b"\0\0\0"))
        request.send(frame(h2.DATA, 0, stream, body[2:6]))
        request.send(frame(h2.DATA, 0, stream, b""))
        request.send(frame(h2.DATA, 0, stream, body[6:]))
        request.send(frame(h2.HEADERS, h2.END_STREAM, stream, h2.OK[:3]))
        request.send(frame(h2.CONTINUATION, 0, stream, h2.OK[3:5]))
        request.send(frame(h2.CONTINUATION, h2.END_HEADERS, stream, h2.OK[5:]))

    async with scripted(script) as server:
        assert (await load(server)).codes == Counter(OK=10)


async def test_bytes_may_come_one_by_one() -> None:
    async def script(request: Request) -> None:
        for byte in h2.answer(request.stream, request.body[5:]):
            request.send(bytes((byte,)))
            await asyncio.sleep(0)

    async with scripted(script) as server:
        assert (await load(server, in_flight=1)).codes == Counter(OK=10)


BAD_ANSWERS = {
    "no status": (h2.OPENING, h2.message(b"abc"), h2.block(("x", "y")), "UNKNOWN"),
    "no message": (h2.OPENING, b"", h2.OK, "INTERNAL"),
    "cut message": (h2.OPENING, h2.message(b"abc")[:-1], h2.OK, "INTERNAL"),
    "compressed": (h2.OPENING, b"\x01" + h2.message(b"abc")[1:], h2.OK, "INTERNAL"),
    "unknown code": (h2.OPENING, b"", h2.block(("grpc-status", "99")), "UNKNOWN"),
    "not gRPC": (
        h2.block((":status", "200"), ("content-type", "text/html")), b"x", h2.OK, "UNKNOWN",
    ),
    "HTTP 503": (h2.block((":status", "503")), b"down", h2.block(("a", "b")), "UNAVAILABLE"),
    "HTTP 404": (h2.block((":status", "404")), b"", h2.block(("a", "b")), "UNIMPLEMENTED"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_ANSWERS)
async def test_what_is_no_success(name: str) -> None:
    opening, body, trailers, code = BAD_ANSWERS[name]

    def script(request: Request) -> None:
        request.send(frame(h2.HEADERS, h2.END_HEADERS, request.stream, opening))
        request.send(frame(h2.DATA, 0, request.stream, body))
        end = h2.END_HEADERS | h2.END_STREAM
        request.send(frame(h2.HEADERS, end, request.stream, trailers))

    async with scripted(script) as server:
        assert (await load(server)).codes == Counter({code: 10})


async def test_few_concurrent_streams() -> None:
    most = 0

    async def script(request: Request) -> None:
        nonlocal most
        opened = sum(1 for f in request.connection.frames if f[0] == h2.HEADERS)
        most = max(most, opened - request.connection.requests + 1)
        request.answer()

    async with scripted(script, struct.pack(">HI", 3, 2)) as server:
        assert (await load(server, calls=60, in_flight=8)).codes == Counter(OK=60)
    assert most <= 2


async def test_small_windows() -> None:
    content = bytes(range(256)) * 1000
    room = 40_000

    def script(request: Request) -> None:
        assert request.body == h2.message(content)
        for at in range(0, len(request.body), 16384):
            part = request.body[at : at + 16384]
            if at == 0:
                request.send(frame(h2.HEADERS, h2.END_HEADERS, request.stream, h2.OPENING))
            request.send(frame(h2.DATA, 0, request.stream, part))
        request.send(frame(h2.HEADERS, h2.END_HEADERS | h2.END_STREAM, request.stream, h2.OK))

    async with scripted(script, struct.pack(">HI", 4, room)) as server:
        pump = asyncio.ensure_future(_give_windows(server, room))
        result = await grpc_load(
            server.target, "/s/m", content, connections=2, in_flight=3, calls=30,
            check=lambda message: message == content,
        )  # fmt: skip
        pump.cancel()
    assert result.codes == Counter(OK=30)


async def _give_windows(server: h2.ScriptedServer, room: int) -> None:
    """Open each connection's and stream's window by little, again and again."""
    while True:
        await asyncio.sleep(0.001)
        for connection in server.connections:
            streams = {f[2] for f in connection.frames if f[0] == h2.HEADERS}
            for stream in {0} | streams:
                increment = struct.pack(">I", 7_001)
                connection.writer.write(frame(h2.WINDOW_UPDATE, 0, stream, increment))


async def test_streams_run_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http2, "LAST_STREAM_USED", 41)
    async with scripted(Request.answer) as server:
        result = await load(server, calls=200)
        assert result.codes == Counter(OK=200)
        assert max(f[2] for c in server.connections for f in c.frames) < 60
        assert len(server.connections) >= 8


async def test_calls_that_are_not_answered_expire() -> None:
    def script(request: Request) -> None:
        if request.connection.requests % 5:
            request.answer()

    async with scripted(script) as server:
        result = await grpc_load(
            server.target, "/s/m", b"", connections=1, in_flight=2, calls=10, timeout=1.0
        )
        assert result.codes == Counter(OK=8, DEADLINE_EXCEEDED=2)
        resets = [f for f in server.connections[0].frames if f[0] == h2.RST_STREAM]
        assert len(resets) == 2


async def test_a_server_that_hangs_up_at_once() -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    listener = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    async with listener:
        result = await grpc_load(
            f"127.0.0.1:{port}", "/s/m", b"", connections=1, in_flight=2, calls=6
        )
    assert result.codes == Counter(UNAVAILABLE=6)
    assert "cannot connect" in result.failures[0].message
