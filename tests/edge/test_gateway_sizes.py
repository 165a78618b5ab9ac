"""Large messages through a gateway: they pass, and its memory is bounded."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.edge.gateway import GatewayEdge, running_gateway
from tests.edge.harness import (
    INFER,
    MIB,
    Rest,
    call,
    channel,
    failure,
    message,
    rest,
    running_edge,
    until,
)
from tests.edge.test_limits import exactly, post
from tidegate.edge.pools import HeaderPool, Server
from tidegate.edge.settings import SMALL_MESSAGE_SIZE
from tidegate.replica.exchange import Exchange
from tidegate.replica.http2 import Http2Connection

REST = "/v2/models/m/infer"
SMALL = message("m", payload=SMALL_MESSAGE_SIZE - 1000)
LARGE = message("m", payload=30 * MIB)
BEGUN = (
    f"POST {INFER} HTTP/1.1\r\nhost: x\r\ncontent-type: application/grpc\r\n"
    f"content-length: {30 * MIB}\r\n\r\n"
).encode() + bytes(MIB)
CROWDED = (
    "RESOURCE_EXHAUSTED",
    "the message is larger than 4194304 bytes, and the gateway is reading as many of those as it "
    "has memory for; try again",
)


@contextlib.asynccontextmanager
async def serving(
    run_dir: Path, models: str = "m", servers: str = "ab", **settings: Any
) -> AsyncIterator[GatewayEdge]:
    """A gateway all of whose models are on all servers; of one alone it reads no messages."""
    async with running_gateway(run_dir, **settings) as gateway:
        for name in models:
            await gateway.model(name, *[await gateway.server(each) for each in servers])
        await gateway.publish()
        yield gateway


def memory(gateway: GatewayEdge) -> int:
    return psutil.Process(gateway.envoy.pid).memory_info().rss


async def most_memory(gateway: GatewayEdge, ended: asyncio.Future[Any]) -> int:
    """The most that Envoy takes until something has ended."""
    most = memory(gateway)
    while not (await asyncio.wait([ended], timeout=0.01))[0]:
        most = max(most, memory(gateway))
    return most


@pytest.mark.parametrize("models", ["m", "mn"])
async def test_messages_up_to_the_limit_pass(run_dir: Path, models: str) -> None:
    async with serving(run_dir, models, "a") as gateway:
        limit = gateway.settings.max_message_size
        full = exactly(limit)
        assert (await gateway.call(full))["size"] == limit + 5
        answer = await gateway.rest("POST", REST, bytes(limit))
        assert (answer.status, answer.json["size"]) == (200, limit)
        assert len(await gateway.call(x_do=f"big {200 * MIB}")) == 200 * MIB
        answer = await gateway.rest("POST", REST, b"{}", x_do=f"big {20 * MIB}")
        assert len(answer.body) == 20 * MIB


async def test_a_message_beyond_the_limit_is_refused_where_it_is_read(run_dir: Path) -> None:
    """Where it is not, the node refuses it."""
    async with serving(run_dir, "mn", "a") as gateway:
        limit = gateway.settings.max_message_size
        for size in (limit + 1, 70 * MIB):
            code, words = await gateway.failure(exactly(size))
            assert (code, str(limit) in words) == ("RESOURCE_EXHAUSTED", True)
        assert gateway.replicas["a"].requests == 0


@pytest.mark.parametrize("size", [10_000, 2 * MIB, 30 * MIB, 64 * MIB])
async def test_errors_reach_a_client_that_writes_before_it_reads(run_dir: Path, size: int) -> None:
    async with serving(run_dir, "mn") as gateway:
        for path, expected in (("/v2/models/absent/infer", 404), ("/v2/models/a%20b/infer", 400)):
            status, body = await asyncio.to_thread(post, gateway.port, path, size)
            assert (status, b"error" in body) == (expected, True)


async def test_many_messages_that_are_not_read_flow_through(run_dir: Path) -> None:
    """They are more than Envoy may hold, and all of them pass."""
    async with serving(run_dir, "m", heap_size=200 * MIB) as gateway:

        async def one() -> int:
            async with channel(gateway.port) as own:
                return int((await call(own, LARGE))["size"])

        calls = asyncio.gather(*(one() for _ in range(16)))
        most = await most_memory(gateway, calls)
        assert set(await calls) == {len(LARGE) + 5}
        assert most < 300 * MIB


async def test_of_many_messages_that_are_read_as_many_pass_as_there_is_memory_for(
    run_dir: Path,
) -> None:
    async with serving(run_dir, "mn", heap_size=512 * MIB) as gateway:
        assert gateway.settings.read_at_once == 4

        async def one() -> tuple[str, str]:
            async with channel(gateway.port) as own:
                try:
                    code, words = await failure(call(own, LARGE))
                except AssertionError:
                    return "OK", ""
                return code.name, words

        calls = asyncio.gather(*(one() for _ in range(16)))
        most = await most_memory(gateway, calls)
        results = await calls
        assert results.count(("OK", "")) >= 4
        assert set(results) <= {("OK", ""), CROWDED}
        assert most < 512 * MIB


async def test_a_sender_that_falls_silent_leaves_its_room(run_dir: Path) -> None:
    async with serving(run_dir, "mn", heap_size=128 * MIB, idle_timeout=0.5) as gateway:
        assert gateway.settings.read_at_once == 1
        sender = Rest(gateway.port)
        await sender.send(BEGUN)
        answer = await sender.receive()
        assert answer.headers["grpc-status"] == "4"
        assert (await gateway.call(LARGE))["size"] == len(LARGE) + 5
        await sender.close()
        # Not gRPC, so nobody reads it.
        assert (await gateway.rest("POST", INFER, b"{}")).status == 404


async def test_while_there_is_no_room_for_large_messages_small_ones_pass(run_dir: Path) -> None:
    async with serving(run_dir, "mn", heap_size=256 * MIB) as gateway:
        assert gateway.settings.read_at_once == 2
        senders = [Rest(gateway.port) for _ in range(2)]
        for sender in senders:
            await sender.send(BEGUN)

        async def crowded() -> bool:
            try:
                return await gateway.failure(LARGE) == CROWDED
            except AssertionError:
                return False

        await until(crowded)
        assert (await gateway.call(SMALL))["size"] == len(SMALL) + 5
        # What REST says stands in its path: such a body flows through.
        answer = await rest(gateway.port, "POST", REST, bytes(30 * MIB))
        assert (answer.status, answer.json["size"]) == (200, 30 * MIB)
        # Whoever goes away leaves room.
        for sender in senders:
            await sender.close()

        async def passes() -> bool:
            return not await crowded()

        await until(passes)
        assert (await gateway.call(LARGE))["size"] == len(LARGE) + 5


@pytest.mark.parametrize("models", ["m", "mn"])
async def test_what_is_not_large_is_kept_to_be_sent_again(run_dir: Path, models: str) -> None:
    async with serving(run_dir, models) as gateway:
        for name in "ab":
            for _ in range(6):  # whichever is asked first
                assert (await gateway.call(SMALL, x_do=f"only {name};close"))["replica"] != name
        before = sum(replica.requests for replica in gateway.replicas.values())
        code, words = await gateway.failure(LARGE, x_do="close")
        assert (code, words) == ("UNAVAILABLE", "model m broke off before it answered; try again")
        assert sum(replica.requests for replica in gateway.replicas.values()) == before + 1
        gateway.change(retry_size=40 * MIB)
        await gateway.publish()
        assert (await gateway.failure(LARGE, x_do="close"))[0] == "UNAVAILABLE"
        assert sum(replica.requests for replica in gateway.replicas.values()) == before + 3


async def test_messages_that_nobody_takes_do_not_hold_up_others(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They come over one connection, and one server takes no more of them than it must."""

    def leave(self: Http2Connection, exchange: Exchange, piece: bytes, *, ended: bool) -> None:
        if self._most != MIB:
            take(self, exchange, piece, ended=ended)

    take = Http2Connection._take_piece
    monkeypatch.setattr(Http2Connection, "_take_piece", leave)
    async with running_gateway(run_dir) as gateway:
        stuck = await gateway.pool("stuck", "stuck")
        gateway.replicas["stuck"].server.limit = MIB
        to_stuck = (HeaderPool("x-to", "stuck", stuck),)
        await gateway.model("m", await gateway.server("a"), headers=to_stuck)
        await gateway.publish()
        before = memory(gateway)
        stalled = [asyncio.ensure_future(gateway.call(LARGE, x_to="stuck")) for _ in range(20)]
        for _ in range(4):
            assert (await gateway.call(LARGE))["replica"] == "a"
            assert (await gateway.call())["replica"] == "a"
        assert not any(each.done() for each in stalled)
        # Each has its window, what is kept to send it again, and what is on its way.
        assert memory(gateway) - before < 20 * 8 * MIB
        for each in stalled:
            each.cancel()
        await asyncio.gather(*stalled, return_exceptions=True)


@contextlib.asynccontextmanager
async def slow_link(port: int, rate: float) -> AsyncIterator[int]:
    """Yield a port of which so many bytes per second go on to another one."""

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(2**15):
                await asyncio.sleep(len(data) / rate)
                writer.write(data)
                await writer.drain()
        writer.close()

    async def join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inside = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(carry(reader, inside[1]), carry(inside[0], writer))

    async with await asyncio.start_server(join, "127.0.0.1", 0, limit=2**16) as server:
        yield int(server.sockets[0].getsockname()[1])


@pytest.mark.parametrize("models", ["m", "mn"])
async def test_large_messages_over_a_slow_link_are_no_sign_of_a_dead_node(
    run_dir: Path, models: str
) -> None:
    """The gateway's pings stand behind them in the queue."""
    with tempfile.TemporaryDirectory(prefix="tg") as node_dir:
        async with running_edge(Path(node_dir)) as node:
            await node.serve(**dict.fromkeys(models, "a"))
            async with (
                slow_link(node.port, 20e6) as port,
                running_gateway(run_dir, patient=False) as gateway,
            ):
                for name in models:
                    await gateway.model(name, Server(f"127.0.0.1:{port}"))
                await gateway.publish()
                large = message("m", payload=8 * MIB)
                answers = await asyncio.gather(*(gateway.call(large) for _ in range(5)))
                assert {answer["size"] for answer in answers} == {len(large) + 5}


async def test_many_messages_of_one_model_flow_through_gateway_and_node(
    run_dir: Path,
) -> None:
    """They are more than either Envoy may hold."""
    with tempfile.TemporaryDirectory(prefix="tg") as node_dir:
        async with running_edge(Path(node_dir), heap_size=200 * MIB) as node:
            node.sole = "m"
            await node.serve(m="a")
            async with running_gateway(run_dir, heap_size=200 * MIB) as gateway:
                await gateway.model("m", Server(f"127.0.0.1:{node.port}"))
                await gateway.publish()

                async def one() -> int:
                    async with channel(gateway.port) as own:
                        return int((await call(own, LARGE))["size"])

                assert set(await asyncio.gather(*(one() for _ in range(16)))) == {len(LARGE) + 5}
