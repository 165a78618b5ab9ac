"""A large and a small model on one node: what the small one's callers feel of the large one.

    python -m bench.neighbours [--rounds 3] [--seconds 5] [--rate 200] [--json FILE]

The tiny MLP gets calls at a fixed pace, whose latency counts from the time at which they were due,
first while ResNet-50 rests and then while it is saturated. Each is a process of its own, and the
cores are shared by the system alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import uvloop
from rich.console import Console
from rich.table import Table

from bench import hardware, servers, workloads
from bench.servers import Server
from bench.workloads import Workload
from tidegate.load.arrivals import after_warm_up
from tidegate.load.driver import Result
from tidegate.load.generator import grpc_load
from tidegate.protocols.open_inference import MODEL_INFER

_WARM_UP = 0.5


@dataclass(frozen=True, slots=True)
class Round:
    """What the small model's callers saw in one round, in milliseconds; and the large one's."""

    p50: float
    p99: float
    p999: float
    large: float
    """Rows per second of the large model."""


async def small_load(server: Server, small: Workload, rate: float, seconds: float) -> Result:
    """Call the small model at a fixed pace."""
    return await grpc_load(
        server.target, MODEL_INFER, small.messages(), connections=2, in_flight=250,
        seconds=seconds, warm_up=_WARM_UP, check=small.checker(),
        times=after_warm_up("uniform", rate, _WARM_UP, seconds),
    )  # fmt: skip


async def measure(
    server: Server, small: Workload, large: Workload | None, given: argparse.Namespace
) -> Round:
    """Run one round, beside a saturated large model if there is one.

    Raises:
        SystemExit: a call failed.
    """
    stop = asyncio.Event()
    beside = None
    if large is not None:
        beside = asyncio.ensure_future(
            grpc_load(
                server.target, MODEL_INFER, large.messages(), connections=1, in_flight=16,
                until=stop, check=large.checker(),
            )
        )  # fmt: skip
    result = await small_load(server, small, given.rate, given.seconds)
    stop.set()
    busy = await beside if beside is not None else Result()
    for one in (result, busy):
        if one.failures:  # a call that was due and not sent is none: it is late
            raise SystemExit(f"{one}\n{one.failures[:3]}")
    return Round(result.latency(50), result.latency(99), result.latency(99.9), busy.rate)


async def compare(given: argparse.Namespace) -> dict[str, list[Round]]:
    """Return the rounds; with and without the neighbour take turns."""
    figures: dict[str, list[Round]] = {"resting": [], "saturated": []}
    with tempfile.TemporaryDirectory(prefix="tg-") as name:
        folder = Path(name)
        small, large = (workloads.make(model, folder) for model in ("mlp", "resnet50"))
        async with servers.tidegate(folder / "models", folder / "run") as server:
            await small_load(server, small, given.rate, 1)
            for _ in range(given.rounds):
                figures["resting"].append(await measure(server, small, None, given))
                figures["saturated"].append(await measure(server, small, large, given))
    return figures


def show(console: Console, figures: dict[str, list[Round]], rate: float) -> None:
    """Print the table; each figure is the median of the rounds."""
    table = Table(title=f"tiny MLP at {rate:g} calls/s beside ResNet-50, one node")
    table.add_column("ResNet-50")
    for heading in ("p50 ms", "p99 ms", "p99.9 ms", "ResNet-50 rows/s"):
        table.add_column(heading, justify="right")
    for name, rounds in figures.items():
        columns = zip(*((o.p50, o.p99, o.p999, o.large) for o in rounds))
        table.add_row(name, *(f"{statistics.median(column):.2f}" for column in columns))
    console.print(table)


async def run(given: argparse.Namespace) -> int:
    """Measure, print and write."""
    machine = hardware.describe()
    figures = await compare(given)
    console = Console()
    show(console, figures, given.rate)
    console.print(", ".join(f"{key} {value}" for key, value in machine.items()))
    if given.json:
        rounds = {name: [asdict(one) for one in done] for name, done in figures.items()}
        given.json.write_text(json.dumps({"machine": machine, "rounds": rounds}, indent=2) + "\n")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m bench.neighbours", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each round")
    parser.add_argument("--rate", type=float, default=200.0, help="calls a second of the MLP")
    parser.add_argument("--json", type=Path, help="write all rounds there")
    return uvloop.run(run(parser.parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(main())
