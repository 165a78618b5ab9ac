"""What the replicas of a node have counted, summed by model and version.

The sums never fall while the controller lives: what a replica had counted when it ended, as
far as it told, stays in them. A controller that starts anew sums what lives.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path

from pydantic import ValidationError

from tidegate.clock import Clock
from tidegate.node.fleet import Fleet, Replica, ReplicaState
from tidegate.node.probing import ask_stats
from tidegate.replica.spec import ReplicaSpec
from tidegate.telemetry.ledger import Ledger
from tidegate.telemetry.statistics import ModelStats, ReplicaStats

Key = tuple[str, int]
"""A model and its version."""


class Statistics:
    """Asks the replicas of a fleet, and remembers those that have ended."""

    def __init__(
        self,
        fleet: Fleet,
        clock: Clock,
        ask: Callable[[Path], Awaitable[ReplicaStats | None]] = ask_stats,
    ) -> None:
        self._fleet = fleet
        self._clock = clock
        self._ask = ask
        self._ledger: Ledger[int, Key, ModelStats] = Ledger()
        self._crashes: dict[Key, int] = {}
        self.queue_depths: dict[int, int] = {}
        """By the id of a replica: requests that waited when it was last asked."""

    async def collect(self) -> dict[Key, ModelStats]:
        """Ask all replicas at once, and return the sums; every version that is known has one.

        A replica that does not answer within a second counts with what it said before.
        """
        ready = [
            replica
            for generation in self._fleet.generations()
            for replica in generation.replicas.values()
            if replica.state is ReplicaState.READY
        ]
        await asyncio.gather(*map(self._ask_one, ready))
        known = dict.fromkeys(self._known(), ModelStats())
        return known | self._ledger.sums(known, self._clock.now())

    def crashes(self) -> dict[Key, int]:
        """Return how many replicas of each version that is known have died by themselves."""
        return {key: self._crashes.get(key, 0) for key in self._known()}

    def crashed(self, spec: ReplicaSpec) -> None:
        """Note that a replica has died by itself."""
        key = spec.model, spec.version
        self._crashes[key] = self._crashes.get(key, 0) + 1

    def ended(self, spec: ReplicaSpec) -> None:
        """Note that a replica's process has ended; one that was drained left its last words."""
        with contextlib.suppress(OSError, ValidationError):
            self._note(spec, ReplicaStats.model_validate_json(spec.last_words.read_bytes()))
        self.queue_depths.pop(spec.id, None)
        self._ledger.end(spec.id, self._clock.now())

    def _known(self) -> list[Key]:
        return [(g.model, g.version) for g in self._fleet.generations()]

    async def _ask_one(self, replica: Replica) -> None:
        spec = replica.spec
        stats = None if spec is None else await self._ask(spec.socket)
        # One that has ended meanwhile has been summed: it must not count twice.
        if spec is None or spec is not replica.spec or not replica.pid:
            return
        if stats is None:
            self.queue_depths.pop(spec.id, None)
        else:
            self._note(spec, stats)

    def _note(self, spec: ReplicaSpec, stats: ReplicaStats) -> None:
        self.queue_depths[spec.id] = stats.queue_depth
        self._ledger.note(spec.id, (spec.model, spec.version), stats.counted)
