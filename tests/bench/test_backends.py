"""The backends that benches make sick: that they do what they are told, and have what they say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import httptools
import pytest

from bench import backends, proxies
from bench.backends import Kind, Node
from bench.messages import METHOD, infer_message
from bench.recording import Recording, name_in
from tests.edge.harness import rest
from tidegate.load.arrivals import uniform
from tidegate.load.driver import Result
from tidegate.load.generator import grpc_load


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with backends.nodes({"one": Kind(5, 4)}) as found:
        yield found["one"]


PATIENCE = 30.0
"""Seconds for what is answered; what is not is soon given up."""


async def load(target: str, calls: int = 4, timeout: float = PATIENCE) -> Result:
    message = infer_message()
    return await grpc_load(
        target, METHOD, message, connections=1, in_flight=4, calls=calls, timeout=timeout
    )


async def is_healthy(node: Node, patience: float) -> bool:
    try:
        async with asyncio.timeout(patience):
            answer = await rest(node.port, "GET", "/v2/health/ready")
    except (TimeoutError, ConnectionError, httptools.HttpParserError):
        return False
    return answer.status == 200


async def test_what_it_can_do_is_known(node: Node) -> None:
    assert node.kind.capacity == 800
    result = await load(node.address, calls=200)
    assert result.codes == {"OK": 200}
    # 50 after another for each of 4 slots, 5 ms each, whatever the machine does.
    assert result.seconds >= 0.24
    assert (await node.tell("count"))["calls"] == 200


async def test_any_client_can_call_it(node: Node) -> None:
    async with grpc.aio.insecure_channel(node.address) as channel:
        answers = [await channel.unary_unary("/any.Service/Method")(b"x") for _ in range(3)]
        health = await channel.unary_unary("/grpc.health.v1.Health/Check")(b"")
    assert {name_in(answer) for answer in answers} == {"one"}
    assert health == b"\x08\x01"
    assert (await rest(node.port, "GET", "/v2/models/m/ready")).status == 200
    assert (await rest(node.port, "POST", "/v2/models/m/infer", b"{}")).json == {"id": "one"}


@pytest.mark.parametrize(
    ("fault", "code", "healthy"),
    [
        ("silent", "DEADLINE_EXCEEDED", False),
        ("mute", "DEADLINE_EXCEEDED", True),
        ("error", "UNAVAILABLE", False),
        ("reset", "UNAVAILABLE", False),
        ("garbage", "UNAVAILABLE", False),
    ],
)
async def test_it_falls_ill_and_is_healed(
    node: Node, fault: str, code: str, healthy: bool
) -> None:
    await node.tell(fault)
    timeout = 0.3 if code == "DEADLINE_EXCEEDED" else PATIENCE
    assert (await load(node.address, timeout=timeout)).codes == {code: 4}
    assert await is_healthy(node, PATIENCE if healthy else 0.3) == healthy
    await node.tell("well")
    assert (await load(node.address)).codes == {"OK": 4}


async def test_it_is_slow(node: Node) -> None:
    await node.tell("slow 10")
    assert (await load(node.address, timeout=PATIENCE)).latency(50) >= 50


async def test_it_comes_back_where_it_was(node: Node) -> None:
    where = node.address
    await node.tell("down")
    assert (await load(node.address, calls=1)).codes == {"UNAVAILABLE": 1}
    await node.tell("up")
    assert (await load(node.address)).codes == {"OK": 4}
    await node.kill()
    assert (await load(node.address, calls=1)).codes == {"UNAVAILABLE": 1}
    await node.start()
    assert node.address == where
    assert (await load(node.address)).codes == {"OK": 4}


async def test_a_wrong_command_is_refused(node: Node) -> None:
    with pytest.raises(ValueError, match="no command 'nonsense'"):
        await node.tell("nonsense")


@pytest.mark.skipif(
    not backends.can_have_namespaces(), reason="network namespaces need root, ip and nft"
)
async def test_packets_to_it_vanish() -> None:
    async with backends.nodes({"one": Kind()}, namespaces=True) as found:
        one = found["one"]
        assert (await load(one.address)).codes == {"OK": 4}
        one.cut()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await asyncio.open_connection(one.host, one.port)
        one.join()
        assert (await load(one.address)).codes == {"OK": 4}


async def test_every_call_is_kept(node: Node) -> None:
    load = Recording(node.address, METHOD, [infer_message()], uniform(200, 0.5), deadline=PATIENCE)
    async with load:
        await load.until(0.3)
    calls = load.recorder.calls()
    assert len(calls.codes) == 100
    assert set(calls.nodes) == {"one"}
    assert calls.due.tolist() == pytest.approx([i / 200 for i in range(100)], abs=1e-6)
    # A timer may ring up to a millisecond early.
    assert all(calls.took_ms >= 4)


@pytest.mark.parametrize("name", ["envoy", "nginx", "haproxy", "grpc.aio"])
async def test_a_proxy_takes_turns(name: str, tmp_path: Path) -> None:
    if not proxies.installed(name):
        pytest.skip(f"{name} is not installed")
    async with backends.nodes({"a": Kind(), "b": Kind()}) as found:
        addresses = [node.address for node in found.values()]
        async with proxies.STATIC[name](addresses, tmp_path) as proxy:
            assert (await load(proxy.target, calls=40, timeout=PATIENCE)).codes == {"OK": 40}
            assert proxy.server.cpu_seconds() >= 0
            if proxy.admin is not None:
                counted = await proxy.counted()
                assert [counted[where]["rq_success"] for where in addresses] == [20, 20]
        assert [(await node.tell("count"))["calls"] for node in found.values()] == [20, 20]
