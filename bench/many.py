"""Many small models on one node: how soon they are ready, and what they cost at rest.

    python -m bench.many [--models 20] [--idle 10] [--json FILE]

Memory is counted twice: PSS shares what processes have in common among them, so that its sum is
what the node takes; USS is what ending that one process would give back.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import uvloop
from rich.console import Console
from rich.table import Table

from bench import hardware, servers, workloads
from bench.servers import Server
from tidegate.load.generator import grpc_load
from tidegate.load.requests import Encoding, encode
from tidegate.protocols.open_inference import MODEL_INFER
from tidegate.types import Tensor

_MIB = 2**20


def parts(server: Server) -> dict[str, list[psutil.Process]]:
    """Sort a node's processes: its replicas, its edge and its controller."""
    found: dict[str, list[psutil.Process]] = {"replica": [], "edge": [], "controller": []}
    for process in server.processes:
        line = process.cmdline()
        if "tidegate.replica" in line:
            found["replica"].append(process)
        else:
            found["edge" if "envoy" in process.name() else "controller"].append(process)
    return found


def memory(process: psutil.Process) -> tuple[float, float]:
    """Return PSS and USS in MiB; where the system does not tell PSS, its RSS."""
    info = process.memory_full_info()
    return getattr(info, "pss", info.rss) / _MIB, info.uss / _MIB


async def _answers(server: Server, names: Sequence[str], folder: Path) -> None:
    """Call every model once.

    Raises:
        SystemExit: one did not answer.
    """
    row = workloads.make("mlp", folder).rows
    tensors = [Tensor.of(name, array[:1]) for name, array in row.items()]
    bodies = [encode(Encoding.RAW, name, "", tensors).body for name in names]
    result = await grpc_load(
        server.target, MODEL_INFER, bodies, connections=1, in_flight=1, calls=len(bodies)
    )
    if result.failed:
        raise SystemExit(f"{result}\n{result.failures[:3]}")


async def measure(count: int, idle: float) -> dict[str, object]:
    """Start a node of ``count`` models; return the figures."""
    with tempfile.TemporaryDirectory(prefix="tg-") as name:
        folder = Path(name)
        original = workloads.make("mlp", folder / "one").path
        names = [f"small{number:02}" for number in range(count)]
        for one in names:
            path = folder / "models" / one / "1" / "model.onnx"
            path.parent.mkdir(parents=True)
            shutil.copyfile(original, path)
        started = time.monotonic()
        async with servers.tidegate(folder / "models", folder / "run") as server:
            ready = time.monotonic() - started
            await _answers(server, names, folder / "one")
            found = parts(server)
            sizes = {kind: [memory(p) for p in processes] for kind, processes in found.items()}
            before = {kind: _cpu(processes) for kind, processes in found.items()}
            await asyncio.sleep(idle)
            used = {kind: _cpu(found[kind]) - before[kind] for kind in found}
    return {
        "models": count,
        "ready_seconds": ready,
        "idle_seconds": idle,
        "processes": {kind: len(each) for kind, each in sizes.items()},
        "pss_mib": {kind: [pss for pss, _ in each] for kind, each in sizes.items()},
        "uss_mib": {kind: [uss for _, uss in each] for kind, each in sizes.items()},
        "idle_cpu_percent": {kind: 100 * seconds / idle for kind, seconds in used.items()},
    }


def _cpu(processes: Sequence[psutil.Process]) -> float:
    times = [process.cpu_times() for process in processes]
    return sum(one.user + one.system for one in times)


def show(console: Console, figures: dict[str, object]) -> None:
    """Print the figures."""
    console.print(f"{figures['models']} models, all ready {figures['ready_seconds']:.1f} s after")
    table = Table(title="medians of each kind's processes")
    table.add_column("processes")
    for heading in ("number", "PSS MiB", "USS MiB", "PSS in all, MiB", "idle CPU in all"):
        table.add_column(heading, justify="right")
    columns = [figures[key] for key in ("processes", "pss_mib", "uss_mib", "idle_cpu_percent")]
    counts, pss, uss, idle = (column for column in columns if isinstance(column, dict))
    for kind, count in counts.items():
        table.add_row(
            kind,
            str(count),
            f"{statistics.median(pss[kind]):.1f}",
            f"{statistics.median(uss[kind]):.1f}",
            f"{sum(pss[kind]):.0f}",
            f"{idle[kind]:.2f} % of a core",
        )
    console.print(table)


async def run(given: argparse.Namespace) -> int:
    """Measure, print and write."""
    machine = hardware.describe()
    figures = await measure(given.models, given.idle)
    console = Console()
    show(console, figures)
    console.print(", ".join(f"{key} {value}" for key, value in machine.items()))
    if given.json:
        given.json.write_text(json.dumps({"machine": machine, **figures}, indent=2) + "\n")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m bench.many", description=__doc__)
    parser.add_argument("--models", type=int, default=20)
    parser.add_argument("--idle", type=float, default=10.0, help="seconds to watch it rest")
    parser.add_argument("--json", type=Path, help="write the figures there")
    return uvloop.run(run(parser.parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(main())
