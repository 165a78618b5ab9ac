"""Failures of a real node: the right code, the right words, and nobody else is harmed."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.node.failures_table import (
    FAILURES,
    Failure,
    Grpc,
    Rest,
    check,
    outcome,
    request,
    running,
    the_node,
)
from tests.node.harness import ServedNode, fetch
from tidegate.protocols import open_inference

pytestmark = pytest.mark.asyncio(loop_scope="module")

World = tuple[ServedNode, Rest, Grpc]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world() -> AsyncIterator[World]:
    async with the_node() as found:
        yield found


@pytest.mark.parametrize("failure", FAILURES[:-1], ids=lambda failure: failure.name)
async def test_a_failure_has_its_code_and_its_words(world: World, failure: Failure) -> None:
    node, rest, rpc = world
    if failure.rest is not None:
        answer = await failure.provoke(node, rest)
        check(failure, "REST", answer)
        assert answer.headers["content-type"] == "application/json"
        assert ("retry-after" in answer.headers) is (answer.code == "429")
    check(failure, "gRPC", await failure.provoke(node, rpc))


async def test_another_http_method_is_named(world: World) -> None:
    _, rest, _ = world
    answer = await rest.ask("GET", "/v2/models/gather/infer")
    assert answer.code == "405"
    assert answer.message == "/v2/models/gather/infer takes POST, not GET"
    assert answer.headers["allow"] == "POST"
    answer = await rest.ask("POST", "/v2/models/gather/ready", b"{}")
    assert (answer.code, answer.headers["allow"]) == ("405", "GET")
    answer = await rest.ask("GET", "/v2/repository/index")
    assert (answer.code, answer.headers["allow"]) == ("405", "POST")


async def test_the_others_are_served_meanwhile(world: World) -> None:
    """After all the failures above."""
    _, rest, rpc = world
    for client in (rest, rpc):
        assert (await client.infer("gather", 3)).code in ("200", "OK")


async def test_one_of_a_batch_goes_and_the_others_are_answered(world: World) -> None:
    node, _, rpc = world
    await node.until(lambda: not running(node, "slow"))
    calls = [rpc.start(request("slow", 500))]
    await node.until(lambda: running(node, "slow") == 1)
    calls += [rpc.start(request("slow", 200)) for _ in range(4)]
    await until_waiting(node, "slow", 4)
    await node.until(lambda: running(node, "slow") == 4)
    calls[2].cancel()
    codes = [(await outcome(call)).code for call in calls]
    assert codes == ["OK", "OK", "CANCELLED", "OK", "OK"]


@pytest.mark.parametrize("transport", ["REST", "gRPC"])
async def test_who_goes_leaves_the_queue(world: World, transport: str) -> None:
    node, _, rpc = world
    await node.until(lambda: not running(node, "narrow"))
    first = rpc.start(request("narrow", 1500))
    await node.until(lambda: running(node, "narrow"))
    leaver = await begin(node, rpc, transport)
    await until_waiting(node, "narrow", 1)
    refused = await rpc.infer("narrow", 0)
    assert refused.code == "RESOURCE_EXHAUSTED"
    leaver.cancel() if transport == "gRPC" else leaver.close()
    await until_waiting(node, "narrow", 0)
    last = asyncio.create_task(rpc.infer("narrow", 0))
    await until_waiting(node, "narrow", 1)
    # The model still runs the first one: room was made by the one that went.
    assert running(node, "narrow") == 1
    assert ((await outcome(first)).code, (await last).code) == ("OK", "OK")


async def until_waiting(node: ServedNode, model: str, count: int) -> None:
    """Wait until so many calls wait in the queue of a model."""
    url = f"http://127.0.0.1:{node.admin_port}/metrics"
    pattern = re.compile(
        rb'^tidegate_queue_depth\{.*model="%s".*\} %d\b' % (model.encode(), count), re.M
    )
    async with asyncio.timeout(60):
        while not pattern.search((await asyncio.to_thread(fetch, url))[1]):
            pass


async def begin(node: ServedNode, rpc: Grpc, transport: str) -> Any:
    """Start a call; it has a method that ends it."""
    if transport == "gRPC":
        return rpc.start(request("narrow", 0))
    host, port = node.target.split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    body = b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [0]}]}'
    writer.write(
        b"POST /v2/models/narrow/infer HTTP/1.1\r\nhost: node\r\ncontent-length: %d\r\n\r\n"
        % len(body)
        + body
    )
    return writer


async def test_without_a_controller_inference_goes_on(world: World) -> None:
    node, rest, rpc = world
    assert await server_live(rpc) == "OK"
    node.kill_controller()
    assert node.process is not None
    await node.process.wait()
    check(FAILURES[-1], "gRPC", await FAILURES[-1].provoke(node, rpc))
    for path in ("/v2/health/live", "/v2/health/ready", "/v2", "/v2/models/gather"):
        answer = await rest.ask("GET", path)
        assert answer.code == "200", (path, answer)
    for client in (rest, rpc):
        assert (await client.infer("gather", 3)).code in ("200", "OK")
        answer = await client.infer("text", 3)
        assert answer.code in ("503", "UNAVAILABLE")
    await node.serve()
    assert await server_live(rpc) == "OK"


async def server_live(rpc: Grpc) -> str:
    return (await rpc.ask(b"", open_inference.SERVER_LIVE)).code
