"""Tries a Caffe model in a process of its own: OpenCV may die of a damaged one.

``python -m tidegate.runtimes.caffe_trial`` reads a :class:`Task` as JSON and writes a line of JSON
for each run: the types and shapes of the outputs, or the error.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil

from tidegate.errors import InsufficientMemory, InvalidModel
from tidegate.types import Array

_SECONDS = 120.0
_NO_MEMORY = -4
"""``cv::Error::StsNoMem``."""
Shapes = tuple[tuple[int, ...], ...]
Place = tuple[str, int]
"""A layer, and which of its outputs."""


@dataclass(frozen=True, slots=True)
class Task:
    """What is to be tried."""

    prototxt: str
    weights: str
    inputs: Sequence[str]
    outputs: Sequence[Place]
    runs: Sequence[Shapes]
    """The shapes of the inputs in each run."""
    threads: int


@dataclass(frozen=True, slots=True)
class Seen:
    """An output of a run."""

    dtype: str
    """numpy's name."""
    shape: tuple[int, ...]


def try_out(task: Task) -> list[list[Seen] | None]:
    """Load the model and run it on zeros, in another process.

    Returns:
        For each run its outputs; ``None`` for one but the first that did not come to its end.

    Raises:
        InvalidModel: OpenCV refuses the model or dies of it, or does not come to an end.
        InsufficientMemory: it does not fit.
    """
    command = [sys.executable, "-m", "tidegate.runtimes.caffe_trial"]
    try:
        done = subprocess.run(
            command,
            input=json.dumps(asdict(task)).encode(),
            capture_output=True,
            timeout=_SECONDS,
            check=False,
            start_new_session=True,
        )
    except subprocess.TimeoutExpired as error:
        raise InvalidModel(f"OpenCV did not load and run it in {_SECONDS:g} s") from error
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    if not lines:
        raise InvalidModel(_death(done.returncode, done.stderr.decode("utf-8", "replace")))
    if (failed := lines[0].get("error")) is not None:
        if lines[0]["memory"]:
            raise InsufficientMemory(failed)
        names = f"{Path(task.weights).name} with {Path(task.prototxt).name}"
        raise InvalidModel(f"OpenCV refuses {names}: {failed}")
    runs = [_seen(each) for each in lines]
    return runs + [None] * (len(task.runs) - len(runs))


def open_net(prototxt: str, weights: str) -> Any:
    """Load a net.

    Raises:
        cv2.error: OpenCV refuses it.
    """
    if (prototxt + weights).isprintable():
        return cv2.dnn.readNetFromCaffe(prototxt, weights)
    # OpenCV cannot open files whose names are not UTF-8; this takes the file's size more memory.
    return cv2.dnn.readNetFromCaffe(
        np.fromfile(prototxt, np.uint8), np.fromfile(weights, np.uint8)
    )


def run_net(
    net: Any, inputs: Sequence[str], arrays: Sequence[Array], outputs: Sequence[Place]
) -> list[Array]:
    """Run a net once.

    Raises:
        cv2.error: OpenCV cannot.
    """
    for name, array in zip(inputs, arrays):
        net.setInput(array, name)
    layers = list(dict.fromkeys(layer for layer, _ in outputs))
    found = dict(zip(layers, net.forwardAndRetrieve(layers)))
    return [found[layer][place] for layer, place in outputs]


def words(error: BaseException) -> str:
    """Return what OpenCV says of an error, without the places in its sources."""
    return " ".join(str(getattr(error, "err", None) or error).split())[:500]


def is_memory(error: BaseException) -> bool:
    """Whether it is for want of memory."""
    return isinstance(error, MemoryError) or getattr(error, "code", 0) == _NO_MEMORY


def _seen(line: dict[str, Any]) -> list[Seen] | None:
    if "outputs" not in line:
        return None
    return [Seen(dtype, tuple(shape)) for dtype, shape in line["outputs"]]


def _death(status: int, said: str) -> str:
    told = said.strip().splitlines()[-1:]
    how = f"ended with status {status}"
    if status < 0:
        with contextlib.suppress(ValueError):
            how = f"died of {signal.Signals(-status).name}"
    return (
        f"OpenCV {how} when it tried the model: its prototxt and its weights are damaged, or do "
        f"not belong together{': ' if told else ''}{''.join(told)[:300]}"
    )


def _main() -> None:
    _yield_memory()
    told = json.loads(sys.stdin.buffer.read())
    task = Task(**told)
    cv2.setNumThreads(task.threads)
    net = None
    for shapes in task.runs:
        try:
            net = net or open_net(task.prototxt, task.weights)
            arrays = [np.zeros(shape, np.float32) for shape in shapes]
            found = run_net(net, task.inputs, arrays, task.outputs)
            said: dict[str, Any] = {"outputs": [(a.dtype.name, a.shape) for a in found]}
        except (cv2.error, MemoryError, IndexError, OSError) as error:
            said = {"error": words(error), "memory": is_memory(error)}
        sys.stdout.write(json.dumps(said) + "\n")
        sys.stdout.flush()


def _yield_memory() -> None:
    """Let this process be the one that has no memory, not the machine."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    available = psutil.virtual_memory().available
    soft, _ = resource.getrlimit(resource.RLIMIT_DATA)
    if soft == resource.RLIM_INFINITY or soft > available:
        resource.setrlimit(resource.RLIMIT_DATA, (available, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


if __name__ == "__main__":
    _main()
    os._exit(0)
