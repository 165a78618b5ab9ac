"""Direct mode against real nodes, one of which dies and comes back under load."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import psutil
import pytest
import pytest_asyncio

from tests import models
from tests.client.fake_gateway import Gateway
from tests.node.harness import ServedNode
from tidegate import AsyncClient, Client, errors

pytestmark = pytest.mark.asyncio(loop_scope="module")

X = np.ones((1, 4), np.float32)
FACTORS = (2.0, 3.0, 4.0)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def nodes(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[list[ServedNode]]:
    """Three, whose model ``scale`` multiplies by a factor that tells them apart."""
    async with contextlib.AsyncExitStack() as stack:
        found = []
        for factor in FACTORS:
            root = tmp_path_factory.mktemp("models")
            models.scale(root / "scale.onnx", factor)
            found.append(ServedNode(root, wait_ready=False))
        await asyncio.gather(*(stack.enter_async_context(node) for node in found))
        await asyncio.gather(*(node.until_ready() for node in found))
        yield found


@pytest.fixture
def gateway(nodes: list[ServedNode]) -> Iterator[Gateway]:
    with Gateway(*(node.target for node in nodes), ttl_ms=1000) as started:
        yield started


def who(answer: Any) -> float:
    return float(answer["y"][0, 0])


@pytest.mark.parametrize("scheme", ["http", "grpc"])
async def test_all_calls_of_a_model(
    nodes: list[ServedNode], gateway: Gateway, scheme: str
) -> None:
    def blocking() -> Counter[float]:
        with Client(f"{scheme}://{gateway.address}", direct=True) as client:
            scale = client.model("scale")
            assert scale.ready()
            scale.wait_ready()
            assert scale.metadata().name == "scale"
            assert scale.statistics()[0].name == "scale"
            with pytest.raises(errors.InvalidInput):
                scale.infer(np.ones((1, 5), np.float32))
            return Counter(who(scale.infer([[1, 1, 1, 1]])) for _ in range(30))

    assert set(await asyncio.to_thread(blocking)) == set(FACTORS)
    async with AsyncClient(f"{scheme}://{gateway.address}", direct=True) as client:
        scale = client.model("scale")
        assert await scale.ready()
        assert (await scale.metadata()).name == "scale"
        found = await asyncio.gather(*(scale.infer(X) for _ in range(30)))
        assert set(map(who, found)) == set(FACTORS)
    assert not gateway.calls


@pytest.mark.parametrize("scheme", ["http", "grpc"])
async def test_a_plain_node_is_its_own_endpoint(nodes: list[ServedNode], scheme: str) -> None:
    def blocking() -> None:
        with Client(f"{scheme}://{nodes[0].target}", direct=True) as client:
            assert who(client.infer("scale", X)) == FACTORS[0]
            assert client.ready()
            with pytest.raises(errors.ModelNotFound, match="absent"):
                client.infer("absent", X)

    await asyncio.to_thread(blocking)
    async with AsyncClient(f"{scheme}://{nodes[0].target}", direct=True) as client:
        assert who(await client.infer("scale", X)) == FACTORS[0]
    status, body = await nodes[0].get("/v2/models/scale/endpoints")
    assert (status, b"no gateway" in body) == (501, True)


def killed(node: ServedNode) -> None:
    for process in node.processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


@contextlib.contextmanager
def load(client: Client, workers: int) -> Iterator[Counter[float]]:
    """Call in threads; at the end none of them may have failed."""
    counts: Counter[float] = Counter()
    ended, lock = threading.Event(), threading.Lock()

    def work() -> None:
        while not ended.is_set():
            factor = who(client.infer("scale", X))
            with lock:
                counts[factor] += 1

    with ThreadPoolExecutor(workers) as threads:
        working = [threads.submit(work) for _ in range(workers)]
        try:
            yield counts
        finally:
            ended.set()
        for thread in working:
            thread.result()


async def until_more(counts: Counter[float], factors: tuple[float, ...], more: int) -> None:
    before = counts.copy()
    async with asyncio.timeout(60):
        while not all(counts[f] >= before[f] + more for f in factors):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("scheme", ["http", "grpc"])
async def test_a_node_is_killed_and_comes_back(
    nodes: list[ServedNode], gateway: Gateway, scheme: str
) -> None:
    with (
        Client(f"{scheme}://{gateway.address}", direct=True, timeout=60) as client,
        load(client, 8) as counts,
    ):
        await until_more(counts, FACTORS, 50)
        killed(nodes[2])
        await until_more(counts, FACTORS[:2], 300)
        gateway.stop()
        await until_more(counts, FACTORS[:2], 300)
        await nodes[2].serve()
        await until_more(counts, FACTORS, 50)
    assert not gateway.calls


async def test_a_node_is_stopped_in_order(nodes: list[ServedNode], gateway: Gateway) -> None:
    with Client(gateway.url, direct=True, timeout=60) as client, load(client, 8) as counts:
        await until_more(counts, FACTORS, 50)
        await nodes[2].stop()
        await until_more(counts, FACTORS[:2], 100)
        await nodes[2].serve()
        await until_more(counts, FACTORS, 50)
    assert not gateway.calls


@contextlib.contextmanager
def frozen(node: ServedNode) -> Iterator[None]:
    """Its kernel takes connections and bytes, and nobody answers."""
    edges = [p for p in node.processes() if p.info["cmdline"][0].endswith("envoy")]
    assert edges
    for edge in edges:
        os.kill(edge.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for edge in edges:
            os.kill(edge.pid, signal.SIGCONT)


@pytest.mark.parametrize("scheme", ["http", "grpc"])
async def test_calls_that_wait_for_a_frozen_machine_go_elsewhere(
    nodes: list[ServedNode], gateway: Gateway, scheme: str
) -> None:
    url = f"{scheme}://{gateway.address}"
    with (
        Client(url, direct=True, timeout=60) as client,
        load(client, 8) as counts,
    ):
        await until_more(counts, FACTORS, 50)
        with frozen(nodes[2]):
            await until_more(counts, FACTORS[:2], 300)
        await until_more(counts, FACTORS, 20)
    async with AsyncClient(url, direct=True, timeout=60) as waiting:
        await asyncio.gather(*(waiting.infer("scale", X) for _ in range(6)))
        with frozen(nodes[2]):
            found = await asyncio.gather(*(waiting.infer("scale", X) for _ in range(30)))
        assert {who(answer) for answer in found} == {FACTORS[0], FACTORS[1]}
    assert not gateway.calls


async def test_a_forked_process_begins_anew(nodes: list[ServedNode], gateway: Gateway) -> None:
    """In a process without the threads of other tests, whose locks a fork might copy."""
    code = f"""
import os, sys
import numpy as np
from tidegate import Client
x = np.ones((1, 4), np.float32)
with Client(sys.argv[1], direct=True) as client:
    client.infer("scale", x)
    if os.fork() == 0:
        os._exit(0 if client.infer("scale", x)["y"][0, 0] in {FACTORS} else 1)
    assert os.wait()[1] == 0
"""
    forked = functools.partial(
        subprocess.run, [sys.executable, "-c", code, gateway.url], check=True, timeout=240
    )
    await asyncio.to_thread(forked)
