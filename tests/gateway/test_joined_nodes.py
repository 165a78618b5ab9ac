"""Real nodes that join a real gateway: they come, tell their load, are restarted and go."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests import models
from tests.gateway.harness import ServedGateway, endpoints_of, until
from tests.node.harness import ServedNode, fetch
from tests.node.traffic import Traffic

SHORT = {"registration": {"lease": 2.0}}
"""For who is to be forgotten soon; nodes on a busy machine may be so late."""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    models.scale(tmp_path / "models/scale/1/model.onnx", 2.0)
    return tmp_path / "models"


@pytest.fixture
async def gateway() -> AsyncIterator[ServedGateway]:
    async with ServedGateway({"registration": {"lease": 10.0}}) as gateway:
        yield gateway


def serves(*nodes: ServedNode) -> Any:
    """Whether these nodes, and no others, are healthy endpoints."""
    wanted = {node.target for node in nodes}

    def holds(status: dict[str, Any]) -> bool:
        found = endpoints_of(status, "scale")
        return found.keys() == wanted and all(e["health"] == "healthy" for e in found.values())

    return holds


async def is_served(gateway: ServedGateway, *nodes: ServedNode) -> None:
    """Wait until these nodes are healthy, and calls are led there."""
    await gateway.eventually(serves(*nodes))
    await gateway.led("scale")


def joining(repository: Path, gateway: ServedGateway) -> ServedNode:
    return ServedNode(repository, "--join", f"http://127.0.0.1:{gateway.admin_port}")


async def told(gateway: ServedGateway) -> bool:
    """Whether every endpoint is weighed by what it says of its load."""
    (model,) = await gateway.admin("/debug/balancing")
    found = [e["verdict"]["utilization"] for e in model["pools"][0]["endpoints"]]
    return all(factor != 1.0 for factor in found)


async def test_nodes_come_and_go_and_no_call_fails(
    repository: Path, gateway: ServedGateway
) -> None:
    async with joining(repository, gateway) as first:
        await is_served(gateway, first)
        async with Traffic(gateway) as traffic:
            async with joining(repository, gateway) as second:
                await gateway.eventually(serves(first, second))
                await traffic.more(500)
                # Both say how busy they are, and what they say is taken into account.
                await until(functools.partial(told, gateway))
                assert await second.stop() == 0
            await gateway.eventually(serves(first))
            await traffic.more(500)
        assert traffic.failed == 0, traffic.failures


async def test_a_model_that_a_node_unloads_goes_to_the_others(
    repository: Path, gateway: ServedGateway
) -> None:
    async with joining(repository, gateway) as first, joining(repository, gateway) as second:
        await is_served(gateway, first, second)
        url = f"http://127.0.0.1:{second.admin_port}/v2/repository/models/scale"
        async with Traffic(gateway) as traffic:
            for _ in range(3):
                assert (await asyncio.to_thread(fetch, f"{url}/unload", b"{}"))[0] == 200
                await gateway.eventually(serves(first))
                await traffic.more(200)
                assert (await asyncio.to_thread(fetch, f"{url}/load", b"{}"))[0] == 200
                await gateway.eventually(serves(first, second))
                await traffic.more(200)
        assert traffic.failed == 0, traffic.failures


async def test_who_is_killed_is_forgotten_after_its_lease(repository: Path) -> None:
    async with (
        ServedGateway(SHORT) as gateway,
        joining(repository, gateway) as first,
        joining(repository, gateway) as second,
    ):
        await is_served(gateway, first, second)
        for process in second.processes():
            os.kill(process.pid, signal.SIGKILL)

        def forgotten(status: dict[str, Any]) -> bool:
            known = [node["name"] for node in status["nodes"]]
            return known == [first.target] and serves(first)(status)

        await gateway.eventually(forgotten)
        assert second.process is not None
        await second.process.wait()


async def test_a_gateway_whose_controller_is_killed_knows_its_nodes(
    repository: Path, gateway: ServedGateway
) -> None:
    async with joining(repository, gateway) as node:
        await is_served(gateway, node)
        async with Traffic(gateway) as traffic:
            gateway.kill_controller()
            assert gateway.process is not None
            await gateway.process.wait()
            await traffic.more(500)
            await node.until(lambda: "nobody answers there" in node.output)
            await gateway.serve()
            await gateway.eventually(serves(node))
            await node.until(lambda: "knows this node again" in node.output)
            await traffic.more(500)
        assert traffic.failed == 0, traffic.failures


async def test_a_gateway_that_was_paused_has_lost_nobody(repository: Path) -> None:
    async with (
        ServedGateway(SHORT) as gateway,
        joining(repository, gateway) as first,
        joining(repository, gateway) as second,
    ):
        await is_served(gateway, first, second)
        assert gateway.process is not None
        async with Traffic(gateway) as traffic:
            gateway.process.send_signal(signal.SIGSTOP)
            # Longer than any lease.
            for node in (first, second):
                await node.until(lambda node=node: "no answer within 3 s" in node.output)  # type: ignore[misc]
            gateway.process.send_signal(signal.SIGCONT)
            status = await gateway.status()
            assert {node["name"] for node in status["nodes"]} == {first.target, second.target}
            for node in (first, second):
                await node.until(lambda node=node: "knows this node again" in node.output)  # type: ignore[misc]
            await traffic.more(500)
        assert traffic.failed == 0, traffic.failures
        assert serves(first, second)(await gateway.status())


async def test_a_rolling_restart_of_all_nodes_fails_no_call(
    repository: Path, gateway: ServedGateway
) -> None:
    async with joining(repository, gateway) as first, joining(repository, gateway) as second:
        await is_served(gateway, first, second)
        async with Traffic(gateway) as traffic:
            for node in (first, second):
                assert await node.stop() == 0
                await traffic.more(200)
                # At the same address: it takes its own place.
                await node.serve()
                await gateway.eventually(serves(first, second))
                await traffic.more(200)
        assert traffic.failed == 0, traffic.failures
