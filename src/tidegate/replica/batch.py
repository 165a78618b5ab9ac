"""Runs a batch: joins it, runs the model, splits what came out, and finds the culprit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tidegate.errors import InferenceFailed, InsufficientMemory, TidegateError
from tidegate.replica.binding import Bound
from tidegate.runtimes.interface import Model
from tidegate.types import Array

Outcome = dict[str, Array] | BaseException
"""What came of one request of a batch: its outputs by name, or why there are none."""


class Run(NamedTuple):
    """One successful run of the model: so many rows of so many requests took so many seconds."""

    rows: int
    requests: int
    seconds: float
    joining: float = 0.0
    """Seconds in which the inputs of the requests were joined."""
    splitting: float = 0.0
    """Seconds in which the outputs were split."""


@dataclass(slots=True)
class Ran:
    """What came of a batch: an outcome for each request, in order, and what was learnt."""

    outcomes: list[Outcome]
    runs: list[Run]
    began: float = 0.0
    clamp: int | None = None
    """Run no batch of more rows than this: a larger one did not fit into memory."""


_NOT_RUN: Outcome = {}
"""Holds an outcome's place."""


class _Call(NamedTuple):
    """How to run the model under one of its signatures."""

    run: Callable[[Mapping[str, Array], Sequence[str]], dict[str, Array]]
    inputs: tuple[str, ...]


class BatchRunner:
    """Runs batches on a model, in the thread that calls it."""

    def __init__(self, model: Model, time: Callable[[], float]) -> None:
        self._model = model
        self._time = time
        self._calls = {
            name: _Call(model.under(name).run, tuple(spec.name for spec in signature.inputs))
            for name, signature in model.signatures.items()
        }
        self._calls[""] = next(iter(self._calls.values()))

    def attach(self) -> None:
        """Make the thread that calls this ready to run batches."""
        self._model.attach()

    def run(self, batch: Sequence[Bound]) -> Ran:
        """Run ``batch``, requests of one group; it never raises.

        A batch that raises is halved until only the culprit fails (bisection): its
        neighbours get their answers.
        """
        ran = Ran([_NOT_RUN] * len(batch), [], self._time())
        self._run(batch, 0, ran)
        return ran

    def _run(self, batch: Sequence[Bound], offset: int, ran: Ran) -> None:
        try:
            ran.outcomes[offset : offset + len(batch)] = self._run_once(batch, ran)
        except BaseException as error:
            if len(batch) == 1:
                ran.outcomes[offset] = _as_ours(error)
                return
            too_large = isinstance(error, (InsufficientMemory, MemoryError))
            middle = len(batch) // 2
            self._run(batch[:middle], offset, ran)
            self._run(batch[middle:], offset + middle, ran)
            # A request that does not fit alone says nothing of how many others fit.
            if too_large and not any(
                isinstance(outcome, InsufficientMemory)
                for outcome in ran.outcomes[offset : offset + len(batch)]
            ):
                rows = sum(bound.rows for bound in batch)
                ran.clamp = max(1, min(ran.clamp or rows, rows // 2))

    def _run_once(self, batch: Sequence[Bound], ran: Ran) -> list[Outcome]:
        first = batch[0]
        run, inputs = self._calls[first.signature]
        if len(batch) == 1:
            started = self._time()
            outputs = run(dict(zip(inputs, first.inputs)), first.outputs)
            ran.runs.append(Run(first.rows, 1, self._time() - started))
            return [outputs]
        began = self._time()
        names = first.outputs
        rows = 0
        for bound in batch:
            rows += len(bound.inputs[0])
            if bound.outputs != names:
                names = tuple(dict.fromkeys((*names, *bound.outputs)))
        columns = zip(*[bound.inputs for bound in batch])
        joined = {name: np.concatenate(column) for name, column in zip(inputs, columns)}
        started = self._time()
        outputs = run(joined, names)
        ended = self._time()
        for name, array in outputs.items():
            if array.ndim == 0 or array.shape[0] != rows:
                raise InferenceFailed(
                    f"the output {name!r} has the shape {list(array.shape)} for a batch of "
                    f"{rows} rows: set batching.enabled to false in model.yaml"
                )
        outcomes = _split(batch, outputs)
        ran.runs.append(
            Run(rows, len(batch), ended - started, started - began, self._time() - ended)
        )
        return outcomes


def _split(batch: Sequence[Bound], outputs: dict[str, Array]) -> list[Outcome]:
    outcomes: list[Outcome] = []
    start = 0
    for bound in batch:
        stop = start + len(bound.inputs[0])
        # No comprehension: Python calls a function for each.
        outcome: dict[str, Array] = {}
        for name in bound.outputs:
            outcome[name] = outputs[name][start:stop]
        outcomes.append(outcome)
        start = stop
    return outcomes


def _as_ours(error: BaseException) -> TidegateError:
    if isinstance(error, TidegateError):
        return error
    if isinstance(error, MemoryError):
        return InsufficientMemory(f"the model ran out of memory: {error}")
    failed = InferenceFailed(f"the model raised {type(error).__name__}: {error}")
    failed.__cause__ = error
    return failed
