"""One network on every runtime: ResNet-50 on TensorFlow, ONNX Runtime and OpenVINO.

    python -m bench.frameworks [--rounds 3] [--seconds 5] [--json FILE]

The same seeded weights, on one node, each with all cores for its threads, in rounds that take
turns: while one is called the others rest. Callers are closed loops of one image each, and
requests are batched as by default. Every answer is compared with those of ONNX Runtime without a
server. A measurement waits for others to leave the machine alone, and is repeated if they did not.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import uvloop
from rich.console import Console
from rich.table import Table

from bench import hardware, servers, workloads
from bench.servers import Server
from bench.workloads import Workload
from tidegate.load.generator import grpc_load
from tidegate.protocols.open_inference import MODEL_INFER, messages

CLIENTS = (1, 4, 16, 32)
_ATTEMPTS = 4
_PACKAGES = ("tensorflow-cpu", "onnxruntime", "openvino")


@dataclass(frozen=True, slots=True)
class Subject:
    """The network on one runtime."""

    name: str
    settings: str
    """Of model.yaml, beside the threads."""
    tolerance: float
    """The most that a score may differ, as a part of the largest one."""


SUBJECTS = (
    Subject("tensorflow", "runtime: tensorflow", 1e-4),
    Subject("tensorflow-bf16", "runtime: tensorflow\nprecision: bf16", 0.1),
    Subject("onnx", "runtime: onnx", 1e-4),
    Subject("openvino", "runtime: openvino", 1e-4),
    Subject("openvino-bf16", "runtime: openvino\nprecision: bf16", 0.1),
)


def write(subject: Subject, workload: Workload, repository: Path, threads: int) -> None:
    """Add the network to the repository under the name of ``subject``."""
    folder = repository / subject.name
    settings = f"{subject.settings}\nresources: {{threads: {threads}}}\n"
    if "tensorflow" in subject.name:
        command = [sys.executable, "-m", "bench.savedmodel", str(workload.path)]
        quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(
            [*command, str(folder / "1")],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, **quiet},
            cwd=Path(__file__).parents[1],
        )
        if done.returncode:
            raise SystemExit(done.stderr)
    else:
        (folder / "1").mkdir(parents=True)
        (folder / "1/model.onnx").hardlink_to(workload.path)
    (folder / "model.yaml").write_text(settings)


def checker(workload: Workload, subject: Subject, seen: list[float]) -> Callable[[bytes], bool]:
    """Return a check of answers that appends to ``seen`` how far each is off."""
    scale = float(np.max(np.abs(workload.answers)))

    def check(message: bytes) -> bool:
        response = messages.ModelInferResponse.FromString(message)
        got = np.frombuffer(response.raw_output_contents[0], np.float32)
        wanted = workload.answers[int(response.id)]
        if got.shape != wanted.shape:
            return False
        seen.append(float(np.max(np.abs(got - wanted))) / scale)
        return seen[-1] <= subject.tolerance

    return check


async def undisturbed(
    server: Server, workload: Workload, subject: Subject, clients: int, given: argparse.Namespace
) -> dict[str, float]:
    """Measure until others leave the machine alone; return the least disturbed figures."""
    found = []
    for _ in range(_ATTEMPTS):
        await _calm(server, given)
        others = hardware.Others(lambda: time.process_time() + server.cpu_seconds())
        figures = await measure(server, workload, subject, clients, given.seconds)
        found.append(figures | {"others": others.share()})
        if found[-1]["others"] <= given.quiet:
            break
    return min(found, key=lambda figures: figures["others"])


async def _calm(server: Server, given: argparse.Namespace) -> None:
    """Wait for a moment in which others leave the machine alone, but not for ever."""
    deadline = time.monotonic() + given.patience
    while time.monotonic() < deadline:
        others = hardware.Others(lambda: time.process_time() + server.cpu_seconds())
        await asyncio.sleep(0.3)
        if others.share() <= given.quiet:
            return


async def measure(
    server: Server, workload: Workload, subject: Subject, clients: int, seconds: float
) -> dict[str, float]:
    """Let so many clients call for ``seconds``; milliseconds, and answers a second."""
    own = dataclasses.replace(workload, name=subject.name)
    seen: list[float] = []
    result = await grpc_load(
        server.target, MODEL_INFER, own.messages(), connections=clients, in_flight=1,
        seconds=seconds, check=checker(workload, subject, seen),
    )  # fmt: skip
    if result.failed or not result.ok:
        raise SystemExit(f"{subject.name}: {result}\n{result.failures[:3]}, off by {max(seen):g}")
    return {
        "rate": result.rate,
        "p50": result.latency(50),
        "p99": result.latency(99),
        "off by": max(seen),
    }


def here() -> tuple[Subject, ...]:
    """Return the subjects that can run here."""
    return tuple(
        subject
        for subject in SUBJECTS
        if ("tensorflow" not in subject.name or importlib.util.find_spec("tensorflow"))
        and ("bf16" not in subject.name or hardware.has_bf16())
    )


Figures = dict[str, dict[str, list[dict[str, float]]]]
"""By the number of clients and the subject, one entry a round."""


async def run(given: argparse.Namespace) -> int:
    """Measure, print and write."""
    console, progress = Console(), Console(stderr=True)
    machine = hardware.describe(_PACKAGES)
    subjects = here()
    rounds: Figures = {str(n): {s.name: [] for s in subjects} for n in given.clients}
    with tempfile.TemporaryDirectory(prefix="tg-") as folder:
        workload = workloads.make(given.model, Path(folder))
        for subject in subjects:
            write(subject, workload, Path(folder) / "served", int(machine["cores"]))
        async with servers.tidegate(Path(folder) / "served", Path(folder) / "run") as server:
            for subject in subjects:
                await measure(server, workload, subject, max(given.clients), given.seconds)
            for number in range(given.rounds):
                for clients in given.clients:
                    for subject in subjects:
                        found = await undisturbed(server, workload, subject, clients, given)
                        rounds[str(clients)][subject.name].append(found)
                        progress.print(
                            f"round {number + 1}, {clients} clients, {subject.name}: "
                            f"{found['rate']:.1f}/s; others took {found['others']:.0%} of the CPU"
                        )
                _keep(given, {"machine": machine, "model": given.model, "rounds": rounds})
    show(console, given.model, rounds)
    console.print(", ".join(f"{key} {value}" for key, value in machine.items()))
    return 0


def _keep(given: argparse.Namespace, document: dict[str, object]) -> None:
    if given.json:
        given.json.write_text(json.dumps(document, indent=2) + "\n")


def show(console: Console, model: str, rounds: Figures) -> None:
    """Print the table."""
    table = Table(title=f"{model}: one row a request, V2 gRPC, raw tensors")
    for heading in ("clients", "runtime", "rows/s", "p50 ms", "p99 ms", "off by", "others"):
        table.add_column(heading, justify="left" if heading == "runtime" else "right")
    for clients, subjects in rounds.items():
        for name, found in subjects.items():
            rate, p50, p99 = (
                statistics.median(one[key] for one in found) for key in ("rate", "p50", "p99")
            )
            worst = max(one["off by"] for one in found)
            table.add_row(
                clients, name, f"{rate:.1f}", f"{p50:.1f}", f"{p99:.1f}", f"{worst:.1e}",
                f"{statistics.median(one['others'] for one in found):.0%}",
            )  # fmt: skip
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m bench.frameworks", description=__doc__)
    parser.add_argument("model", nargs="?", default="resnet50", choices=("resnet50", "mlp"))
    parser.add_argument("--clients", type=int, nargs="+", default=CLIENTS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument(
        "--quiet", type=float, default=0.15, help="the most that others may take of the CPU"
    )
    parser.add_argument(
        "--patience", type=float, default=10.0, help="seconds to wait for such a moment"
    )
    parser.add_argument("--json", type=Path, help="write all rounds there")
    return uvloop.run(run(parser.parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(main())
