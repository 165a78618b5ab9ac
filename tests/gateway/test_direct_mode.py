"""Clients in direct mode: a gateway tells them where to go, and carries none of their calls."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import numpy as np
import pytest

from tests import models
from tests.gateway.harness import ServedGateway
from tests.node.harness import ServedNode
from tidegate import AsyncClient, Client
from tidegate.errors import ServerUnreachable


async def test_calls_go_around_the_gateway_and_survive_it(tmp_path: Path) -> None:
    (tmp_path / "scale/1").mkdir(parents=True)
    models.scale(tmp_path / "scale/1/model.onnx", 2.0)
    asked = {"x": np.arange(4, dtype=np.float32)[None]}
    async with contextlib.AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(ServedNode(tmp_path)) for _ in range(2)]
        endpoints = [node.target for node in nodes]
        gateway = await stack.enter_async_context(
            ServedGateway({"models": {"scale": {"endpoints": endpoints}}, "endpoints_ttl": "1s"})
        )
        await gateway.healthy("scale")
        url = f"http://{gateway.target}"
        async with AsyncClient(url) as through, AsyncClient(url, direct=True) as client:
            expected = (await through.infer("scale", asked))["y"]

            async def ask(count: int) -> None:
                for _ in range(count):
                    result = await client.infer("scale", asked)
                    np.testing.assert_array_equal(result["y"], expected)

            await asyncio.gather(*(ask(50) for _ in range(4)))
            # What the gateway carried: the call through it, its answers of endpoints, and checks.
            status = await gateway.status()
            (pool,) = status["models"][0]["pools"]
            assert sum(endpoint["succeeded"] for endpoint in pool["endpoints"]) <= 1
            # A node that is killed fails nothing; nor does a gateway.
            nodes[0].kill_controller()
            for process in nodes[0].processes():
                process.kill()
            await ask(50)
            gateway.kill_controller()
            for process in gateway.processes():
                process.kill()
            await ask(50)

        def blocking() -> None:
            with (
                Client(f"grpc://{gateway.target}", direct=True) as client,
                pytest.raises(ServerUnreachable, match=gateway.target),
            ):
                client.infer("scale", asked, timeout=20)

        await asyncio.to_thread(blocking)
