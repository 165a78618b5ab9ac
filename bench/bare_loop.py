"""The other yardstick: the runtime alone, in a loop, in a process of its own.

No server, no queue, nothing but ``InferenceSession.run`` on one batch after another: what the
machine can do with this model. It runs what standard input asks for, a line ``ROWS SECONDS PAUSE``
at a time, and answers each with a line of JSON.

    python -m bench.bare_loop MODEL.onnx INPUTS.npz --threads 2
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import psutil


@dataclass(frozen=True, slots=True)
class Figures:
    """What a loop of one batch size gave."""

    rows: int
    runs: int
    seconds: float
    p50: float
    """Milliseconds for one run."""

    @property
    def rate(self) -> float:
        """Rows per second."""
        return self.rows * self.runs / self.seconds


class BareLoop:
    """The process, seen from the one that asks."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._measured = psutil.Process(process.pid)

    def cpu_seconds(self) -> float:
        """Return the CPU time of the process so far."""
        times = self._measured.cpu_times()
        return times.user + times.system

    async def run(self, rows: int, seconds: float, pause: float = 0.0) -> Figures:
        """Run batches of ``rows`` for ``seconds``, with ``pause`` seconds between runs."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{rows} {seconds} {pause}\n".encode())
        line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError("the bare loop ended; its error is above")
        return Figures(**json.loads(line))

    async def best_batch(self, sizes: tuple[int, ...], seconds: float) -> dict[int, Figures]:
        """Run each size for ``seconds``; the best one has the most rows per second."""
        return {rows: await self.run(rows, seconds) for rows in sizes}


@contextlib.asynccontextmanager
async def bare_loop(model: Path, inputs: Path, threads: int) -> AsyncIterator[BareLoop]:
    """Run the loop's process."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.bare_loop", str(model), str(inputs),
        "--threads", str(threads), cwd=Path(__file__).parent.parent,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        yield BareLoop(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()


def main() -> None:
    """Answer lines until there are none."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("inputs", help="rows of each input, by name")
    parser.add_argument("--threads", type=int, required=True)
    given = parser.parse_args()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = given.threads
    session = onnxruntime.InferenceSession(
        given.model, options, providers=["CPUExecutionProvider"]
    )
    with np.load(given.inputs) as file:
        rows = {name: file[name] for name in file.files}
    for line in sys.stdin:
        size, seconds, pause = line.split()
        batch = {
            name: np.resize(array, (int(size), *array.shape[1:])) for name, array in rows.items()
        }
        session.run(None, batch)
        times = []
        start = end = time.perf_counter()
        while end - start < float(seconds):
            if float(pause):
                time.sleep(float(pause))
            before = time.perf_counter()
            session.run(None, batch)
            end = time.perf_counter()
            times.append(end - before)
        p50 = float(np.median(times)) * 1e3
        print(
            json.dumps({"rows": int(size), "runs": len(times), "seconds": end - start, "p50": p50})
        )
        sys.stdout.flush()


if __name__ == "__main__":
    main()
