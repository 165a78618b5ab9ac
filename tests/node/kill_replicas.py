"""``kill -9`` of one of two replicas, again and again, under load: what callers notice of it.

python -m tests.node.kill_replicas [--calls 50000] [--kills 10] [--seed 1]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests import models
from tests.node.harness import ServedNode
from tests.node.traffic import Traffic
from tidegate.controller.run_directory import RunDirectory
from tidegate.edge.admin import AdminClient

MODEL = "scale"
FACTOR = 2.0
_PAUSE = 1.5
"""Seconds within which, at a random moment, the next replica is killed."""


@dataclass
class Figures:
    """What a run gave."""

    calls: int = 0
    failed: int = 0
    failures: str = ""
    in_flight: int = 0
    seconds: float = 0.0
    back: list[float] = field(default_factory=list)
    """Seconds from each kill to the first call that the new replica answered."""
    longest_gap: float = 0.0
    """The longest time, in seconds, in which nobody got an answer."""
    factors: dict[float, int] = field(default_factory=dict)

    def __str__(self) -> str:
        back = ", ".join(f"{seconds:.2f}" for seconds in self.back)
        return (
            f"{self.calls} calls in {self.seconds:.1f} s with {self.in_flight} in flight, "
            f"{self.failed} failed; {len(self.back)} replicas killed, back in rotation after "
            f"{back} s (at most {max(self.back, default=0):.2f} s); "
            f"the longest silence {self.longest_gap:.2f} s\n{self.failures}"
        )


async def kill_replicas(
    repository: Path, *, calls: int, kills: int, seed: int = 1, rest: int = 16
) -> Figures:
    """Make at least ``calls`` calls while ``kills`` replicas are killed, one at a time."""
    models.scale(repository / MODEL / "1/model.onnx", FACTOR)
    (repository / MODEL / "model.yaml").write_text("replicas: 2\n")
    chance = random.Random(seed)
    found = Figures(in_flight=32 + rest)
    async with ServedNode(repository) as node:
        await node.until(lambda: node.output.count(f"{MODEL}:1#") >= 4)
        began = time.monotonic()
        async with Traffic(node, MODEL, connections=4, in_flight=8, rest=rest) as traffic:
            for _ in range(kills):
                await asyncio.sleep(chance.uniform(0, _PAUSE))
                victim = chance.choice(await ready_pids(node))
                os.kill(victim, signal.SIGKILL)
                found.back.append(await until_back(node, victim))
            await traffic.reaches(calls)
        found.seconds = time.monotonic() - began
        found.calls, found.failed = traffic.calls, traffic.failed
        found.failures, found.factors = traffic.failures, dict(traffic.answers.factors)
        found.longest_gap = traffic.answers.longest_gap
        if found.failed:
            found.failures += node.output
    return found


async def until_back(node: ServedNode, victim: int) -> float:
    """Wait until the two replicas without ``victim`` get calls; return the seconds."""
    began = time.monotonic()
    while True:
        pids = await ready_pids(node)
        if len(pids) == 2 and victim not in pids and all(await calls_of(node)):
            return time.monotonic() - began
        if time.monotonic() - began > 60:
            raise TimeoutError(f"it did not come back: {node.output}")
        await asyncio.sleep(0.02)


async def replicas_of(node: ServedNode) -> list[dict[str, Any]]:
    """What the admin API says of every replica."""
    status = await node.status()
    return [
        replica
        for model in status["models"]
        for version in model["versions"]
        for replica in version["replicas"]
    ]


async def ready_pids(node: ServedNode) -> list[int]:
    """The pids of the replicas that can take traffic."""
    return [r["pid"] for r in await replicas_of(node) if r["state"] == "ready"]


async def calls_of(node: ServedNode) -> list[int]:
    """How many calls the edge has sent to each endpoint of the model's default version."""
    record = RunDirectory(node.run_dir, node.port).load()
    assert record is not None
    assert record.edge is not None
    clusters = await AdminClient(Path(record.edge["admin_socket"])).clusters()
    hosts = next(hosts for name, hosts in clusters.items() if name.endswith(MODEL))
    totals = [
        int(stat.get("value", 0))
        for host in hosts
        for stat in host["stats"]
        if stat["name"] == "rq_success"
    ]
    return totals if len(totals) == 2 else [0]


def main() -> int:
    """Run it from the command line; the exit status is 1 if a call failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.node.kill_replicas")
    parser.add_argument("--calls", type=int, default=50_000)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(
            kill_replicas(
                Path(folder) / "models", calls=given.calls, kills=given.kills, seed=given.seed
            )
        )
    print(found)
    return 1 if found.failed else 0


if __name__ == "__main__":
    sys.exit(main())
