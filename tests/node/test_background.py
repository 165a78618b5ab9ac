"""What the controller's background work does about errors that nobody foresees."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

import pytest

from tidegate.clock import MonotonicClock
from tidegate.config.model import ModelConfig
from tidegate.config.node import NodeConfig
from tidegate.controller import edge_keeper
from tidegate.controller.edge_keeper import EdgeKeeper
from tidegate.controller.run_directory import RunDirectory
from tidegate.edge.process import EnvoyProcess
from tidegate.edge.settings import EdgeSettings
from tidegate.errors import EdgeFailed
from tidegate.node.fleet import Generation, ReplicaState
from tidegate.node.keeper import Keeper, Surroundings
from tidegate.node.launcher import ProcessLauncher
from tidegate.replica.notices import Notices
from tidegate.repository.entries import VersionEntry


class _Edge:
    pid = 1
    log = Path("envoy.log")

    def __init__(self) -> None:
        self.ended = asyncio.Event()

    async def wait(self) -> int | None:
        await self.ended.wait()
        return None


async def test_an_edge_that_cannot_be_started_again_is_tried_with_a_growing_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = _Edge(), _Edge()
    outcomes: list[_Edge | Exception] = [
        first, EdgeFailed("no binary"), PermissionError("no more processes"), second
    ]  # fmt: skip

    async def start(*args: object, **kwargs: object) -> _Edge:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    waits: list[float] = []
    sleep = asyncio.sleep

    async def note(seconds: float) -> None:
        waits.append(seconds)
        await sleep(0)

    monkeypatch.setattr(EnvoyProcess, "start", start)
    monkeypatch.setattr(edge_keeper, "_CALM", 1e-9)
    monkeypatch.setattr(asyncio, "sleep", note)
    directory = RunDirectory(tmp_path, 8000)
    directory.create()
    settings = EdgeSettings(host="127.0.0.1", port=8000, controller_socket="/c", threads=1)
    told: list[str] = []
    keeper = EdgeKeeper(settings, directory, told.append)
    await keeper.start()
    back = asyncio.Event()

    def unrecorded() -> None:
        back.set()
        raise OSError("the disk is full")

    keeping = asyncio.create_task(keeper.keep(unrecorded))
    first.ended.set()
    async with asyncio.timeout(60):
        await back.wait()
    assert waits == [0.0, 0.5, 1.0]
    assert any("no more processes" in line for line in told)
    await sleep(0)
    assert not keeping.done(), "an edge is kept, recorded or not"
    keeping.cancel()


async def test_a_keeper_survives_what_nobody_foresaw(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path, 8000)
    directory.create()
    changed = asyncio.Event()
    told: list[str] = []
    around = Surroundings(
        directory=directory,
        config=NodeConfig(),
        launcher=ProcessLauncher(),
        clock=MonotonicClock(),
        loads=asyncio.Semaphore(1),
        ids=itertools.count(1),
        changed=changed.set,
        announce=told.append,
        crashed=lambda spec: None,
        ended=lambda spec: None,
        replica_count=lambda: 1,
    )
    gone = VersionEntry(1, tmp_path / "gone.onnx", "onnx", "onnx", "1a")
    generation = Generation("m", gone, ModelConfig())
    keeper = Keeper(around, generation, 0)
    keeper.start()
    async with asyncio.timeout(60):
        await changed.wait()
    assert "gone.onnx" in (generation.failure or "")
    assert generation.settled, "nobody waits for it"
    assert generation.replicas[0].state is ReplicaState.BACKING_OFF
    assert "gone.onnx" in told[-1]
    await keeper.end()


def test_notices_that_cannot_be_read_say_nothing(tmp_path: Path) -> None:
    file = tmp_path / "notices.json"
    assert Notices.read(file) == Notices()
    file.write_bytes(b"")
    assert Notices.read(file) is None
