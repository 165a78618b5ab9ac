"""Inputs for the first runs, from files and made up."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tidegate.config.model import ModelConfig
from tidegate.errors import ConfigurationError
from tidegate.runtimes.interface import RuntimeOptions
from tidegate.runtimes.samples import Samples, read_sample, samples_of
from tidegate.types import DType, TensorSpec

ROWS = TensorSpec("x", DType.FP32, ("n", 2))


def test_rows_of_a_sample() -> None:
    samples = Samples({"x": np.array([[1, 2], [3, 4]], np.float32)})
    for rows, expected in (
        (None, [[1, 2], [3, 4]]),
        (1, [[1, 2]]),
        (2, [[1, 2], [3, 4]]),
        (3, [[1, 2], [3, 4], [2, 1]]),
        (7, [[1, 2], [3, 4], [2, 1], [4, 3], [1, 2], [3, 4], [2, 1]]),
    ):
        made = samples.make([ROWS], rows)
        assert made is not None
        assert made[0].tolist() == expected
        assert made[0].flags.c_contiguous


def test_a_sample_without_a_name_is_for_any_input() -> None:
    made = Samples({"": np.ones((1, 2), np.float32)}).make([ROWS], None)
    assert made is not None
    assert made[0].shape == (1, 2)


def test_fixed_dimensions_are_kept() -> None:
    array = np.ones((3, 2), np.float32)
    made = Samples({"x": array}).make([TensorSpec("x", DType.FP32, (3, 2))], 5)
    assert made is not None
    assert made[0].shape == (3, 2)
    made = Samples({"x": np.float32(3)}).make([TensorSpec("x", DType.FP32, ())], 5)  # type: ignore[dict-item]
    assert made is not None
    assert made[0].shape == ()


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (TensorSpec("y", DType.FP32, ("n", 2)), "has no input 'y': it has 'x'"),
        (
            TensorSpec("x", DType.FP32, ("n", 3)),
            r"shape \[2, 2\], but the model takes \['n', 3",
        ),
        (TensorSpec("x", DType.FP32, ("n",)), r"but the model takes \['n'\]"),
        (TensorSpec("x", DType.INT64, ("n", 2)), "is FP32, but the model takes INT64"),
        (TensorSpec("x", DType.BYTES, ("n", 2)), "is FP32, but the model takes BYTES"),
    ],
)
def test_a_sample_that_does_not_fit(spec: TensorSpec, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        Samples({"x": np.ones((2, 2), np.float32)}).make([spec], 1)


def test_lengths_of_dynamic_dimensions() -> None:
    spec = TensorSpec("x", DType.INT64, ("n", "length", "other", None, 3))
    made = Samples(None, {"length": 7, "n": 9}).make([spec], 2)
    assert made is not None
    assert made[0].shape == (2, 7, 1, 1, 3)


def test_numbers_without_a_type_of_their_own_are_not_of_64_bits(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    path.write_text(json.dumps({"a": [[1.5, 2]], "b": [1, 2], "c": [True], "d": ["ä"]}))
    found = read_sample(path)
    assert {name: DType.of(array.dtype) for name, array in found.items()} == {
        "a": DType.FP32,
        "b": DType.INT64,
        "c": DType.BOOL,
        "d": DType.BYTES,
    }
    assert found["d"].tolist() == ["ä".encode()]
    np.savez(tmp_path / "s.npz", x=np.ones(2), y=np.ones(2, np.float16))
    assert read_sample(tmp_path / "s.npz")["x"].dtype == np.float32
    assert read_sample(tmp_path / "s.npz")["y"].dtype == np.float16


def pickled(path: Path) -> Path:
    np.save(path.with_suffix(".npy"), np.array([{}], object), allow_pickle=True)
    return path.with_suffix(".npy")


def test_arrays_are_as_requests_have_them(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", x=np.arange(6, dtype=">f4").reshape(2, 3).T, y=np.int32(3))
    found = read_sample(tmp_path / "s.npz")
    assert found["x"].dtype == np.float32
    assert found["x"].dtype.isnative
    assert found["x"].flags.c_contiguous
    assert found["x"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert found["y"].shape == ()


def text(name: str, content: str) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        path.with_name(name).write_text(content)
        return path.with_name(name)

    return write


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda path: path.with_name("none.npz"), "cannot be read: No such file"),
        (text("s.txt", "1 2"), "must be an .npz, .npy or .json file"),
        (text("s.json", "[1]"), "mapping of inputs to nested lists"),
        (text("s.json", "{"), "is no .json file of numbers"),
        (text("s.json", '{"x": [[1], [2, 3]]}'), "is no .json file of numbers"),
        (text("s.json", '{"inputs": [{"name": "x"}]}'), "is no .json file of numbers"),
        (text("s.npy", "words"), "is no .npy file of numbers"),
        (text("s.npz", "words"), "is no .npz file of numbers"),
        (text("s.json", "[" * 100_000), "is no .json file of numbers"),
        (pickled, "Object arrays cannot be loaded"),
    ],
)
def test_what_is_no_sample(tmp_path: Path, write: Callable[[Path], Path], words: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read_sample(write(tmp_path / "s"))
    assert words in str(caught.value)
    assert "warmup.sample" in str(caught.value)


def test_an_archive_that_fills_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidegate.runtimes.samples._LARGEST", 2**16)
    np.savez_compressed(tmp_path / "s.npz", x=np.zeros(2**16, np.uint8))
    assert (tmp_path / "s.npz").stat().st_size < 2**12
    with pytest.raises(ConfigurationError, match="unpacks to more than"):
        read_sample(tmp_path / "s.npz")


def test_a_sample_lies_in_the_models_folder(tmp_path: Path) -> None:
    config = ModelConfig.model_validate({"warmup": "s.npy"})
    np.save(tmp_path / "s.npy", np.ones(3))
    found = samples_of(RuntimeOptions(folder=tmp_path, config=config))
    assert found.given is not None
    assert found.given[""].dtype == np.float32
    with pytest.raises(ConfigurationError, match="a folder of its own"):
        samples_of(RuntimeOptions(config=config))
