"""Latency over the offered rate: ``tidegate bench`` on a node of one model, with its plot.

    python -m bench.latency [--model mlp] [--rates 500,1000,...] [--plot FILE] [--json FILE]

The plot in the documentation is made with ``--plot docs/images/latency.svg``.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import uvloop

from bench import servers, workloads

_RATES = "500,1000,2000,5000,10000,20000,30000,40000,50000"


async def run(given: argparse.Namespace) -> int:
    """Serve the model and run the command; return its exit status."""
    with tempfile.TemporaryDirectory(prefix="tg-") as name:
        folder = Path(name)
        workload = workloads.make(given.model, folder)
        async with servers.tidegate(folder / "models", folder / "run") as server:
            command = [sys.executable, "-m", "tidegate.cli", "bench", server.target]
            row = folder / "row.npz"
            np.savez(row, allow_pickle=False, **{k: v[:1] for k, v in workload.rows.items()})
            command += ["--model", given.model, "--input", str(row)]
            command += ["--rate", given.rates, "--duration", str(given.seconds)]
            command += ["--concurrency", "256"]
            for option, file in (("--plot", given.plot), ("--output", given.json)):
                if file is not None:
                    command += [option, str(file)]
            process = await asyncio.create_subprocess_exec(*command)
            return await process.wait()


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m bench.latency", description=__doc__)
    parser.add_argument("--model", choices=workloads.NAMES, default="mlp")
    parser.add_argument("--rates", default=_RATES, help="calls a second, with commas")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each rate")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--json", type=Path)
    return uvloop.run(run(parser.parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(main())
