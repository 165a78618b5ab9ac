"""Who dies with whom: replicas, controllers and edges are killed under load, and come back."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests import models
from tests.node.harness import ServedNode
from tests.node.kill_replicas import kill_replicas, ready_pids, replicas_of
from tests.node.traffic import Traffic
from tidegate.controller.run_directory import RunDirectory

CALLS = int(os.environ.get("TEST_CALLS", "50000"))


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[ServedNode]:
    """Two replicas of ``scale``, both ready."""
    models.scale(tmp_path / "models/scale/1/model.onnx", 2.0)
    (tmp_path / "models/scale/model.yaml").write_text("replicas: 2\n")
    async with ServedNode(tmp_path / "models") as served:
        await both_ready(served)
        yield served


async def both_ready(node: ServedNode) -> None:
    async with asyncio.timeout(60):
        while len(await ready_pids(node)) < 2:  # noqa: ASYNC110 - in another process
            await asyncio.sleep(0.05)


async def edge_of(node: ServedNode) -> int:
    pid: int = (await node.status())["edge"]["pid"]
    return pid


async def kill(node: ServedNode) -> None:
    """``kill -9`` of the controller, and wait until it is dead."""
    node.kill_controller()
    assert node.process is not None
    await node.process.wait()


async def test_killing_replicas_fails_no_call(tmp_path: Path) -> None:
    found = await kill_replicas(tmp_path, calls=CALLS, kills=10)
    print(found)
    assert found.failed == 0, found.failures
    assert found.calls >= CALLS
    assert found.in_flight >= 32
    assert set(found.factors) == {2.0}
    assert len(found.back) == 10


async def test_a_killed_controller_is_not_missed_and_the_next_adopts(node: ServedNode) -> None:
    replicas, edge = sorted(await ready_pids(node)), await edge_of(node)
    async with Traffic(node) as traffic:
        for _ in range(3):
            await kill(node)
            await traffic.more(500)
            await node.serve()
            await traffic.more(500)
            assert sorted(await ready_pids(node)) == replicas
            assert await edge_of(node) == edge
            assert "adopted the running edge and 2 replicas\n" in node.output
    assert traffic.failed == 0, traffic.failures


async def test_other_settings_of_the_edge_are_a_hot_restart(node: ServedNode) -> None:
    replicas, edge = sorted(await ready_pids(node)), await edge_of(node)
    async with Traffic(node) as traffic:
        await kill(node)
        node.options = ("--envoy-threads", "3")
        await node.serve()
        await traffic.more(1000)
        assert sorted(await ready_pids(node)) == replicas
        assert await edge_of(node) != edge
        # And once more, while the first one is still ending.
        await kill(node)
        node.options = ("--envoy-threads", "2")
        await node.serve()
        await traffic.more(1000)
    assert traffic.failed == 0, traffic.failures
    assert await node.stop() == 0
    assert node.processes() == []


async def test_a_replica_that_is_killed_without_a_controller_comes_back_with_it(
    node: ServedNode,
) -> None:
    victim, other = await ready_pids(node)
    async with Traffic(node) as traffic:
        await kill(node)
        os.kill(victim, signal.SIGKILL)
        await traffic.more(1000)
        await node.serve()
        assert "adopted the running edge and 1 replica\n" in node.output
        await both_ready(node)
        await traffic.more(200)
        assert other in await ready_pids(node)
    assert traffic.failed == 0, traffic.failures


async def test_a_killed_edge_is_started_again_and_replicas_stay(node: ServedNode) -> None:
    replicas, edge = sorted(await ready_pids(node)), await edge_of(node)
    os.kill(edge, signal.SIGKILL)
    await node.until(lambda: "the edge ended" in node.output)
    await node.until_ready()
    async with Traffic(node) as traffic:
        await traffic.more(100)
    assert traffic.failed == 0, traffic.failures
    assert sorted(await ready_pids(node)) == replicas
    assert all(replica["restarts"] == 0 for replica in await replicas_of(node))
    # The next controller finds the new one.
    edge = await edge_of(node)
    await kill(node)
    await node.serve()
    assert await edge_of(node) == edge


async def test_replicas_end_when_controller_and_edge_are_killed(node: ServedNode) -> None:
    edge = await edge_of(node)
    await kill(node)
    os.kill(edge, signal.SIGKILL)
    await node.until(lambda: not node.processes())
    # Whatever they left does not keep the next node from starting.
    await node.serve()
    await node.until_ready()
    await both_ready(node)


def is_stopped(pid: int) -> bool:
    """Whether every thread has: one that has not may still take the lifeline, and keep it."""
    threads = Path(f"/proc/{pid}/task").glob("*/stat")
    return all(thread.read_text().rpartition(") ")[2][0] == "T" for thread in threads)


async def test_replicas_outlive_an_edge_and_a_controller_that_come_back(node: ServedNode) -> None:
    """The edge is killed first; a controller that comes within their grace keeps them."""
    replicas, edge = sorted(await ready_pids(node)), await edge_of(node)
    # Their grace is two seconds, in which a busy machine does not start a controller.
    for replica in replicas:
        os.kill(replica, signal.SIGSTOP)
    await node.until(lambda: all(map(is_stopped, replicas)))
    await kill(node)
    os.kill(edge, signal.SIGKILL)
    lifeline = RunDirectory(node.run_dir, node.port).lifeline
    await node.until(lambda: not is_held(lifeline))
    starting = await start(node)
    await node.until(lambda: is_held(lifeline))
    for replica in replicas:
        os.kill(replica, signal.SIGCONT)
    await starting
    await node.until_ready()
    assert sorted(await ready_pids(node)) == replicas
    assert await edge_of(node) != edge


def is_held(lifeline: Path) -> bool:
    """Whether a controller or an edge holds on to the lifeline."""
    with lifeline.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def edges(node: ServedNode) -> list[str]:
    """The command lines of the edges, those included that are only about to be one."""
    lines = [" ".join(process.info["cmdline"]) for process in node.processes()]
    return [line for line in lines if "bootstrap-" in line]


async def start(node: ServedNode) -> asyncio.Task[None]:
    """Begin ``serve``; an end before it serves is no error."""

    async def serve() -> None:
        with contextlib.suppress(RuntimeError):
            await node.serve()

    before = node.process
    task = asyncio.create_task(serve())
    await node.until(lambda: node.process is not before)
    return task


async def test_a_controller_that_is_killed_while_it_starts_an_edge(tmp_path: Path) -> None:
    """Nobody has written down that there is one, and still it is not in the next one's way."""
    models.scale(tmp_path / "models/scale/1/model.onnx", 2.0)
    async with ServedNode(tmp_path / "models", wait_ready=False) as node:
        await node.stop()
        for _ in range(2):
            starting = await start(node)
            await node.until(lambda: edges(node))
            await kill(node)
            await starting
            await node.serve()
            await node.until_ready()
            assert len(edges(node)) == 1
            assert (await node.get("/v2/models/scale/ready"))[0] == 200
            await node.stop()
            assert node.processes() == []


async def test_a_controller_that_is_killed_while_it_replaces_the_edge(node: ServedNode) -> None:
    async with Traffic(node) as traffic:
        await kill(node)
        node.options = ("--envoy-threads", "3")
        starting = await start(node)
        await node.until(lambda: len(edges(node)) == 2)
        await kill(node)
        await starting
        await traffic.more(500)
        await node.serve()
        await traffic.more(500)
        assert len(await ready_pids(node)) == 2
    assert traffic.failed == 0, traffic.failures
    assert await node.stop() == 0
    assert node.processes() == []
