"""The replicas of a node: one keeper for each place of each generation."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

from tidegate.clock import Clock
from tidegate.config.node import NodeConfig
from tidegate.controller.run_directory import RunDirectory
from tidegate.node.fleet import Fleet, Generation
from tidegate.node.keeper import Keeper, Surroundings
from tidegate.node.launcher import Launcher, ReplicaProcess
from tidegate.node.probing import probe
from tidegate.replica.spec import ReplicaSpec
from tidegate.repository.entries import VersionEntry

_KILL_AFTER = 1.0


class Replicas:
    """Starts, adopts and ends the replicas of a fleet."""

    def __init__(
        self,
        fleet: Fleet,
        directory: RunDirectory,
        config: NodeConfig,
        launcher: Launcher,
        clock: Clock,
        *,
        changed: Callable[[], None],
        announce: Callable[[str], None],
        crashed: Callable[[ReplicaSpec], None],
        ended: Callable[[ReplicaSpec], None],
    ) -> None:
        self._fleet = fleet
        self._directory = directory
        self._launcher = launcher
        self._keepers: dict[Generation, list[Keeper]] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._around = Surroundings(
            directory=directory,
            config=config,
            launcher=launcher,
            clock=clock,
            loads=asyncio.Semaphore(config.parallel_loads),
            ids=itertools.count(1),
            changed=changed,
            announce=announce,
            crashed=crashed,
            ended=ended,
            replica_count=self._count,
        )

    def _count(self) -> int:
        return sum(g.count for g in self._fleet.generations() if g.desired)

    async def adopt(self) -> int:
        """Take over the replicas that are ready and end the others; return how many."""
        found = self._launcher.find(self._directory.replicas)
        # Any file's number: one that could not be adopted removes its socket when it ends.
        taken = [int(f.stem) for f in self._directory.replicas.iterdir() if f.stem.isdigit()]
        self._around.ids = itertools.count(max(taken, default=0) + 1)
        adopted = await asyncio.gather(*(self._adopt(spec, process) for spec, process in found))
        return sum(adopted)

    async def _adopt(self, spec: ReplicaSpec, process: ReplicaProcess) -> bool:
        ready = await probe(spec.socket)
        if ready is None:
            await process.end(_KILL_AFTER)
            return False
        entry = VersionEntry(
            spec.version,
            spec.path,
            spec.runtime,
            spec.runtime,
            spec.fingerprint,
            folder=spec.folder,
        )
        generation = self._fleet.adopt(entry, spec, ready)
        keeper = Keeper(self._around, generation, spec.index)
        self._keepers.setdefault(generation, []).append(keeper)
        keeper.adopt(process)
        return True

    def start(self, generation: Generation) -> None:
        """Start the replicas that ``generation`` lacks."""
        keepers = self._keepers.setdefault(generation, [])
        for index in range(generation.count):
            if index not in generation.replicas:
                keeper = Keeper(self._around, generation, index)
                keepers.append(keeper)
                keeper.start()

    def retire(self, generation: Generation) -> None:
        """Drain and end the replicas of ``generation``, in the background."""
        for keeper in self._keepers.pop(generation, []):
            task = asyncio.create_task(keeper.end())
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    async def end(self) -> None:
        """Drain and end all, those that are being retired included."""
        for generation in list(self._keepers):
            self.retire(generation)
        while self._ending:
            await asyncio.gather(*self._ending, return_exceptions=True)
