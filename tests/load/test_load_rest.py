"""The REST load generator against servers that answer in every way of HTTP/1.1."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from tidegate.load.generator import rest_load

Answer = Callable[["Request"], list[bytes]]


@dataclass
class Request:
    connection: int
    number: int
    """Of this request on its connection, from 1."""
    head: str
    body: bytes


@contextlib.asynccontextmanager
async def serving(answer: Answer) -> AsyncIterator[str]:
    """Write what ``answer`` returns, piece by piece; close when the last piece is empty."""
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        mine, number = connections, 0
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = int(head.partition("content-length: ")[2].split("\r\n")[0])
                number += 1
                request = Request(mine, number, head, await reader.readexactly(length))
                pieces = answer(request)
                for piece in pieces:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0)
                if not pieces or not pieces[-1]:
                    break
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


def reply(body: bytes, status: str = "200 OK", extra: str = "") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{extra}\r\n"
    return head.encode() + body


async def test_kept_connections() -> None:
    def answer(request: Request) -> list[bytes]:
        assert request.head.startswith("POST /v2/x HTTP/1.1\r\n")
        assert "content-type: text/plain\r\n" in request.head
        return [reply(request.body, extra=f"Date: {request.number}\r\n")]

    async with serving(answer) as target:
        result = await rest_load(
            target, "/v2/x", [b"a", b"bc", b""], connections=3, calls=300,
            headers={"Content-Type": "text/plain"}, check=lambda body: body in (b"a", b"bc", b""),
        )  # fmt: skip
    assert result.codes == Counter({"200": 300})
    assert (result.ok, result.connections, len(result.latencies_ms)) == (300, 3, 300)


async def test_statuses_and_wrong_bodies() -> None:
    def answer(request: Request) -> list[bytes]:
        if request.number % 3 == 0:
            return [reply(b'{"error":"busy"}', "503 Service Unavailable")]
        return [reply(b"good" if request.number % 3 == 1 else b"bad")]

    async with serving(answer) as target:
        result = await rest_load(
            target, "/", b"", connections=1, calls=30, check=lambda body: body == b"good"
        )
    assert result.codes == Counter({"200": 10, "503": 10, "WRONG": 10})
    assert (result.ok, result.failed) == (10, 20)
    assert ("503", '{"error":"busy"}') in {(f.code, f.message) for f in result.failures}


async def test_connection_close_costs_no_call() -> None:
    def answer(request: Request) -> list[bytes]:
        if request.number == 5:
            return [reply(b"x", extra="Connection: close\r\n"), b""]
        return [reply(b"x")]

    async with serving(answer) as target:
        result = await rest_load(target, "/", b"", connections=2, calls=100)
    assert result.codes == Counter({"200": 100})
    assert result.connections >= 20


async def test_ways_to_send_a_body() -> None:
    chunks = [
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r",
        b"\nabc\r\n4;x=y\r\nde",
        b"fg\r\n0\r\ntrailer: 1\r\n",
        b"\r\n",
    ]
    plain = [bytes((byte,)) for byte in reply(b"abcdefg")]
    interim = [b"HTTP/1.1 100 Continue\r\n\r\n" + reply(b"abcdefg")]
    to_the_end = [b"HTTP/1.1 200 OK\r\n\r\nabcd", b"efg", b""]
    old = [b"HTTP/1.0 200 OK\r\ncontent-length: 7\r\n\r\nabcdefg", b""]
    ways = [chunks, plain, interim, to_the_end, old]
    count = 0

    def answer(_: Request) -> list[bytes]:
        nonlocal count
        count += 1
        return ways[count % len(ways)]

    async with serving(answer) as target:
        result = await rest_load(
            target, "/", b"", connections=1, calls=25, check=lambda body: body == b"abcdefg"
        )
    assert result.codes == Counter({"200": 25})


async def test_no_body_at_all() -> None:
    def answer(_: Request) -> list[bytes]:
        return [b"HTTP/1.1 204 No Content\r\n\r\n"]

    async with serving(answer) as target:
        result = await rest_load(target, "/", b"", connections=1, calls=5, method="PUT")
    assert result.codes == Counter({"204": 5})


async def test_lost_connections() -> None:
    def answer(request: Request) -> list[bytes]:
        if request.number == 4:
            return []
        if request.connection == 1 and request.number == 2:
            return [reply(b"long")[:-1], b""]
        return [reply(b"long")]

    async with serving(answer) as target:
        result = await rest_load(target, "/", b"", connections=1, calls=18)
    # The first connection ends in its second answer, the others without their fourth.
    assert result.codes == Counter({"200": 13, "DISCONNECTED": 5})


async def test_nobody_listens_and_nobody_answers() -> None:
    async with serving(lambda _: [b"HTTP/1.1 200 OK\r\n"]) as target:
        result = await rest_load(target, "/", b"", connections=2, calls=4, timeout=0.2)
        assert result.codes == Counter({"DEADLINE_EXCEEDED": 4})
    result = await rest_load(target, "/", b"", connections=1, calls=3)
    assert result.codes == Counter({"UNAVAILABLE": 3})
