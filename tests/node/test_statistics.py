"""The controller's sums over replicas that come and go; the replicas are made up."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tidegate.config.model import ModelConfig
from tidegate.node.fleet import Fleet, Generation, ReplicaState
from tidegate.node.statistics import Statistics
from tidegate.replica.spec import Ready, ReplicaSpec
from tidegate.repository.entries import VersionEntry
from tidegate.telemetry.statistics import ModelStats, ReplicaStats


class Clock:
    time = 0.0

    def now(self) -> float:
        return self.time


class Node:
    """A fleet of replicas whose answers the test decides on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fleet = Fleet()
        self.says: dict[Path, int] = {}
        self.asked: list[Path] = []
        self.before_answer = asyncio.Event()
        self.before_answer.set()
        self.statistics = Statistics(self.fleet, Clock(), self._ask)

    async def _ask(self, socket: Path) -> ReplicaStats | None:
        self.asked.append(socket)
        said = self.says.get(socket)
        await self.before_answer.wait()
        return None if said is None else stats(said, depth=2)

    def add(self, number: int, index: int = 0, version: int = 1, says: int = 0) -> ReplicaSpec:
        spec = ReplicaSpec(
            id=number,
            index=index,
            fingerprint=str(version),
            model="m",
            version=version,
            path=self.folder,
            runtime="onnx",
            config=ModelConfig(),
            socket=self.folder / f"{number}.sock",
            lifeline=self.folder,
            threads=1,
            max_message_size=1,
            drain_timeout=1,
            notices=self.folder,
        )
        ready = Ready(
            pid=number, platform="p", device="cpu", batching=True, max_batch_size=1, seconds=1
        )
        entry = VersionEntry(version, self.folder, "onnx", "onnx", str(version))
        self.fleet.adopt(entry, spec, ready)
        self.says[spec.socket] = says
        return spec

    def generation(self, version: int = 1) -> Generation:
        return next(g for g in self.fleet.generations("m") if g.version == version)

    def end(self, spec: ReplicaSpec) -> None:
        """As a keeper does when a process has ended."""
        self.generation(spec.version).replicas[spec.index].pid = None
        self.statistics.ended(spec)

    async def total(self, version: int = 1) -> int:
        return (await self.statistics.collect())[("m", version)].inference_count


def stats(rows: int, depth: int = 0) -> ReplicaStats:
    return ReplicaStats(counted=ModelStats(inference_count=rows), queue_depth=depth)


async def test_replicas_of_a_version_are_summed(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.add(1, 0, says=5)
    node.add(2, 1, says=7)
    node.add(3, 0, version=2, says=100)
    assert await node.total() == 12
    assert await node.total(version=2) == 100
    assert node.statistics.queue_depths == {1: 2, 2: 2, 3: 2}


async def test_one_that_crashed_counts_with_what_it_told_last(tmp_path: Path) -> None:
    node = Node(tmp_path)
    first = node.add(1, says=5)
    assert await node.total() == 5
    node.end(first)
    node.end(first)
    node.add(2, says=1)
    assert await node.total() == 6
    assert set(node.statistics.queue_depths) == {2}


async def test_one_that_was_drained_has_left_its_last_words(tmp_path: Path) -> None:
    node = Node(tmp_path)
    first = node.add(1, says=5)
    assert await node.total() == 5
    first.last_words.write_text(stats(9).model_dump_json())
    node.end(first)
    assert await node.total() == 9
    never_asked = node.add(2)
    never_asked.last_words.write_text(stats(1).model_dump_json())
    node.end(never_asked)
    cut_short = node.add(3)
    cut_short.last_words.write_text('{"counted": ')
    node.end(cut_short)
    assert await node.total() == 10


async def test_one_that_does_not_answer_counts_with_what_it_said_before(tmp_path: Path) -> None:
    node = Node(tmp_path)
    spec = node.add(1, says=5)
    assert await node.total() == 5
    del node.says[spec.socket]
    assert await node.total() == 5
    assert node.statistics.queue_depths == {}


async def test_one_that_ends_while_it_is_asked_counts_once(tmp_path: Path) -> None:
    node = Node(tmp_path)
    spec = node.add(1, says=5)
    assert await node.total() == 5
    node.before_answer.clear()
    asking = asyncio.create_task(node.total())
    while len(node.asked) < 2:  # noqa: ASYNC110 - a turn of the loop or two
        await asyncio.sleep(0)
    node.end(spec)
    node.before_answer.set()
    assert await asking == 5
    assert await node.total() == 5


async def test_one_that_is_not_ready_is_not_asked_and_its_version_has_counts(
    tmp_path: Path,
) -> None:
    node = Node(tmp_path)
    node.add(1)
    node.generation().replicas[0].state = ReplicaState.STARTING
    assert await node.total() == 0
    assert node.asked == []


async def test_crashes_are_counted_by_version(tmp_path: Path) -> None:
    node = Node(tmp_path)
    first = node.add(1)
    node.add(2, version=2)
    assert node.statistics.crashes() == {("m", 1): 0, ("m", 2): 0}
    node.statistics.crashed(first)
    node.statistics.crashed(first)
    assert node.statistics.crashes() == {("m", 1): 2, ("m", 2): 0}
