"""Real models, saturated: Tidegate against the bare runtime loop and a ``grpc.aio`` server.

    python -m bench.saturation [resnet50] [minilm] [--rounds 5] [--seconds 5] [--json FILE]

Three questions of each model, in rounds that take turns within one run:

- How many rows a second, when there are always more requests? The bare loop runs batches of the
  size that suits it best (searched first); Tidegate gets single rows and joins them itself.
- How long does one row take when there is nothing else to do? One call at a time, against a single
  run of the bare loop. Then calls at a fixed pace, a tenth of what Tidegate answers saturated,
  against runs of the bare loop with such pauses: between them the processor falls asleep, and so
  do the threads of the runtime, unless they spin (``onnx.spin`` in model.yaml).
- What does the same cost in a ``grpc.aio`` server, which runs each request as it comes?

The load generator shares the machine with the server: of few cores it takes its part. Requests
carry raw tensors over a few connections, so that this part is small, and every answer is compared
with the runtime's own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import uvloop
from rich.console import Console
from rich.table import Table

from bench import hardware, servers, workloads
from bench.bare_loop import BareLoop, bare_loop
from bench.servers import Server
from bench.workloads import Workload
from tidegate.load.arrivals import uniform
from tidegate.load.driver import Result
from tidegate.load.generator import grpc_load
from tidegate.protocols.open_inference import MODEL_INFER

SIZES = (1, 2, 4, 8, 16, 32)
_CONNECTIONS = 4
_SPIN = "300ms"
_LOW = 0.1
"""Of the calls answered when saturated: the pace of the calls of which the latency counts."""


@dataclass(slots=True)
class Rounds:
    """One figure for each round."""

    bare: list[float] = field(default_factory=list)
    """Rows per second at the best batch size."""
    bare_single: list[float] = field(default_factory=list)
    """Median milliseconds of a run of one row."""
    bare_paced: list[float] = field(default_factory=list)
    """The same, with pauses that make the pace of the calls."""
    tidegate: list[float] = field(default_factory=list)
    tidegate_single: list[float] = field(default_factory=list)
    """Median milliseconds of one call at a time."""
    tidegate_paced: list[float] = field(default_factory=list)
    """Median milliseconds of calls at a pace."""
    spinning_paced: list[float] = field(default_factory=list)
    """The same, where the model's threads spin until the next call."""
    grpc_aio: list[float] = field(default_factory=list)
    grpc_aio_single: list[float] = field(default_factory=list)
    grpc_aio_paced: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    """Milliseconds of CPU time per row of all processes of the node, saturated."""
    others: list[float] = field(default_factory=list)
    """The share of the machine's CPU time that processes of others took."""


def _checked(server: Server, result: Result) -> Result:
    # A call that was due and not sent, as the machine was too busy, is late: its latency says it.
    if result.failures or not result.ok:
        raise SystemExit(f"{server.name}: {result}\n{result.failures[:3]}")
    return result


async def saturate(
    server: Server, workload: Workload, in_flight: int, seconds: float
) -> tuple[float, float]:
    """Return rows per second and the node's CPU milliseconds per row."""
    before = server.cpu_seconds()
    result = await grpc_load(
        server.target, MODEL_INFER, workload.messages(), connections=_CONNECTIONS,
        in_flight=in_flight // _CONNECTIONS, seconds=seconds, check=workload.checker(),
    )  # fmt: skip
    _checked(server, result)
    return result.rate, (server.cpu_seconds() - before) / result.ok * 1e3


async def one_at_a_time(server: Server, workload: Workload, seconds: float) -> float:
    """Return the median latency in milliseconds of calls that follow one another."""
    result = await grpc_load(
        server.target, MODEL_INFER, workload.messages(), connections=1, in_flight=1,
        seconds=seconds, check=workload.checker(),
    )  # fmt: skip
    return _checked(server, result).latency(50)


async def pace(server: Server, workload: Workload, rate: float, seconds: float) -> float:
    """Return the median latency in milliseconds of calls at ``rate`` a second."""
    result = await grpc_load(
        server.target, MODEL_INFER, workload.messages(), connections=1, in_flight=16,
        seconds=seconds, times=uniform(rate, seconds), check=workload.checker(),
    )  # fmt: skip
    return _checked(server, result).latency(50)


async def compare(
    workload: Workload, folder: Path, given: argparse.Namespace, console: Console
) -> tuple[int, dict[int, float], Rounds]:
    """Run the rounds of one model."""
    threads = int(hardware.describe()["cores"])
    rounds = Rounds()
    async with contextlib.AsyncExitStack() as stack:
        bare = await stack.enter_async_context(bare_loop(workload.path, workload.inputs, threads))
        found = await bare.best_batch(SIZES, given.seconds / 4)
        rates = {rows: one.rate for rows, one in found.items()}
        best = max(rates, key=lambda rows: rates[rows])
        console.print(f"{workload.name}: the bare loop is best at {best} rows: {_shown(rates)}")
        reference = await stack.enter_async_context(
            servers.reference(workload.path, workload.name, "uvloop", threads)
        )
        subject = await stack.enter_async_context(
            servers.tidegate(workload.path.parents[2], folder / "run")
        )
        spinning = await stack.enter_async_context(
            servers.tidegate(_spinning(workload, folder), folder / "run-2")
        )
        for server in (reference, subject, spinning):
            await saturate(server, workload, given.in_flight, 1)
        others = hardware.Others(
            lambda: (
                time.process_time()
                + sum(one.cpu_seconds() for one in (bare, reference, subject, spinning))
            )
        )
        for number in range(given.rounds):
            await _round(bare, best, reference, subject, workload, given, rounds)
            low = rounds.tidegate[-1] * _LOW
            rounds.spinning_paced.append(await pace(spinning, workload, low, given.seconds / 2))
            rounds.others.append(others.share())
            console.print(
                f"{workload.name}, round {number + 1}: bare {rounds.bare[-1]:.1f}/s, "
                f"tidegate {rounds.tidegate[-1]:.1f}/s, grpc.aio {rounds.grpc_aio[-1]:.1f}/s; "
                f"others took {rounds.others[-1]:.0%} of the CPU"
            )
    return best, rates, rounds


def _spinning(workload: Workload, folder: Path) -> Path:
    """Return a repository of the same model, whose threads spin from one call to the next."""
    models = folder / "spinning"
    home = workload.path.parents[1]
    shutil.copytree(home, models / home.name, copy_function=os.link)
    (models / home.name / "model.yaml").write_text(f"onnx: {{spin: {_SPIN}}}\n")
    return models


async def _round(
    bare: BareLoop,
    best: int,
    reference: Server,
    subject: Server,
    workload: Workload,
    given: argparse.Namespace,
    rounds: Rounds,
) -> None:
    seconds = given.seconds
    rounds.bare.append((await bare.run(best, seconds)).rate)
    rate, cpu = await saturate(subject, workload, given.in_flight, seconds)
    rounds.tidegate.append(rate)
    rounds.cpu.append(cpu)
    rounds.grpc_aio.append((await saturate(reference, workload, given.in_flight, seconds / 2))[0])
    brief = seconds / 4
    rounds.bare_single.append((await bare.run(1, brief)).p50)
    rounds.tidegate_single.append(await one_at_a_time(subject, workload, brief))
    rounds.grpc_aio_single.append(await one_at_a_time(reference, workload, brief))
    low = rounds.tidegate[-1] * _LOW
    rounds.bare_paced.append((await bare.run(1, seconds / 2, 1 / low)).p50)
    rounds.tidegate_paced.append(await pace(subject, workload, low, seconds / 2))
    rounds.grpc_aio_paced.append(await pace(reference, workload, low, seconds / 2))


def _shown(rates: dict[int, float]) -> str:
    return ", ".join(f"{rows}: {rate:.1f}/s" for rows, rate in rates.items())


def show(console: Console, name: str, best: int, rounds: Rounds) -> None:
    """Print one model's table."""
    table = Table(title=f"{name}: one row a request, V2 gRPC, raw tensors")
    table.add_column("")
    for heading in ("rows/s", "lowest", "highest", "of bare", "one at a time, ms", "paced, ms"):
        table.add_column(heading, justify="right")
    for label, rates, single, paced in (
        (f"bare loop, {best} (single: 1)", rounds.bare, rounds.bare_single, rounds.bare_paced),
        ("tidegate serve", rounds.tidegate, rounds.tidegate_single, rounds.tidegate_paced),
        ("grpc.aio", rounds.grpc_aio, rounds.grpc_aio_single, rounds.grpc_aio_paced),
    ):
        share = statistics.median(one / whole for one, whole in zip(rates, rounds.bare))
        table.add_row(
            label,
            *(f"{rate:.1f}" for rate in (statistics.median(rates), min(rates), max(rates))),
            f"{share:.2f}",
            f"{statistics.median(single):.2f}",
            f"{statistics.median(paced):.2f}",
        )
    console.print(table)
    console.print(
        f"paced, with onnx.spin at {_SPIN}: {statistics.median(rounds.spinning_paced):.2f} ms"
    )
    console.print(
        f"others took {statistics.median(rounds.others):.0%} of the machine's CPU time, "
        f"{max(rounds.others):.0%} in the worst round"
    )


async def run(given: argparse.Namespace) -> int:
    """Measure, print and write."""
    console, progress = Console(), Console(stderr=True)
    machine = hardware.describe()
    document: dict[str, object] = {"machine": machine}
    for name in given.models:
        with tempfile.TemporaryDirectory(prefix="tg-") as folder:
            try:
                workload = workloads.make(name, Path(folder))
            except RuntimeError as error:  # the weights cannot be had
                raise SystemExit(f"{name}: {error}") from error
            best, rates, rounds = await compare(workload, Path(folder), given, progress)
        show(console, name, best, rounds)
        document[name] = {"best batch": best, "bare rates": rates, "rounds": asdict(rounds)}
    console.print(", ".join(f"{key} {value}" for key, value in machine.items()))
    if given.json:
        given.json.write_text(json.dumps(document, indent=2) + "\n")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m bench.saturation", description=__doc__)
    parser.add_argument(
        "models", nargs="*", default=["resnet50", "minilm"], metavar="MODEL",
        help=f"of {', '.join(workloads.NAMES)}",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each saturated round")
    parser.add_argument("--in-flight", type=int, default=64, help="calls, when saturated")
    parser.add_argument("--json", type=Path, help="write all rounds there")
    return uvloop.run(run(parser.parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(main())
