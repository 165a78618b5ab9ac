"""A repository on a disk that hangs: everything else goes on."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from tidegate.config.node import NodeConfig
from tidegate.controller.run_directory import RunDirectory
from tidegate.errors import ModelNotFound
from tidegate.node import controller, followed_repository
from tidegate.repository.entries import Repository


async def test_a_look_at_the_repository_holds_up_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0
    going_on = threading.Event()

    def hang(root: Path) -> Repository:
        nonlocal looks
        looks += 1
        assert going_on.wait(60), "nothing else went on"
        return Repository({})

    monkeypatch.setattr(followed_repository, "scan", hang)
    directory = RunDirectory(tmp_path / "run", 1)
    node = controller.Controller(tmp_path, NodeConfig(), directory, print)
    look = asyncio.create_task(node._followed.look())
    take = asyncio.create_task(node.take("m", unloaded=False))
    async with asyncio.timeout(60):
        while not looks:  # noqa: ASYNC110 - in a thread
            await asyncio.sleep(0.001)
        assert looks == 1  # one after the other, so that the later one is the last word
        going_on.set()
        assert await look is None
        with pytest.raises(ModelNotFound):
            await take
    assert looks == 2
