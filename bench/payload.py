"""Large tensors through the server: 4.8 MB of FP32 in each of the protocol's encodings.

    python -m bench.payload [--rounds 3] [--seconds 4] [--json FILE]

Eight images, FP32 [8, 3, 224, 224], a request. ``mean`` answers with three numbers for each image,
``echo`` with the images. The models do next to nothing, so this is what reading, checking, joining
and writing cost. Megabytes are those of the tensor, whatever an encoding makes of them. The load
generator only moves bytes that were encoded before.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx
import uvloop
from onnx import TensorProto, helper
from rich.console import Console
from rich.table import Table

from bench import hardware, servers
from bench.servers import Server
from tidegate.load.generator import grpc_load, rest_load
from tidegate.load.requests import Encoding, Request, encode, random_inputs
from tidegate.load.target import infer_path
from tidegate.protocols.open_inference import MODEL_INFER
from tidegate.types import DType, Signature, TensorSpec

_ROWS, _SHAPE = 8, (3, 224, 224)
_CALLERS = 2
_TENSOR_MB = _ROWS * 3 * 224 * 224 * 4 / 1e6


@dataclass(frozen=True, slots=True)
class Round:
    """What one round of one encoding gave."""

    rate: float
    """Calls per second."""
    p50: float
    """Milliseconds."""
    p99: float
    cpu: float
    """Milliseconds of CPU time of all processes of the node per call."""


def save(repository: Path) -> None:
    """Write the models ``mean`` and ``echo``."""
    batch: list[str | int] = ["batch", *_SHAPE]
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, batch)
    for name, node, shape in (
        ("mean", helper.make_node("ReduceMean", ["x"], ["y"], axes=[2, 3], keepdims=0), batch[:2]),
        ("echo", helper.make_node("Identity", ["x"], ["y"]), batch),
    ):
        answer = helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)
        graph = helper.make_graph([node], name, [given], [answer])
        opset = [helper.make_opsetid("", 17)]
        model = helper.make_model(graph, opset_imports=opset, ir_version=9)
        path = repository / name / "1" / "model.onnx"
        path.parent.mkdir(parents=True)
        onnx.save(model, path)


def requests(model: str) -> dict[Encoding, Request]:
    """Return one request in every encoding."""
    signature = Signature((TensorSpec("x", DType.FP32, (None, *_SHAPE)),), ())
    tensors = random_inputs(signature, _ROWS, {})[0]
    return {encoding: encode(encoding, model, "", tensors) for encoding in Encoding}


async def measure(
    server: Server, model: str, encoding: Encoding, request: Request, seconds: float
) -> Round:
    """Drive the server for one round.

    Raises:
        SystemExit: a call failed.
    """
    before = server.cpu_seconds()
    if encoding.grpc:
        result = await grpc_load(
            server.target, MODEL_INFER, request.body, connections=_CALLERS, in_flight=1,
            seconds=seconds,
        )  # fmt: skip
    else:
        result = await rest_load(
            server.target, infer_path(model, ""), request.body, connections=_CALLERS,
            seconds=seconds, headers=request.headers,
        )  # fmt: skip
    if result.failed or not result.ok:
        raise SystemExit(f"{model} {encoding.value}: {result}\n{result.failures[:3]}")
    cpu = (server.cpu_seconds() - before) / result.ok * 1e3
    return Round(result.rate, result.latency(50), result.latency(99), cpu)


async def compare(rounds: int, seconds: float) -> dict[str, list[Round]]:
    """Return the rounds by model and encoding, which take turns."""
    figures: dict[str, list[Round]] = {}
    with tempfile.TemporaryDirectory(prefix="tg-") as folder:
        repository = Path(folder, "models")
        save(repository)
        async with servers.tidegate(repository, Path(folder, "run")) as server:
            for number in range(rounds + 1):
                for model in ("mean", "echo"):
                    for encoding, request in requests(model).items():
                        # The first one warms up.
                        lasting = seconds if number else min(seconds, 1.0)
                        one = await measure(server, model, encoding, request, lasting)
                        if number:
                            figures.setdefault(f"{model} {encoding.value}", []).append(one)
    return figures


def show(console: Console, figures: dict[str, list[Round]]) -> None:
    """Print the table; each figure is the median of the rounds."""
    table = Table(title=f"{_TENSOR_MB:.1f} MB of FP32 a call, {_CALLERS} calls in flight")
    table.add_column("model and encoding")
    for heading in ("calls/s", "lowest", "highest", "MB/s", "p50 ms", "p99 ms", "CPU ms/call"):
        table.add_column(heading, justify="right")
    for name, rounds in figures.items():
        rates = [one.rate for one in rounds]
        middle = statistics.median(rates)
        table.add_row(
            name,
            *(f"{rate:.1f}" for rate in (middle, min(rates), max(rates))),
            f"{middle * _TENSOR_MB:,.0f}",
            *(
                f"{statistics.median(c):.1f}"
                for c in zip(*((o.p50, o.p99, o.cpu) for o in rounds))
            ),
        )
    console.print(table)


async def run(given: argparse.Namespace) -> int:
    """Measure, print and write."""
    machine = hardware.describe()
    figures = await compare(given.rounds, given.seconds)
    console = Console()
    show(console, figures)
    console.print(", ".join(f"{key} {value}" for key, value in machine.items()))
    if given.json:
        rounds = {name: [asdict(one) for one in done] for name, done in figures.items()}
        given.json.write_text(json.dumps({"machine": machine, "rounds": rounds}, indent=2) + "\n")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m bench.payload", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each round")
    parser.add_argument("--json", type=Path, help="write all rounds there")
    return uvloop.run(run(parser.parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(main())
