"""Bad input to a real node: the right code, at once, and nobody else is harmed."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from tests.node.bad_input_rows import ROWS, SOLE_ROWS, Row, Send, World
from tests.node.bad_input_table import SERVED, fill_sole, neighbours, the_node, timed

pytestmark = pytest.mark.asyncio(loop_scope="module")

GROWTH = 64 * 2**20
"""Bytes that all processes of the node together may have gained after all rows."""
PEAK = 160 * 2**20
"""Bytes that they may have gained for a moment."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world() -> AsyncIterator[World]:
    async with the_node() as found:
        assert await neighbours(found) == SERVED
        yield found


@pytest.fixture(scope="module")
def before(world: World) -> dict[int, tuple[int, int]]:
    return memory(world)


def memory(world: World) -> dict[int, tuple[int, int]]:
    """Of each process of the node, the bytes that it has and the most that it had."""
    found = {}
    for process in world.node.processes():
        lines = Path(f"/proc/{process.pid}/status").read_text()
        peak = re.search(r"VmHWM:\s+(\d+) kB", lines)
        assert peak is not None
        found[process.pid] = (psutil.Process(process.pid).memory_info().rss, int(peak[1]) * 1024)
    return found


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
async def test_bad_input_has_its_code_at_once(
    world: World, before: dict[int, tuple[int, int]], row: Row
) -> None:
    for send, wanted in zip((row.rest, row.grpc), row.codes, strict=True):
        if send is not None:
            assert wanted is not None
            await check(world, row, send, wanted)
    assert memory(world).keys() == before.keys(), "a process died"


async def check(world: World, row: Row, send: Send, wanted: str, other: str = "neighbour") -> None:
    for _ in range(5):  # until it was in time: the machine may be busy
        (answer, seconds), around = await asyncio.gather(
            timed(world, send), neighbours(world, other)
        )
        assert answer.code == wanted, answer
        assert re.search(row.words, answer.message), answer
        assert len(answer.message) < 5000
        assert around == SERVED
        if seconds < row.within:
            return
    raise AssertionError(f"it took {seconds:.2f} s")


async def test_a_flood_of_it_takes_no_memory(
    world: World, before: dict[int, tuple[int, int]]
) -> None:
    """After all of the above, and what waits for nothing five times more, all at once."""
    await flood(world, before, ROWS)
    assert await neighbours(world) == SERVED


async def test_a_sole_model_answers_the_same() -> None:
    """Its replicas get over gRPC what the edge has not read."""
    async with the_node(fill_sole) as world:
        assert await neighbours(world, "m") == SERVED
        before = memory(world)
        for row in SOLE_ROWS:
            if row.grpc is not None:
                assert row.codes[1] is not None
                await check(world, row, row.grpc, row.codes[1], "m")
        await flood(world, before, SOLE_ROWS)
        assert await neighbours(world, "m") == SERVED


async def flood(world: World, before: dict[int, tuple[int, int]], rows: Sequence[Row]) -> None:
    sends = [send for row in rows for send in (row.rest, row.grpc) if send and row.within <= 1]
    for _ in range(5):
        await asyncio.gather(*(timed(world, send) for send in sends))
    after = memory(world)
    assert after.keys() == before.keys()
    grown = sum(after[pid][0] - before[pid][0] for pid in before)
    peak = sum(after[pid][1] - before[pid][0] for pid in before)
    assert (grown < GROWTH, peak < PEAK) == (True, True), (grown / 2**20, peak / 2**20)
