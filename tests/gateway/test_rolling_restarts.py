"""Every node, and one of two gateways, is restarted while calls go on: none of them fails."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import grpc
import pytest

from tests import models
from tests.edge.fake_server import FakeServer
from tests.edge.harness import call, message
from tests.gateway.harness import ServedGateway, endpoints_of
from tests.node.harness import ServedNode, fetch

REQUEST = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,4],"data":[1,2,3,4]}]}'


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    (root / "scale/1").mkdir(parents=True)
    models.scale(root / "scale/1/model.onnx", 2.0)
    return root


class Posting:
    """REST calls of a model, one after the other on each of some threads."""

    def __init__(self, gateway: ServedGateway, width: int = 4) -> None:
        self._url = f"http://{gateway.target}/v2/models/scale/infer"
        self._width = width
        self.count = 0
        self.errors: list[tuple[int, bytes]] = []
        self._stopping = False

    async def __aenter__(self) -> Posting:
        self._tasks = [asyncio.create_task(self._run()) for _ in range(self._width)]
        await self.more(20)
        return self

    async def _run(self) -> None:
        while not self._stopping:
            status, body = await asyncio.to_thread(fetch, self._url, REQUEST)
            self.count += 1
            if status != 200:
                self.errors.append((status, body))

    async def more(self, count: int) -> None:
        goal = self.count + count
        async with asyncio.timeout(60):
            while self.count < goal:  # noqa: ASYNC110 - threads count
                await asyncio.sleep(0.01)

    async def __aexit__(self, *exc: object) -> None:
        self._stopping = True
        await asyncio.gather(*self._tasks)


async def test_nodes_that_joined_are_restarted_one_after_the_other(repository: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        gateway = await stack.enter_async_context(ServedGateway({"registration": {}}))
        join = ("--join", f"http://127.0.0.1:{gateway.admin_port}")
        nodes = [await stack.enter_async_context(ServedNode(repository, *join)) for _ in range(2)]
        addresses = {node.target for node in nodes}
        await gateway.eventually(lambda s: endpoints_of(s, "scale").keys() == addresses)
        await gateway.healthy("scale")
        async with Posting(gateway) as posting:
            for node in nodes:
                assert await node.stop() == 0
                status = await gateway.status()
                assert node.target not in endpoints_of(status, "scale")
                await posting.more(50)
                await node.serve()
                await gateway.eventually(lambda s: endpoints_of(s, "scale").keys() == addresses)
                await gateway.healthy("scale")
                await posting.more(50)
        assert posting.errors == []


async def test_one_of_two_gateways_is_restarted() -> None:
    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(FakeServer("a"))
        document = {"models": {"m": {"endpoints": [server.address]}}}
        gateways = [await stack.enter_async_context(ServedGateway(document)) for _ in range(2)]
        for gateway in gateways:
            await gateway.healthy()
        target = "ipv4:" + ",".join(gateway.target for gateway in gateways)
        # As clients are by default: what a GOAWAY refused is sent again on a new connection.
        async with grpc.aio.insecure_channel(target) as channel:
            errors: list[str] = []
            answered = 0
            stopping = False

            async def ask() -> None:
                nonlocal answered
                while not stopping:
                    try:
                        await call(channel, message())
                        answered += 1
                    except grpc.aio.AioRpcError as error:
                        errors.append(f"{error.code().name}: {error.details()}")

            async def more(count: int) -> None:
                goal = answered + count
                async with asyncio.timeout(60):
                    while answered < goal:  # noqa: ASYNC110 - others count
                        await asyncio.sleep(0.01)

            tasks = [asyncio.create_task(ask()) for _ in range(16)]
            for gateway in gateways:
                await more(200)
                assert await gateway.stop() == 0
                await more(200)
                await gateway.serve()
                await gateway.healthy()
            await more(200)
            stopping = True
            await asyncio.gather(*tasks)
            assert errors == []
