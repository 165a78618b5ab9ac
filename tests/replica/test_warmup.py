from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from tests import models
from tidegate.config.model import Batching
from tidegate.errors import (
    ConfigurationError,
    InferenceFailed,
    InsufficientMemory,
    InvalidModel,
)
from tidegate.replica.warmup import can_batch, common_batch_dimension, warm_up
from tidegate.runtimes.interface import OneSignature, RuntimeOptions
from tidegate.runtimes.onnx import load
from tidegate.runtimes.samples import Samples
from tidegate.types import Array, DType, Signature, TensorSpec

AUTO, ON, OFF = Batching(), Batching(enabled=True), Batching(enabled=False)
ROWS = ("n", 4)


class RowModel(OneSignature):
    """``y = compute(x)`` on FP32 ``[n, 4]`` unless the shape says otherwise."""

    platform = "fake"
    device = "cpu"
    most_rows: int | None = None

    def __init__(
        self,
        compute: Callable[[Array], Array],
        shape: tuple[int | str | None, ...] | None = ROWS,
        out: tuple[int | str | None, ...] | None = ROWS,
    ) -> None:
        self._compute = compute
        self.runs = 0
        self.signature = Signature(
            (TensorSpec("x", DType.FP32, shape),), (TensorSpec("y", DType.FP32, out),)
        )

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        self.runs += 1
        return {name: self._compute(inputs["x"]) for name in outputs}

    def attach(self) -> None:
        pass

    def close(self) -> None:
        pass


def softmax_in_training_mode(x: Array) -> Array:
    """A classifier of a thousand classes that normalizes over the batch."""
    logits = np.repeat(x - x.mean(axis=0), 250, axis=1)
    powers = np.exp(logits)
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def noisy(x: Array) -> Array:
    """Kernels differ with the batch's size, in the last bits."""
    return np.asarray(x * (1 + len(x) * 1e-6), np.float32)


def fails(x: Array) -> Array:
    raise InferenceFailed("needs real input")


@pytest.mark.parametrize(
    ("compute", "expected"),
    [
        (lambda x: x * 2, True),
        (noisy, True),
        (lambda x: x * np.nan, True),
        (lambda x: x / 0 * np.inf, True),
        (lambda x: (x * 10).astype(np.int64), True),
        (lambda x: x - x.mean(axis=0), False),
        (lambda x: (x - x.mean(axis=0)) * 1e-3, False),
        (softmax_in_training_mode, False),
        # The first row does not show it.
        (lambda x: np.cumsum(x, axis=0), False),
        (lambda x: x[::-1], False),
        (lambda x: x + len(x), False),
        (lambda x: x[:1], False),
        (lambda x: x.sum(), False),
        (lambda x: x.T, False),
        (lambda x: np.repeat(x, 2, axis=0), False),
        (fails, False),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_auto_tries_whether_rows_mix(compute: Callable[[Array], Array], expected: bool) -> None:
    assert can_batch(RowModel(compute), AUTO) is expected


Decision = tuple[Callable[[Path], Path], bool]
ONNX: dict[str, Decision] = {
    "identity": (models.identity, True),
    "strings": (lambda p: models.identity(p, DType.BYTES), True),
    "bf16": (lambda p: models.identity(p, DType.BF16), True),
    "every type": (models.every_dtype, True),
    "two inputs": (models.add_sub, True),
    "network": (models.tiny_mlp, True),
    "gather": (models.gather, True),
    "vector": (lambda p: models.identity(p, shape=("batch",)), True),
    "mixes rows": (models.mixes_rows, False),
    "scalar": (lambda p: models.identity(p, shape=()), False),
    "unknown rank": (lambda p: models.identity(p, shape=None), False),
    "fixed": (lambda p: models.identity(p, shape=(1, 4)), False),
    "no name": (lambda p: models.identity(p, shape=(None, 4)), False),
    "dynamic elsewhere": (lambda p: models.identity(p, shape=(3, "n")), False),
    "no common symbol": (models.hungry, False),
}


@pytest.mark.parametrize("name", ONNX)
def test_auto_decides_for_real_models(tmp_path: Path, name: str) -> None:
    write, expected = ONNX[name]
    model = load(write(tmp_path / "m.onnx"), RuntimeOptions(device="cpu"))
    warm_up(model)
    assert can_batch(model, AUTO) is expected
    assert can_batch(model, OFF) is False


def test_different_symbols_are_not_one_dimension() -> None:
    model = RowModel(lambda x: x, shape=("n", 4), out=("m", 4))
    assert not can_batch(model, AUTO)
    assert model.runs == 0
    assert not common_batch_dimension(Signature((), ()))


def test_on_is_believed() -> None:
    for shape in (("n", 4), (None, 4), None):
        model = RowModel(lambda x: x - x.mean(axis=0), shape=shape)
        assert can_batch(model, ON) is True
        assert model.runs == 0


@pytest.mark.parametrize("shape", [(1, 4), (), (8,)], ids=str)
def test_on_without_a_dimension_to_join_is_an_error(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigurationError, match=r"batching\.enabled is true, but the input 'x'"):
        can_batch(RowModel(lambda x: x, shape=shape), ON)


def test_on_without_inputs_is_an_error() -> None:
    model = RowModel(lambda x: x)
    model.signature = Signature((), model.signature.outputs)
    with pytest.raises(ConfigurationError, match="has no inputs"):
        can_batch(model, ON)


def test_samples_fit_the_signature() -> None:
    specs = tuple(TensorSpec(d.value, d, ("n", 3, "other", None)) for d in DType)
    made = Samples().make(specs, rows=5)
    assert made is not None
    for spec, array in zip(specs, made):
        assert array.shape == (5, 3, 1, 1)
        assert array.dtype == spec.dtype.numpy
    again = Samples().make(specs, rows=5)
    assert again is not None
    assert all(np.array_equal(one, two) for one, two in zip(made, again))


def test_samples_keep_fixed_dimensions() -> None:
    shapes = ((), (7,), (7, "n"), (0, 2))
    specs = tuple(TensorSpec(f"x{i}", DType.INT32, shape) for i, shape in enumerate(shapes))
    made = Samples().make(specs, rows=5)
    assert made is not None
    assert [array.shape for array in made] == [(), (7,), (7, 1), (0, 2)]


def test_there_are_no_samples_of_an_unknown_rank() -> None:
    assert Samples().make((TensorSpec("x", DType.FP32, None),), rows=1) is None


def test_the_operators_sample_is_run_and_must_work() -> None:
    seen = []

    def picky(x: Array) -> Array:
        seen.append(x.tolist())
        if not (x >= 100).all():
            raise InferenceFailed("needs what is at least 100")
        return x

    sample = Samples({"x": np.full((3, 4), 100, np.float32)})
    warm_up(RowModel(picky), sample)
    assert seen == [[[100.0] * 4] * 3]
    # It makes the trial runs possible, too.
    assert can_batch(RowModel(picky), AUTO, sample)
    assert not can_batch(RowModel(picky), AUTO)
    one = Samples({"x": np.array([[1, 2, 3, 4]], np.float32)})
    assert can_batch(RowModel(lambda x: x * 2), AUTO, one)
    assert not can_batch(RowModel(lambda x: x - x.mean(axis=0)), AUTO, one)
    with pytest.raises(InvalidModel, match="failed on the sample of warmup: needs real input"):
        warm_up(RowModel(fails), sample)


def test_warming_up_runs_once_and_forgives_all_but_memory() -> None:
    model = RowModel(lambda x: x)
    warm_up(model)
    assert model.runs == 1
    warm_up(RowModel(fails))
    unknown = RowModel(lambda x: x, shape=None)
    warm_up(unknown)
    assert unknown.runs == 0

    def hungry(x: Array) -> Array:
        raise InsufficientMemory("not even one")

    with pytest.raises(InsufficientMemory, match="not even one"):
        warm_up(RowModel(hungry))
