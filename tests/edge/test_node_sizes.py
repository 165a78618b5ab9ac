"""Large messages to a node of several models: its memory is bounded, and nobody is cut off."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.edge.gateway import running_gateway
from tests.edge.harness import (
    INFER,
    MIB,
    Edge,
    Rest,
    call,
    channel,
    failure,
    message,
    running_edge,
    until,
)
from tests.edge.test_gateway_sizes import BEGUN, LARGE, REST, SMALL
from tidegate.edge.pools import Server

CROWDED = (
    "RESOURCE_EXHAUSTED",
    "the message is larger than 4194304 bytes, and the node is reading as many of those as it has "
    "memory for; try again",
)
OK = ("OK", "")


@contextlib.asynccontextmanager
async def serving(run_dir: Path, **settings: Any) -> AsyncIterator[Edge]:
    async with running_edge(run_dir, **settings) as node:
        await node.serve(m="a b", n="c")
        yield node


@contextlib.asynccontextmanager
async def crowded(edge: Edge, number: int) -> AsyncIterator[list[Rest]]:
    """Let senders that go on slowly take all places that there are."""
    senders = [Rest(edge.port) for _ in range(number)]
    for sender in senders:
        await sender.send(BEGUN)
    await until(lambda: refused(edge))
    try:
        yield senders
    finally:
        for sender in senders:
            await sender.close()


async def refused(edge: Edge) -> bool:
    return await outcome(edge.port, LARGE) != OK


async def outcome(port: int, request: bytes) -> tuple[str, str]:
    async with channel(port) as own:
        try:
            code, words = await failure(call(own, request))
        except AssertionError:
            return OK
        return code.name, words


async def headers(edge: Edge) -> dict[str, str]:
    """What a replica is told, but for what is left of the time and the length."""
    answer = await edge.call(x_request_id="mine", x_forwarded_for="1.2.3.4")
    differing = ("grpc-timeout", "content-length")
    return {name: value for name, value in answer["headers"].items() if name not in differing}


def memory(edge: Edge) -> int:
    return psutil.Process(edge.envoy.pid).memory_info().rss


async def test_of_many_messages_as_many_pass_as_there_is_memory_for(run_dir: Path) -> None:
    async with serving(run_dir, heap_size=512 * MIB) as node:
        assert (node.settings.read_at_once, node.settings.kept_at_once) == (4, 1)
        calls = asyncio.gather(*(outcome(node.port, LARGE) for _ in range(16)))
        most = 0
        while not (await asyncio.wait([calls], timeout=0.01))[0]:
            most = max(most, memory(node))
        found = Counter(await calls)
        assert found[OK] >= 4
        assert found.keys() <= {OK, CROWDED}
        assert most < 512 * MIB


async def test_they_are_refused_in_words_through_a_gateway_too(run_dir: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="tg") as node_dir:
        async with (
            serving(Path(node_dir), heap_size=256 * MIB) as node,
            running_gateway(run_dir) as gateway,
        ):
            for name in "mn":
                await gateway.model(name, Server(f"127.0.0.1:{node.port}"))
            await gateway.publish()
            async with crowded(node, 2):
                assert await outcome(gateway.port, LARGE) == CROWDED
                assert await outcome(gateway.port, SMALL) == OK


async def test_while_there_is_no_room_small_messages_pass(run_dir: Path) -> None:
    async with serving(run_dir, heap_size=256 * MIB) as node:
        async with crowded(node, 2):
            assert await outcome(node.port, LARGE) == CROWDED
            answer = await node.call(SMALL, x_tidegate_key="k", x_tidegate_aside_key="lie")
            assert answer["size"] == len(SMALL) + 5
            headers = answer["headers"]
            assert (headers["x-tidegate-cluster"], headers["x-tidegate-key"]) == ("model/m", "k")
            assert "x-tidegate-aside-key" not in headers
            # What REST says stands in its path: such a body flows through.
            answer = await node.rest("POST", REST, bytes(30 * MIB))
            assert (answer.status, answer.json["size"]) == (200, 30 * MIB)

        # Whoever goes away leaves room.
        async def passes() -> bool:
            return not await refused(node)

        await until(passes)


async def test_the_rest_of_a_call_is_the_same_when_there_is_no_room(run_dir: Path) -> None:
    async with serving(run_dir, heap_size=128 * MIB) as node:
        told = await headers(node)
        async with crowded(node, 1):
            assert await headers(node) == told
            code, words = await node.failure(SMALL, x_do="grpc 9 no")
            assert (code, words) == ("FAILED_PRECONDITION", "no")
            assert (await node.failure(x_do="sleep 30", timeout=0.2))[0] == "DEADLINE_EXCEEDED"
            for name in "ab":
                for _ in range(4):  # whichever is asked first
                    answer = await node.call(SMALL, x_do=f"only {name};close")
                    assert answer["replica"] != name


async def test_a_sender_that_falls_silent_where_there_is_no_room_is_cut(run_dir: Path) -> None:
    async with serving(run_dir, heap_size=128 * MIB, idle_timeout=2) as node:
        async with crowded(node, 1):
            sender = Rest(node.port)
            await sender.send(BEGUN)
            answer = await sender.receive()
            assert answer.headers["grpc-status"] == "4"
            await sender.close()
        assert (await node.rest("POST", INFER, b"{}")).status == 404


@pytest.mark.parametrize("rest", [False, True])
async def test_large_messages_are_sent_again_while_there_is_room_to_hold_them(
    run_dir: Path, rest: bool
) -> None:
    async with serving(run_dir, heap_size=512 * MIB) as node:

        async def requests(**headers: str) -> int:
            """How many replicas get a large message that breaks them."""
            before = sum(replica.requests for replica in node.replicas.values())
            if rest:
                answer = await node.rest("POST", REST, bytes(30 * MIB), x_do="close", **headers)
                assert answer.status == 503
            else:
                code, _ = await node.failure(LARGE, x_do="close", **headers)
                assert code == "UNAVAILABLE"
            return sum(replica.requests for replica in node.replicas.values()) - before

        for _ in range(3):
            assert await requests() == 2
        held = asyncio.ensure_future(node.call(message("n", payload=30 * MIB), x_do="hold"))

        async def arrived() -> bool:
            return node.replicas["c"].requests == 1

        await until(arrived)
        assert await requests() == 1
        assert await requests(x_tidegate_kept="1") == 1
        node.replicas["c"].release.set()
        await held

        async def free() -> bool:
            return await requests() == 2

        await until(free)
