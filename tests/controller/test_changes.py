"""What has changed is applied once, in order, and again until that works."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from tidegate.controller import changes as module
from tidegate.controller.changes import Changes
from tidegate.errors import EdgeFailed


@contextlib.asynccontextmanager
async def following(changes: Changes) -> AsyncIterator[None]:
    task = asyncio.create_task(changes.follow())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_what_is_noted_meanwhile_is_applied_next() -> None:
    began, go_on = asyncio.Event(), asyncio.Event()
    applied = 0

    async def apply() -> None:
        nonlocal applied
        began.set()
        await go_on.wait()
        applied += 1

    changes = Changes(apply, lambda _: None)
    changes.note()
    async with following(changes), asyncio.timeout(60):
        await began.wait()
        changes.note()
        changes.note()
        waiting = asyncio.create_task(changes.applied())
        await asyncio.sleep(0)
        go_on.set()
        await waiting
        assert applied == 2


async def test_what_fails_is_told_and_tried_again_and_who_waits_goes_on_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_RETRY", 0.0)
    faults: list[Exception] = [EdgeFailed("refused"), OSError("no space")]
    told: list[str] = []
    problems: list[str | None] = []

    async def apply() -> None:
        problems.append(changes.problem)
        if faults:
            raise faults.pop(0)

    changes = Changes(apply, told.append)
    changes.note()
    async with following(changes), asyncio.timeout(60):
        await changes.applied()
    assert told == [
        "a change is not in effect yet: refused",
        "a change is not in effect yet: no space",
    ]
    assert problems == [None, *told]
    assert changes.problem is None


async def test_who_does_not_wait_any_more_stops_nothing() -> None:
    async def apply() -> None:
        pass

    changes = Changes(apply, lambda _: None)
    gone = asyncio.create_task(changes.applied())
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    changes.note()
    async with following(changes), asyncio.timeout(60):
        await changes.applied()


async def test_with_a_tick_it_is_applied_though_nothing_was_noted() -> None:
    async def apply() -> None:
        pass

    async with following(changes := Changes(apply, lambda _: None, tick=0.0)), asyncio.timeout(60):
        await changes.applied()
