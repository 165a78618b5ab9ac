"""What is known of a PyTorch model's inputs and outputs, and from where."""

from __future__ import annotations

import dataclasses
import json
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests import torch_models
from tests.runtimes.torch_folder import AUTO, X, load_folder, run
from tests.torch_models import (
    exported,
    scripted,
    settings,
)
from tidegate.errors import (
    ConfigurationError,
    InferenceFailed,
    InvalidModel,
)
from tidegate.replica.warmup import can_batch
from tidegate.runtimes.torch_tensors import named_leaves
from tidegate.types import DType, TensorSpec


def test_nothing_says_what_it_takes(tmp_path: Path) -> None:
    torch_models.script(tmp_path / "m/model.pt")
    with pytest.raises(InvalidModel) as caught:
        load_folder(tmp_path / "m")
    words = str(caught.value)
    assert "model.pt does not say what it takes (x)" in words
    assert "signature: {inputs: [{name: x, dtype: FP32, shape: [batch, 3, 224, 224]}]}" in words
    assert "warmup: sample.npz" in words


def samples_npz(folder: Path) -> str:
    np.savez(folder / "sample.npz", x=X.astype(np.float64))  # float64 by accident
    return "sample.npz"


def sample_npy(folder: Path) -> str:
    np.save(folder / "sample.npy", X)
    return "sample.npy"


def sample_json(folder: Path) -> str:
    (folder / "sample.json").write_text(json.dumps({"x": X.tolist()}))
    return "sample.json"


def sample_request(folder: Path) -> str:
    tensor = {"name": "x", "shape": [2, 4], "datatype": "FP32", "data": X.ravel().tolist()}
    (folder / "request.json").write_text(json.dumps({"inputs": [tensor]}))
    return "request.json"


@pytest.mark.parametrize("write", [samples_npz, sample_npy, sample_json, sample_request])
def test_a_sample_tells_the_signature(tmp_path: Path, write: Callable[[Path], str]) -> None:
    torch_models.script(tmp_path / "m/model.pt")
    settings(tmp_path / "m", f"warmup: {write(tmp_path / 'm')}\n")
    signature = load_folder(tmp_path / "m").signature
    assert signature.inputs == (TensorSpec("x", DType.FP32, ("batch", 4)),)
    assert signature.outputs == (TensorSpec("output", DType.FP32, ("batch", 4)),)


def test_a_sample_of_a_model_with_a_fixed_batch(tmp_path: Path) -> None:
    class Fixed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.view(2, 2, 2)

    torch_models.trace(tmp_path / "m/model.pt", Fixed(), torch.zeros(2, 4))
    settings(tmp_path / "m", f"warmup: {sample_npy(tmp_path / 'm')}\n")
    model = load_folder(tmp_path / "m")
    assert model.signature.inputs == (TensorSpec("x", DType.FP32, (2, 4)),)
    assert model.signature.outputs == (TensorSpec("output", DType.FP32, (2, 2, 2)),)
    assert not can_batch(model, AUTO)


def test_an_export_with_a_fixed_batch_is_not_batched(tmp_path: Path) -> None:
    torch_models.export(tmp_path / "m/model.pt2", dynamic=None)
    model = load_folder(tmp_path / "m")
    assert model.signature.inputs == (TensorSpec("x", DType.FP32, (2, 4)),)
    assert not can_batch(model, AUTO)


def test_an_export_knows_its_largest_batch(tmp_path: Path) -> None:
    dynamic = ({0: torch.export.Dim("rows", max=4)},)
    torch_models.export(tmp_path / "m/model.pt2", dynamic=dynamic)
    model = load_folder(tmp_path / "m")
    assert model.most_rows == 4
    assert can_batch(model, AUTO)


def test_an_export_names_its_dimensions(tmp_path: Path) -> None:
    size = torch.export.Dim.AUTO
    torch_models.export(
        tmp_path / "m/model.pt2",
        torch_models.Convolution(),
        torch.zeros(2, 3, 8, 9),
        dynamic=({0: size, 2: size, 3: size},),
    )
    model = load_folder(tmp_path / "m")
    (image,) = model.signature.inputs
    assert image.shape is not None
    batch, channels, height, width = image.shape
    assert (batch, channels) == ("batch", 3)
    assert isinstance(height, str)
    assert isinstance(width, str)
    assert height != width
    assert model.signature.outputs[0].shape == ("batch", 2)
    settings(
        tmp_path / "m",
        "signature: {inputs: [{name: image, shape: [n, 3, h, w]}], outputs: [means]}\n",
    )
    model = load_folder(tmp_path / "m")
    assert model.signature.inputs[0].shape == ("n", 3, "h", "w")
    assert [spec.name for spec in model.signature.outputs] == ["means"]
    assert run(model, image=np.zeros((3, 3, 5, 7), np.float32))["means"].shape == (3, 2)


CONTRADICTIONS = {
    "name": ("{inputs: [{name: y}]}", "no such input: it has 'x'"),
    "type": ("{inputs: [{name: x, dtype: INT64}]}", "is INT64, but the model's own .*'x' is FP32"),
    "shape": ("{inputs: [{name: x, shape: [n, 5]}]}", r"\['n', 5\], but the model's .*'batch', 4"),
    "outputs": ("{outputs: [a, b]}", "has 2 outputs, but the model gives 1: 'output'"),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_signature_that_contradicts_the_export(tmp_path: Path, name: str) -> None:
    text, words = CONTRADICTIONS[name]
    exported(tmp_path / "m")
    settings(tmp_path / "m", f"signature: {text}\n")
    with pytest.raises(ConfigurationError, match=words):
        load_folder(tmp_path / "m")


def test_declared_dimensions_are_learnt_through(tmp_path: Path) -> None:
    torch_models.script(tmp_path / "m/model.pt", torch_models.Convolution())
    declared = "signature: {inputs: [{name: image, dtype: FP32, shape: [n, 3, height, width]}]}\n"
    settings(tmp_path / "m", declared)
    with pytest.raises(InvalidModel, match=r"a trial run on image FP32 .*warmup\.dimensions"):
        load_folder(tmp_path / "m")
    settings(tmp_path / "m", declared + "warmup: {dimensions: {height: 8, width: 9}}\n")
    model = load_folder(tmp_path / "m")
    assert model.signature.outputs == (TensorSpec("output", DType.FP32, ("n", 2)),)


def test_a_signature_that_the_model_does_not_take(tmp_path: Path) -> None:
    scripted(tmp_path / "m")
    settings(tmp_path / "m", "signature: {inputs: [{name: x, dtype: FP32, shape: [n, 4]}, y]}\n")
    with pytest.raises(InvalidModel, match=r"does not say what it takes \(x\)"):
        load_folder(tmp_path / "m")
    both = "{name: x, dtype: FP32, shape: [n]}, {name: y, dtype: FP32, shape: [n]}"
    settings(tmp_path / "m", f"signature: {{inputs: [{both}]}}\n")
    with pytest.raises(ConfigurationError, match=r"takes \(x\), but .* inputs \(x, y\)"):
        load_folder(tmp_path / "m")
    settings(tmp_path / "m", "signature: {inputs: [{name: x, dtype: BYTES, shape: [n]}]}\n")
    with pytest.raises(ConfigurationError, match="cannot take"):
        load_folder(tmp_path / "m")


def test_inputs_by_name_or_by_place(tmp_path: Path) -> None:
    torch_models.script(tmp_path / "m/model.pt", torch_models.Two())
    one, two = np.array([[5]], np.float32), np.array([[3]], np.float32)
    for first, second, difference in (("a", "b", 2.0), ("b", "a", -2.0), ("left", "right", 2.0)):
        tensors = [f"{{name: {n}, dtype: FP32, shape: [n, 1]}}" for n in (first, second)]
        settings(tmp_path / "m", f"signature: {{inputs: [{', '.join(tensors)}]}}\n")
        model = load_folder(tmp_path / "m")
        answer = run(model, **{first: one, second: two})
        assert answer == {"total": [[8.0]], "difference": [[difference]]}


@dataclasses.dataclass
class Fields:
    mean: Any
    rest: Any = None


Pair = namedtuple("Pair", "left right")
T = torch.zeros(1)


@pytest.mark.parametrize(
    ("result", "names"),
    [
        (T, ["output"]),
        ((T,), ["output_0"]),
        ([T, T], ["output_0", "output_1"]),
        ((T, None, [T, T]), ["output_0", "output_2_0", "output_2_1"]),
        ({"a": T, "b": {"c": T, "d": (T, T)}}, ["a", "b_c", "b_d_0", "b_d_1"]),
        (Pair(T, {"x": T}), ["left", "right_x"]),
        (Fields(T), ["mean"]),
        (3.5, ["output"]),
    ],
    ids=str,
)
def test_whatever_a_model_returns_has_names(result: Any, names: list[str]) -> None:
    found = named_leaves(result)
    assert [name for name, _ in found] == names
    assert all(isinstance(tensor, torch.Tensor) for _, tensor in found)


@pytest.mark.parametrize(
    "result",
    [None, (), {}, "text", {"a": "text"}, object()],
    ids=["None", "()", "{}", "text", "texts", "object"],
)
def test_what_is_no_tensor_cannot_be_an_answer(result: Any) -> None:
    with pytest.raises(InferenceFailed, match="the model returned"):
        named_leaves(result)
