from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from tests.replica.edge_client import GRPC, EdgeClient, encode, frame
from tests.replica.waiting import WAIT
from tidegate.errors import InferenceFailed, InvalidInput, QueueFull
from tidegate.replica.exchange import Exchange
from tidegate.replica.http import Server

LIMIT = 10_000


class Desk:
    """Where exchanges arrive, for the test to answer."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.exchanges: asyncio.Queue[Exchange] = asyncio.Queue()
        self.gone: list[Exchange] = []
        self.someone_left = asyncio.Event()

    def handle(self, exchange: Exchange) -> None:
        exchange.on_gone = lambda: self._leave(exchange)
        self.exchanges.put_nowait(exchange)

    def _leave(self, exchange: Exchange) -> None:
        self.gone.append(exchange)
        self.someone_left.set()

    async def next(self) -> Exchange:
        return await asyncio.wait_for(self.exchanges.get(), WAIT)


@contextlib.asynccontextmanager
async def listening(folder: Path) -> AsyncIterator[tuple[Desk, Server]]:
    desk = Desk(folder / "s")
    async with Server(desk.path, desk.handle, LIMIT) as server:
        yield desk, server


async def test_a_grpc_success_is_one_chunk_and_a_trailer(folder: Path) -> None:
    async with listening(folder) as (desk, _), EdgeClient(desk.path) as client:
        await client.send("POST", "/a.B/C?x=1", GRPC, frame(b"hello"))
        exchange = await desk.next()
        assert (exchange.method, exchange.path, exchange.grpc) == (b"POST", "/a.B/C", True)
        assert exchange.body == frame(b"hello")
        assert exchange.headers[b"te"] == b"trailers"
        exchange.reply_grpc((b"world",))
        reply = await client.receive()
    assert reply.status == 200
    assert reply.headers == {
        "content-type": "application/grpc",
        "transfer-encoding": "chunked",
    }
    assert reply.message == b"world"
    assert reply.trailers == {"grpc-status": "0"}


@pytest.mark.parametrize("size", [0, 1, 2**16 - 1, 2**16, 3 * 2**20])
async def test_a_message_of_any_size_arrives_whole(folder: Path, size: int) -> None:
    message = os.urandom(size)
    async with listening(folder) as (desk, _), EdgeClient(desk.path) as client:
        for _ in range(2):
            await client.send("POST", "/a.B/C", GRPC, frame(b""))
            (await desk.next()).reply_grpc((message,))
            assert (await client.receive()).message == message


async def test_a_grpc_error_is_a_head_alone(folder: Path) -> None:
    words = "100 % wrong: žluť\nand more"
    async with listening(folder) as (desk, _), EdgeClient(desk.path) as client:
        await client.send("POST", "/a.B/C", GRPC, frame(b""))
        (await desk.next()).fail(InvalidInput(words))
        reply = await client.receive()
        assert reply.status == 200
        assert reply.headers["content-length"] == "0"
        assert reply.grpc_status == 3
        assert reply.headers["grpc-message"].isascii()
        assert "\n" not in reply.headers["grpc-message"]
        assert reply.grpc_message == words
        assert client.nothing_more()


async def test_a_rest_answer_is_made_of_parts(folder: Path) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    async with listening(folder) as (desk, _), EdgeClient(desk.path) as client:
        await client.send("POST", "/v2/models/m/infer", {}, b"{}")
        (await desk.next()).reply(
            [b"head", array.data, bytearray(b"tail")],
            content_type=b"application/octet-stream",
            headers=[(b"X-Extra", b"7")],
        )
        reply = await client.receive()
    assert reply.body == b"head" + array.tobytes() + b"tail"
    assert reply.headers["content-type"] == "application/octet-stream"
    assert reply.headers["x-extra"] == "7"


@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [
        (InvalidInput("“wrong”"), 400, None),
        (QueueFull("later", retry_after=3.4), 429, "3"),
        (QueueFull("soon", retry_after=0.01), 429, "1"),
        (InferenceFailed("no"), 500, None),
        (ZeroDivisionError("not ours"), 500, None),
        (KeyError(), 500, None),
    ],
    ids=repr,
)
async def test_a_rest_error_is_json(
    folder: Path, error: Exception, status: int, retry_after: str | None
) -> None:
    async with listening(folder) as (desk, _), EdgeClient(desk.path) as client:
        await client.send("GET", "/v2/models/m")
        (await desk.next()).fail(error)
        reply = await client.receive()
    assert reply.status == status
    assert reply.error == (str(error) or "KeyError")
    assert reply.headers.get("retry-after") == retry_after


@pytest.mark.parametrize("status", [200, 404])
async def test_the_answer_to_head_has_no_body(folder: Path, status: int) -> None:
    async with listening(folder) as (desk, _), EdgeClient(desk.path) as client:
        await client.send("HEAD", "/v2/models/m/ready")
        (await desk.next()).reply([b"12345"], status=status)
        reply = await client.receive(head_only=True)
        assert reply.status == status
        assert reply.headers["content-length"] == "5"
        await client.send("GET", "/next")
        (await desk.next()).reply([b"next"])
        assert (await client.receive()).body == b"next"


async def test_requests_are_the_same_however_they_are_cut(folder: Path) -> None:
    chance = random.Random(5)
    body = bytes(range(256)) * 4
    requests = [
        encode("POST", "/with/length", GRPC, body),
        encode("POST", "/in/chunks", {"x-a": "b"}, [body[:1], body[1:700], body[700:]]),
        encode("GET", "/without/body", {}, None),
    ]
    async with listening(folder) as (desk, _), EdgeClient(desk.path) as client:
        for number in range(30):
            data = requests[number % 3]
            cuts = sorted(chance.sample(range(1, len(data)), min(number, len(data) - 1)))
            for start, stop in zip([0, *cuts], [*cuts, len(data)]):
                await client.write(data[start:stop])
                await asyncio.sleep(0)
            exchange = await desk.next()
            expected = [("/with/length", body), ("/in/chunks", body), ("/without/body", b"")]
            assert (exchange.path, exchange.body) == expected[number % 3]
            assert exchange.grpc is (number % 3 == 0)
            exchange.reply([b"%d" % number])
            assert (await client.receive()).body == b"%d" % number
            assert client.nothing_more()


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("grpc", [False, True])
async def test_beyond_the_limit_is_refused_and_the_connection_goes_on(
    folder: Path, grpc: bool, chunked: bool
) -> None:
    headers = GRPC if grpc else {}
    body = bytes(LIMIT + 1)
    async with listening(folder) as (desk, _), EdgeClient(desk.path) as client:
        parts = [body[start : start + 999] for start in range(0, len(body), 999)]
        await client.send("POST", "/too/large", headers, parts if chunked else body)
        reply = await client.receive()
        if grpc:
            assert reply.grpc_status == 8
            assert "limit of 10000 bytes" in reply.grpc_message
        else:
            assert reply.status == 413
            assert "limit of 10000 bytes" in reply.error
        await client.send("POST", "/just/fits", headers, body[:LIMIT])
        exchange = await desk.next()
        assert exchange.path == "/just/fits"
        assert len(exchange.body) == LIMIT
        exchange.reply([b"yes"])
        assert (await client.receive()).body == b"yes"
        assert desk.exchanges.empty()


async def test_what_is_announced_far_beyond_the_limit_is_refused_before_it_came(
    folder: Path,
) -> None:
    async with listening(folder) as (_, _), EdgeClient(folder / "s") as client:
        await client.write(b"POST / HTTP/1.1\r\nhost: m\r\ncontent-length: 99999\r\n\r\nfirst")
        assert (await client.receive()).status == 413


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"GET / SPDY/9\r\n\r\n",
        b"\x16\x03\x01\x02\x00" * 9,
    ],
)
async def test_garbage_ends_its_connection_alone(folder: Path, garbage: bytes) -> None:
    async with listening(folder) as (desk, _), EdgeClient(desk.path) as other:
        async with EdgeClient(desk.path) as client:
            await client.write(garbage)
            assert await client.closed() == b""
        await other.send("GET", "/")
        (await desk.next()).reply([b"well"])
        assert (await other.receive()).body == b"well"
        assert desk.exchanges.empty()


async def test_garbage_after_a_request_cancels_it_once(folder: Path) -> None:
    async with listening(folder) as (desk, _), EdgeClient(desk.path) as client:
        await client.send("GET", "/")
        exchange = await desk.next()
        await client.write(b"\x00\x00\x00\r\n\r\n")
        await asyncio.wait_for(desk.someone_left.wait(), WAIT)
        await client.closed()
        exchange.reply([b"nobody"])
        exchange.gone()
        assert desk.gone == [exchange]


@pytest.mark.parametrize("how", ["close", "abort"])
async def test_who_leaves_is_noticed_exactly_once(folder: Path, how: str) -> None:
    async with listening(folder) as (desk, server):
        async with EdgeClient(desk.path) as client:
            await client.send("POST", "/", {}, b"body")
            exchange = await desk.next()
            client.abort() if how == "abort" else client.close()
            await asyncio.wait_for(desk.someone_left.wait(), WAIT)
        exchange.reply([b"too late"])
        exchange.fail(InferenceFailed("too late"))
        exchange.reply_grpc((b"too late",))
        exchange.gone()
        assert desk.gone == [exchange]
        await server.drain(WAIT)


async def test_who_leaves_within_a_request_was_never_there(folder: Path) -> None:
    async with listening(folder) as (desk, server):
        async with EdgeClient(desk.path) as client:
            await client.write(b"POST / HTTP/1.1\r\nhost: m\r\ncontent-length: 99\r\n\r\nhalf")
        await server.drain(WAIT)
        assert desk.exchanges.empty()
        assert desk.gone == []


async def test_who_leaves_after_the_answer_is_not_gone(folder: Path) -> None:
    async with listening(folder) as (desk, server):
        async with EdgeClient(desk.path) as client:
            await client.send("GET", "/")
            (await desk.next()).reply([b"here"])
            await client.receive()
        await server.drain(WAIT)
        assert desk.gone == []


async def test_the_second_answer_does_nothing(folder: Path) -> None:
    async with listening(folder) as (desk, _), EdgeClient(desk.path) as client:
        await client.send("GET", "/")
        exchange = await desk.next()
        exchange.reply([b"first"])
        exchange.reply([b"second"])
        exchange.fail(InferenceFailed("third"))
        assert (await client.receive()).body == b"first"
        await client.send("GET", "/")
        following = await desk.next()
        exchange.reply([b"fourth"])
        following.reply([b"its own"])
        assert (await client.receive()).body == b"its own"
        assert client.nothing_more()


async def test_a_connection_is_kept_for_many_requests(folder: Path) -> None:
    async with listening(folder) as (desk, _), EdgeClient(desk.path) as client:
        for number in range(200):
            if number % 2:
                await client.send("POST", f"/grpc/{number}", GRPC, frame(b"%d" % number))
                (await desk.next()).reply_grpc((b"%d" % number,))
                reply = await client.receive()
                assert reply.message == b"%d" % number
            else:
                await client.send("POST", f"/rest/{number}", {}, b"%d" % number)
                exchange = await desk.next()
                assert exchange.path == f"/rest/{number}"
                exchange.reply([exchange.body])
                assert (await client.receive()).body == b"%d" % number


async def test_drain_serves_on_until_the_connections_are_closed(folder: Path) -> None:
    async with listening(folder) as (desk, server):
        async with EdgeClient(desk.path) as one, EdgeClient(desk.path) as two:
            for client in (one, two):
                await client.send("GET", "/")
                (await desk.next()).reply([b"x"])
                await client.receive()
            draining = asyncio.create_task(server.drain(WAIT))
            await two.send("GET", "/late")
            (await desk.next()).reply([b"still here"])
            assert (await two.receive()).body == b"still here"
            one.close()
            await two.send("GET", "/later")
            (await desk.next()).reply([b"and now"])
            assert (await two.receive()).body == b"and now"
            assert not draining.done()
        await asyncio.wait_for(draining, WAIT)


async def test_drain_gives_up_after_its_time(folder: Path) -> None:
    async with listening(folder) as (desk, server), EdgeClient(desk.path) as client:
        await client.send("GET", "/")
        exchange = await desk.next()
        await server.drain(0.02)
        exchange.reply([b"x"])
        assert (await client.receive()).body == b"x"


async def test_the_end_closes_what_is_open(folder: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        async with listening(folder) as (desk, _):
            client = await stack.enter_async_context(EdgeClient(desk.path))
            await client.send("GET", "/")
            exchange = await desk.next()
        assert await client.closed() == b""
        assert desk.gone == [exchange]
        assert not desk.path.exists()


async def test_the_socket_of_a_dead_process_is_replaced(folder: Path) -> None:
    path = folder / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with listening(folder) as (desk, _), EdgeClient(path) as client:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        await client.send("GET", "/")
        (await desk.next()).reply([b"new"])
        assert (await client.receive()).body == b"new"
