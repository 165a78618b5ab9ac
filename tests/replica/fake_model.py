"""A model whose every run is in the hands of the test."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tidegate.runtimes.interface import OneSignature
from tidegate.types import (
    Array,
    DType,
    InferRequest,
    RequestedOutput,
    Signature,
    Tensor,
    TensorSpec,
)

PLAIN = Signature(
    (TensorSpec("a", DType.FP32, ("n", "w")), TensorSpec("b", DType.FP32, ("n", "w"))),
    (TensorSpec("total", DType.FP32, ("n", "w")), TensorSpec("twice", DType.FP32, ("n", "w"))),
)


class FakeModel(OneSignature):
    """``total = a + b``, ``twice = 2 a``; ``meddle`` sees each run first, and may raise.

    With ``hold()`` each run waits, after it has set ``entered``, until ``release()``.
    """

    platform = "fake"
    device = "cpu"
    most_rows: int | None = None

    def __init__(
        self,
        meddle: Callable[[Array], None] | None = None,
        signature: Signature = PLAIN,
    ) -> None:
        self.signature = signature
        self.meddle = meddle
        self.runs: list[Array] = []
        """The input ``a`` of each run."""
        self.asked: list[tuple[str, ...]] = []
        self.threads: list[int] = []
        self.entered = threading.Semaphore(0)
        self._may_run = threading.Event()
        self._may_run.set()

    def hold(self) -> None:
        self._may_run.clear()

    def release(self) -> None:
        self._may_run.set()

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        self.runs.append(inputs["a"].copy())
        self.asked.append(tuple(outputs))
        self.threads.append(threading.get_ident())
        self.entered.release()
        assert self._may_run.wait(30)
        if self.meddle is not None:
            self.meddle(inputs["a"])
        results = {"total": inputs["a"] + inputs["b"], "twice": inputs["a"] * 2}
        return {name: results[name] for name in outputs}

    def attach(self) -> None:
        pass

    def close(self) -> None:
        pass


def ask(value: float, rows: int = 1, width: int = 2, outputs: Sequence[str] = ()) -> InferRequest:
    """A request whose every ``a`` is ``value`` and every ``b`` is 0.5."""
    return InferRequest(
        "m",
        inputs=(
            Tensor.of("a", np.full((rows, width), value, np.float32)),
            Tensor.of("b", np.full((rows, width), 0.5, np.float32)),
        ),
        outputs=tuple(RequestedOutput(name) for name in outputs),
    )
