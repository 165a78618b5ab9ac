from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from tidegate.errors import InferenceFailed, InsufficientMemory
from tidegate.runtimes.batch_dimension import with_batch
from tidegate.runtimes.samples import Samples
from tidegate.types import Array, DType, Signature, TensorSpec

Shape = tuple[int | str | None, ...] | None
Compute = Callable[..., Sequence[Array]]


def named(
    compute: Compute,
    inputs: Sequence[Shape],
    outputs: Sequence[Shape],
    samples: Samples | None = None,
) -> tuple[list[Shape], list[Shape]]:
    """The shapes of inputs and outputs afterwards."""
    signature = Signature(
        tuple(TensorSpec(f"x{i}", DType.FP32, shape) for i, shape in enumerate(inputs)),
        tuple(TensorSpec(f"y{i}", DType.FP32, shape) for i, shape in enumerate(outputs)),
    )

    def run(given: dict[str, Array], names: Sequence[str]) -> dict[str, Array]:
        try:
            return dict(zip(names, map(np.asarray, compute(*given.values()))))
        except ValueError as error:
            raise InferenceFailed(str(error)) from error

    found = with_batch(signature, run, samples or Samples())
    return [s.shape for s in found.inputs], [s.shape for s in found.outputs]


def test_one_input_and_outputs_as_long() -> None:
    assert named(
        lambda x: (x, x.sum(), x[:1], np.concatenate([x, x])),
        [(None, 3)],
        [(None, 3), (), (None, 3), (None, 3)],
    ) == ([("batch", 3)], [("batch", 3), (), (None, 3), (None, 3)])


def test_inputs_that_must_be_equally_long() -> None:
    both = [(None, None), (None, 4)]
    concatenated = named(lambda a, b: [np.concatenate([a, b], 1)], both, [(None, None)])
    assert concatenated == ([("batch", None), ("batch", 4)], [("batch", None)])


@pytest.mark.parametrize(
    "compute",
    [
        lambda a, b: [a @ b.T],  # any lengths
        lambda a, b: [a + b],  # one row for all
    ],
)
def test_inputs_that_may_differ(compute: Compute) -> None:
    both: list[Shape] = [(None, 4), (None, 4)]
    assert named(compute, both, [(None, None)]) == (both, [(None, None)])


def test_what_cannot_be_told() -> None:
    def fails(x: Array) -> Sequence[Array]:
        raise ValueError("real images alone")

    assert named(fails, [(None,)], [(None,)]) == ([(None,)], [(None,)])
    for shape in ((2, 4), (), None, ("n", 4)):
        assert named(lambda x: [x], [shape], [(None,)]) == ([shape], [(None,)])
    fixed: list[Shape] = [(None, 4), (1, 4)]
    assert named(lambda a, b: [a], fixed, [(None, 4)]) == (fixed, [(None, 4)])


def test_the_operators_sample_is_used() -> None:
    def picky(x: Array) -> Sequence[Array]:
        if not (x > 5).all():
            raise ValueError("too small")
        return [x]

    sample = Samples({"x0": np.full((1, 4), 9, np.float32)})
    assert named(picky, [(None, 4)], [(None, 4)], sample) == ([("batch", 4)], [("batch", 4)])


def test_too_little_memory_is_not_kept_back() -> None:
    def greedy(x: Array) -> Sequence[Array]:
        raise InsufficientMemory("no room")

    with pytest.raises(InsufficientMemory):
        named(greedy, [(None,)], [(None,)])
