"""The end of a node: what was accepted is answered, and nothing is left; and who may begin."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from tests import models
from tests.node.harness import ServedNode
from tests.node.test_life import both_ready, edge_of, kill
from tests.node.traffic import Guests
from tests.ports import free_port
from tidegate.controller.life import Signals


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[ServedNode]:
    """``scale`` with two replicas, and ``slow``."""
    models.scale(tmp_path / "models/scale/1/model.onnx", 2.0)
    (tmp_path / "models/scale/model.yaml").write_text("replicas: 2\n")
    models.slow(tmp_path / "models/slow.onnx")
    async with ServedNode(tmp_path / "models") as served:
        yield served


async def command(*arguments: object) -> tuple[int, str]:
    """Run ``tidegate``; its exit status and what it said."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tidegate.cli", *map(str, arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    said, _ = await asyncio.wait_for(process.communicate(), 240)
    assert process.returncode is not None
    return process.returncode, said.decode()


async def serve(node: ServedNode, **changed: object) -> tuple[int, str]:
    """Try to start another controller, which is to fail."""
    options = {"port": node.port, "admin_port": node.admin_port, "run_dir": node.run_dir}
    given: list[object] = [changed.pop("repository", node.repository)]
    for name, value in {**options, **changed}.items():
        given += ["--" + name.replace("_", "-"), value]
    return await command("serve", *given)


def left_over(node: ServedNode) -> list[str]:
    """The files of a stopped node that are not logs."""
    files = (path for path in node.run_dir.rglob("*") if not path.is_dir())
    return [str(path) for path in files if path.suffix != ".log"]


def call_slow(node: ServedNode, milliseconds: int) -> asyncio.Task[tuple[int, bytes]]:
    body = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,1],"data":[%d]}]}'
    return asyncio.create_task(node.post("/v2/models/slow/infer", body % milliseconds))


async def until_running(node: ServedNode) -> None:
    """Wait until the model ``slow`` runs: its replica works."""
    (pid,) = node.replicas("slow")
    replica = psutil.Process(pid)
    before = replica.cpu_times().user
    await node.until(lambda: replica.cpu_times().user > before + 0.1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_stop_under_load_answers_what_was_accepted(
    node: ServedNode, number: signal.Signals
) -> None:
    assert node.process is not None
    async with Guests(node) as guests:
        slow = call_slow(node, 500)
        await until_running(node)
        node.process.send_signal(number)
    assert guests.failed == 0, guests.failures
    assert (await slow)[0] == 200
    assert await node.process.wait() == 0
    assert node.processes() == []
    assert left_over(node) == []
    assert "draining" in node.output
    assert node.output.rstrip().endswith("stopped")


async def test_a_second_interrupt_does_not_wait(node: ServedNode) -> None:
    assert node.process is not None
    slow = call_slow(node, 20_000)
    await until_running(node)
    node.process.send_signal(signal.SIGINT)
    await node.until(lambda: "draining" in node.output)
    await asyncio.sleep(0.6)  # sooner it would be the same one
    assert node.process.returncode is None
    node.process.send_signal(signal.SIGINT)
    assert await asyncio.wait_for(node.process.wait(), 60) == 0
    assert "were cut" in node.output
    assert (await slow)[0] in (0, 503)
    assert node.processes() == []
    assert left_over(node) == []


async def test_a_signal_that_is_passed_on_is_no_second_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A Ctrl-C, by what wraps the command."""
    hurries: list[float] = []
    signals = Signals(lambda: hurries.append(loop.time()))
    loop = asyncio.get_running_loop()
    try:
        for now in (10.0, 10.4, 10.6):
            monkeypatch.setattr(loop, "time", lambda now=now: now)
            signals._take()
            assert signals.stop.is_set()
    finally:
        monkeypatch.undo()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
    assert hurries == [10.6]


async def test_stop_ends_a_live_node(node: ServedNode) -> None:
    assert node.process is not None
    async with Guests(node) as guests:
        status, said = await command("stop", "--run-dir", node.run_dir)
        # Nothing is left at the moment when it says so.
        assert node.processes() == []
        assert left_over(node) == []
    assert (status, guests.failed) == (0, 0), said + guests.failures
    assert await node.process.wait() == 0
    assert (await command("stop", "--run-dir", node.run_dir))[0] == 66


async def test_stop_ends_a_node_whose_controller_was_killed(node: ServedNode) -> None:
    await kill(node)
    # Nor is the repository needed for that.
    shutil.move(node.repository, node.repository.with_name("gone"))
    async with Guests(node) as guests:
        status, said = await command("stop", "--run-dir", node.run_dir)
        assert node.processes() == []
        assert left_over(node) == []
    assert (status, guests.failed) == (0, 0), said + guests.failures
    assert "loading" not in said


async def test_stop_cleans_up_after_controller_and_edge_were_killed(node: ServedNode) -> None:
    edge = await edge_of(node)
    await kill(node)
    os.kill(edge, signal.SIGKILL)
    status, said = await command("stop", "--run-dir", node.run_dir)
    assert status == 0, said
    assert "loading" not in said
    assert node.processes() == []
    assert left_over(node) == []


async def test_a_live_controller_is_named_to_the_second_one(
    node: ServedNode, tmp_path: Path
) -> None:
    assert node.process is not None
    for changed in ({}, {"admin_port": 0}):
        status, said = await serve(node, **changed)
        assert status == 73
        assert f"pid {node.process.pid}" in said
        assert f"port {node.port}" in said
        assert str(node.repository) in said
        assert f"tidegate stop --port {node.port}" in said
    # With a run directory of its own it cannot know the controller, but it sees the edge.
    status, said = await serve(node, run_dir=f"{node.run_dir}-2", admin_port=0)
    shutil.rmtree(f"{node.run_dir}-2")
    assert status == 73
    assert f"envoy (pid {await edge_of(node)})" in said
    assert (await node.get("/v2/health/ready"))[0] == 200


async def test_an_edge_of_another_repository_is_not_adopted(
    node: ServedNode, tmp_path: Path
) -> None:
    models.scale(tmp_path / "other/scale.onnx", 3.0)
    await kill(node)
    before = {process.pid for process in node.processes()}
    status, said = await serve(node, repository=tmp_path / "other")
    assert status == 73
    assert str(node.repository) in said
    assert f"tidegate stop --port {node.port}" in said
    assert {process.pid for process in node.processes()} == before
    assert (await node.get("/v2/models/slow/ready"))[0] == 200
    await node.serve()
    assert "adopted" in node.output


@pytest.mark.parametrize("option", ["port", "admin_port"])
async def test_a_foreign_listener_is_named(node: ServedNode, option: str) -> None:
    await node.stop()
    listener = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    async with listener:
        port = listener.sockets[0].getsockname()[1]
        status, said = await serve(node, **{option: port})
    assert status == 73
    assert f"127.0.0.1:{port}" in said
    assert f"(pid {os.getpid()})" in said
    assert "--" + option.replace("_", "-") in said
    assert node.processes() == []


async def test_a_start_in_vain_leaves_nothing(node: ServedNode, tmp_path: Path) -> None:
    await node.stop()
    broken = tmp_path / "envoy"
    broken.write_text("#!/bin/sh\necho I am broken; exit 3\n")
    broken.chmod(0o755)
    status, said = await serve(node, envoy=broken)
    assert status == 70
    assert "I am broken" in said
    assert node.processes() == []
    assert left_over(node) == []


async def test_an_edge_that_cannot_be_replaced_serves_on(node: ServedNode, tmp_path: Path) -> None:
    broken = tmp_path / "envoy"
    broken.write_text("#!/bin/sh\necho I am broken; exit 3\n")
    broken.chmod(0o755)
    await both_ready(node)
    edge = await edge_of(node)
    await kill(node)
    status, said = await serve(node, envoy=broken)
    assert status == 70
    assert "I am broken" in said
    async with Guests(node) as guests:
        await node.serve()
        assert await edge_of(node) == edge
        assert await node.stop() == 0
    assert guests.failed == 0, guests.failures


async def test_many_starts_at_once_are_one_node(tmp_path: Path) -> None:
    models.scale(tmp_path / "models/scale.onnx", 2.0)
    async with ServedNode(tmp_path / "models", wait_ready=False) as node:
        await node.stop()
        tries = [asyncio.create_task(serve(node, admin_port=free_port())) for _ in range(4)]
        ended, running = await asyncio.wait(tries, timeout=30, return_when="FIRST_COMPLETED")
        while len(running) > 1:
            more, running = await asyncio.wait(running, timeout=30, return_when="FIRST_COMPLETED")
            ended |= more
        for task in ended:
            status, said = task.result()
            assert status == 73
            assert "the Tidegate controller with pid" in said
        await node.until_ready()
        assert (await command("stop", "--run-dir", node.run_dir))[0] == 0
        (winner,) = running
        assert (await winner)[0] == 0
        assert node.processes() == []
