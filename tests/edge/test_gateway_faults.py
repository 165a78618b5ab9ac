"""Servers that are not what they were declared to be: a clear answer, and nothing hangs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TypeAlias

import grpc
import pytest

from tests.edge.gateway import GatewayEdge, running_gateway
from tests.edge.harness import message, string
from tidegate.edge.pools import Protocol, Server
from tidegate.protocols import open_inference, seldon, tensorflow_serving

Behave: TypeAlias = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
CALLS: dict[Protocol, tuple[str, bytes]] = {
    "tidegate": (open_inference.MODEL_INFER, message("m")),
    "open-inference": (open_inference.MODEL_INFER, message("m")),
    "tensorflow-serving": (tensorflow_serving.PREDICT, string(1, string(1, "m"))),
}
PREDICT = "/seldon/ns/m/api/v1.0/predictions"


@pytest.fixture
async def gateway(run_dir: Path) -> AsyncIterator[GatewayEdge]:
    async with running_gateway(run_dir) as running:
        yield running


@contextlib.asynccontextmanager
async def stranger(behave: Behave) -> AsyncIterator[str]:
    """A server that does what it wants with a connection; yields its address."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await behave(reader, writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    yield f"{host}:{port}"
    server.close()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def old_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """An HTTP/1.1 server that is asked in HTTP/2."""
    await reader.read(1000)
    writer.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
    await writer.drain()


async def garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while await reader.read(1000):
        writer.write(bytes(range(256)) * 4)
        await writer.drain()


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Accepts, and never answers."""
    while await reader.read(65536):
        pass


async def mute_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Begins an answer, and resets the connection in the middle."""
    await reader.read(1000)
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nhalf")
    await writer.drain()
    writer.transport.abort()


async def outcome(gateway: GatewayEdge) -> tuple[str, str, int, str]:
    """What Seldon's clients get, over gRPC and REST."""
    async with asyncio.timeout(30):
        code, words = await gateway.failure(b"", method=seldon.PREDICT, seldon="m")
        answer = await gateway.rest("POST", PREDICT, b"{}")
    return code, words, answer.status, answer.json["error"]


@pytest.mark.parametrize("behave", [old_http, garbage])
async def test_a_server_of_another_protocol_is_unavailable(
    gateway: GatewayEdge, behave: Behave
) -> None:
    async with stranger(behave) as address:
        for protocol, (method, sent) in CALLS.items():
            await gateway.model("m", Server(address, protocol, rest=address))
            await gateway.publish()
            words = "no endpoint of model m can answer now; try again"  # it never becomes ready
            assert await gateway.failure(sent, method=method) == ("UNAVAILABLE", words)
        await gateway.model("m", Server(address, "seldon", rest=address))
        await gateway.publish()
        async with asyncio.timeout(30):
            code, words = await gateway.failure(b"", method=seldon.PREDICT, seldon="m")
        assert code == "UNAVAILABLE"
        assert words.startswith("model m ")
        if behave is garbage:
            async with asyncio.timeout(30):
                answer = await gateway.rest("POST", PREDICT, b"{}")
            assert answer.status == 503
            assert "model m" in answer.json["error"]


async def test_a_grpc_server_where_rest_was_declared_is_unavailable(gateway: GatewayEdge) -> None:
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    address = f"127.0.0.1:{port}"
    await gateway.model("m", Server(address, "seldon", rest=address))
    await gateway.publish()
    async with asyncio.timeout(30):
        answer = await gateway.rest("POST", PREDICT, b"{}")
    assert answer.status == 503
    assert "model m" in answer.json["error"]
    await server.stop(0)


async def test_the_others_answer_for_one_that_is_of_another_protocol(
    gateway: GatewayEdge,
) -> None:
    async with stranger(garbage) as address:
        good = await gateway.server("a", "seldon")
        await gateway.model("m", good, Server(address, "seldon", rest=address))
        await gateway.publish()
        for _ in range(10):
            seen = await gateway.call(b"", method=seldon.PREDICT, seldon="m")
            assert seen["replica"] == "a"
            assert (await gateway.rest("POST", PREDICT, b"{}")).json["replica"] == "a"


async def test_a_server_that_accepts_and_never_answers(gateway: GatewayEdge) -> None:
    async with stranger(silent) as address:
        await gateway.model("m", Server(address, "seldon", rest=address), timeout=0.5)
        await gateway.publish()
        words = "no answer of model m in the time that its caller, or the gateway, gave"
        assert await outcome(gateway) == ("DEADLINE_EXCEEDED", words, 504, words)


async def test_a_reset_in_the_middle_of_an_answer_reaches_the_caller(gateway: GatewayEdge) -> None:
    async with stranger(mute_http) as address:
        await gateway.model("m", Server(address, "seldon", rest=address))
        await gateway.publish()
        async with asyncio.timeout(30):
            with pytest.raises(ConnectionError):
                await gateway.rest("POST", PREDICT, b"{}")
