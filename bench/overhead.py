"""What serving costs: a tiny MLP through Tidegate against a bare ``grpc.aio`` server.

    python -m bench.overhead [--rounds 5] [--seconds 2] [--json FILE]

The model is so small that the servers themselves are what is measured. The same load
generator drives all of them, in turns within one run; every figure is the median of the
rounds. So is the ratio: within a round the servers run seconds apart, while a machine that is
shared may be a third slower from one minute to the next. Every answer must be OK and is compared
with the model computed by numpy.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import uvloop
from rich.console import Console
from rich.table import Table
from tritonclient.grpc import service_pb2

from bench import hardware, model, servers
from bench.servers import Server
from tidegate.load.generator import grpc_load

NAME = "mlp"
METHOD = "/inference.GRPCInferenceService/ModelInfer"
_MESSAGES = 16
_WARM_UP = 1.0


@dataclass(frozen=True, slots=True)
class Load:
    """A closed loop: connections, and calls in flight on each."""

    connections: int
    in_flight: int

    def __str__(self) -> str:
        return f"{self.connections} x {self.in_flight}"


@dataclass(frozen=True, slots=True)
class Round:
    """What one round of one server gave."""

    rate: float
    """Calls per second."""
    p50: float
    """Milliseconds."""
    p99: float
    cpu: float
    """Microseconds of the server's CPU time per call, all its processes."""


def messages() -> list[bytes]:
    """Return ModelInfer requests of one row each; the id says which row."""
    encoded = []
    for index, row in enumerate(model.rows(_MESSAGES)):
        request = service_pb2.ModelInferRequest(model_name=NAME, id=str(index))
        request.inputs.add(name=model.INPUT, datatype="FP32", shape=(1, model.WIDTH))
        request.raw_input_contents.append(row.tobytes())
        encoded.append(request.SerializeToString())
    return encoded


def checker() -> Callable[[bytes], bool]:
    """Return a check of a response against numpy; equal bytes are looked at once."""
    wanted = model.expected(model.rows(_MESSAGES))
    seen: dict[bytes, bool] = {}

    def examine(message: bytes) -> bool:
        response = service_pb2.ModelInferResponse.FromString(message)
        if len(response.outputs) != 1 or list(response.outputs[0].shape) != [1, model.CLASSES]:
            return False
        output = response.outputs[0]
        (raw,) = response.raw_output_contents or (b"",)
        got = np.frombuffer(raw, np.float32) if output.datatype == "FP32" else np.empty(0)
        row = wanted[int(response.id)]
        return got.shape == row.shape and np.allclose(got, row, rtol=1e-4, atol=1e-5)

    def check(message: bytes) -> bool:
        verdict = seen.get(message)
        if verdict is None:
            verdict = seen[message] = examine(message)
        return verdict

    return check


async def measure(server: Server, load: Load, seconds: float) -> Round:
    """Drive a server for one round.

    Raises:
        SystemExit: a call failed or an answer was wrong, so there is nothing to compare.
    """
    before = server.cpu_seconds()
    result = await grpc_load(
        server.target,
        METHOD,
        messages(),
        connections=load.connections,
        in_flight=load.in_flight,
        seconds=seconds,
        check=checker(),
    )
    cpu = server.cpu_seconds() - before
    if result.failed or not result.ok:
        raise SystemExit(f"{server.name}, {load}: {result}\n{result.failures[:3]}")
    return Round(result.rate, result.latency(50), result.latency(99), cpu / result.ok * 1e6)


async def compare(
    contestants: Sequence[Server], loads: Sequence[Load], rounds: int, seconds: float
) -> dict[str, dict[str, list[Round]]]:
    """Return the rounds by load and server; the servers take turns."""
    console = Console(stderr=True)
    figures: dict[str, dict[str, list[Round]]] = {}
    for load in loads:
        table = figures[str(load)] = {server.name: [] for server in contestants}
        for server in contestants:
            await measure(server, load, min(seconds, _WARM_UP))
        for number in range(rounds):
            for server in contestants:
                table[server.name].append(await measure(server, load, seconds))
            rates = (f"{name} {done[-1].rate:,.0f}/s" for name, done in table.items())
            console.print(f"{load}, round {number + 1} of {rounds}: {', '.join(rates)}")
    return figures


def median(rounds: Sequence[Round]) -> Round:
    """Return the median of each figure by itself."""
    columns = zip(*(asdict(one).values() for one in rounds), strict=True)
    return Round(*(statistics.median(column) for column in columns))


def show(
    figures: dict[str, dict[str, list[Round]]], subject: str, machine: dict[str, str]
) -> None:
    """Print the tables."""
    console = Console()
    console.print(", ".join(f"{name} {value}" for name, value in machine.items()))
    for load, table in figures.items():
        view = Table(title=f"tiny MLP, V2 gRPC, connections x in flight: {load}")
        view.add_column("server")
        for heading in (
            "calls/s",
            "lowest",
            "highest",
            "p50 ms",
            "p99 ms",
            "CPU us/call",
            "ratio",
        ):
            view.add_column(heading, justify="right")
        ours = [one.rate for one in table[subject]]
        for name, rounds in table.items():
            middle, rates = median(rounds), [one.rate for one in rounds]
            ratios = (mine / theirs for mine, theirs in zip(ours, rates, strict=True))
            ratio = "" if name == subject else f"{statistics.median(ratios):.2f}"
            view.add_row(
                name,
                *(f"{rate:,.0f}" for rate in (middle.rate, min(rates), max(rates))),
                *(f"{value:.2f}" for value in (middle.p50, middle.p99)),
                f"{middle.cpu:.1f}",
                ratio,
            )
        console.print(view)
    console.print(f"ratio: how many times as many calls per second {subject} answered")


async def run(given: argparse.Namespace) -> int:
    """Start the servers, compare them, print and write the figures."""
    machine = hardware.describe()
    loads = [Load(*map(int, pair.split("x"))) for pair in given.loads]
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tg-")))
        path = folder / "models" / NAME / "1" / "model.onnx"
        model.save(path)
        enter = stack.enter_async_context
        contestants = [
            await enter(servers.reference(path, NAME, loop)) for loop in given.reference
        ]
        options = ["--envoy-threads", str(given.envoy_threads)] if given.envoy_threads else []
        subject = await enter(servers.tidegate(path.parents[2], folder / "run", options))
        contestants.append(subject)
        figures = await compare(contestants, loads, given.rounds, given.seconds)
    show(figures, subject.name, machine)
    if given.json:
        document = {
            "machine": machine,
            "rounds": {
                load: {name: [asdict(one) for one in rounds] for name, rounds in table.items()}
                for load, table in figures.items()
            },
        }
        given.json.write_text(json.dumps(document, indent=2) + "\n")
    return 0


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m bench.overhead", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each round")
    parser.add_argument("--loads", nargs="+", default=["8x32", "8x8", "1x1"], metavar="CxM")
    parser.add_argument(
        "--reference", nargs="+", choices=("uvloop", "asyncio"), default=["uvloop", "asyncio"]
    )
    parser.add_argument("--envoy-threads", type=int, help="default: that of tidegate serve")
    parser.add_argument("--json", type=Path, help="write all rounds there")
    return uvloop.run(run(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
