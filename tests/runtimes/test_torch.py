"""The PyTorch runtime on real files of every format."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import zipfile
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import nn

from tests import torch_models
from tests.torch_models import (
    checkpoint,
    exported,
    old_state_dict,
    scripted,
    settings,
    state_dict,
    tensors,
    trusted,
    versioned,
)
from tidegate.config.model import Batching, ModelConfig
from tidegate.errors import (
    ConfigurationError,
    InferenceFailed,
    InsufficientMemory,
    InvalidModel,
    RuntimeMissing,
    TidegateError,
)
from tidegate.replica.warmup import can_batch, warm_up
from tidegate.repository.layout import read_model
from tidegate.runtimes import registry
from tidegate.runtimes.interface import RuntimeOptions
from tidegate.runtimes.torch import TorchModel, _device, load
from tidegate.runtimes.torch_tensors import named_leaves, reraise
from tidegate.types import Array, DType, TensorSpec

X = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.float32)
AUTO = Batching()


def load_folder(folder: Path, device: str = "cpu") -> TorchModel:
    """Load a model's folder as a node would."""
    entry = read_model(folder)
    if entry.problems:
        raise InvalidModel("; ".join(map(str, entry.problems)))
    (version,) = entry.versions.values()
    assert version.runtime == "torch"
    options = RuntimeOptions(device, 1, version.folder, entry.config)
    return load(version.path, options)


def run(model: TorchModel, **inputs: Array) -> dict[str, Array]:
    return model.run(inputs, [spec.name for spec in model.signature.outputs])


FORMATS: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "TorchScript": (scripted, "pytorch_torchscript", "batch"),
    "torch.export": (exported, "pytorch_export", "batch"),
    "state_dict": (state_dict, "pytorch_eager", "batch"),
    "state_dict before 1.6": (old_state_dict, "pytorch_eager", "batch"),
    "checkpoint": (checkpoint, "pytorch_eager", "batch"),
    "safetensors": (tensors, "pytorch_eager", "batch"),
    "versions": (versioned, "pytorch_eager", "batch"),
    "trusted pickle": (trusted, "pytorch_eager", "batch"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format(tmp_path: Path, name: str) -> None:
    write, platform, batch = FORMATS[name]
    write(tmp_path / "m")
    model = load_folder(tmp_path / "m")
    assert (model.platform, model.device, model.most_rows) == (platform, "cpu", None)
    assert model.signature.inputs == (TensorSpec("x", DType.FP32, (batch, 4)),)
    assert model.signature.outputs == (TensorSpec("output", DType.FP32, (batch, 4)),)
    read_only = X.copy()
    read_only.flags.writeable = False
    (answer,) = run(model, x=read_only).values()
    assert answer.dtype == np.float32
    assert answer.flags.c_contiguous
    assert answer.tolist() == (2 * X).tolist()
    warm_up(model)
    assert can_batch(model, AUTO)
    model.close()


def test_a_pickle_is_refused_with_the_danger_and_the_ways_out(tmp_path: Path) -> None:
    trusted(tmp_path / "m")
    settings(tmp_path / "m", torch_models.SIGNATURE)
    with pytest.raises(InvalidModel) as caught:
        load_folder(tmp_path / "m")
    words = str(caught.value)
    assert "would run whatever code it holds" in words
    assert "tests.torch_models.Double" in words
    for way in ("torch.export.save", "TorchScript", "state_dict", "safetensors", "trust: pickle"):
        assert way in words
    # Whoever asks the runtime itself is told the same.
    with pytest.raises(InvalidModel, match="would run whatever"):
        load(tmp_path / "m" / "model.pth", RuntimeOptions("cpu"))


class Trap:
    """Unpickling it makes a folder."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("new", [True, False])
def test_no_code_out_of_a_pickle(tmp_path: Path, protocol: int, new: bool) -> None:
    mark = tmp_path / "mark"
    state_dict(tmp_path / "m")
    path = tmp_path / "m" / "model.pth"
    torch.save(
        {"factor": torch.tensor([2.0]), "x": Trap(mark)},
        path,
        pickle_protocol=protocol,
        _use_new_zipfile_serialization=new,
    )
    with pytest.raises(InvalidModel, match=r"trust: pickle"):
        load_folder(tmp_path / "m")
    assert not mark.exists()


def test_the_loader_itself_takes_only_weights(tmp_path: Path, monkeypatch: Any) -> None:
    """What the look at the opcodes overlooks is refused by PyTorch."""
    mark = tmp_path / "mark"
    state_dict(tmp_path / "m")
    path = torch_models.weights(tmp_path / "m/model.pth", {"x": Trap(mark)})
    monkeypatch.setattr("tidegate.repository.formats.only_weights", lambda file: True)
    with pytest.raises(InvalidModel, match=r"holds more than weights: .*posix\.mkdir"):
        load(path, RuntimeOptions("cpu", 1, tmp_path / "m"))
    assert not mark.exists()


def test_weights_need_their_code(tmp_path: Path) -> None:
    state_dict(tmp_path / "m")
    (tmp_path / "m/model.py").unlink()
    with pytest.raises(
        InvalidModel, match=r"weights alone \(1 tensors: factor, …\): put the code"
    ):
        load_folder(tmp_path / "m")


def test_a_bare_file_has_no_code(tmp_path: Path) -> None:
    state_dict(tmp_path)
    (tmp_path / "model.yaml").unlink()
    entry = read_model(tmp_path / "model.pth")
    assert entry.versions[1].folder is None
    with pytest.raises(InvalidModel, match=r"in a folder of the model's own"):
        load(entry.versions[1].path, RuntimeOptions("cpu"))


CODES: dict[str, tuple[str, str, str]] = {
    "raises": ("import nothing_here\n", "", r"model.py, line 1, raised ModuleNotFoundError"),
    "syntax": ("x = (\n", "", r"model.py, line 1, raised SyntaxError"),
    "exits": ("raise SystemExit(3)\n", "", r"raised SystemExit: 3"),
    "empty": ("", "", r"does not say which is the model \(it has no class\)"),
    "no module": ("def Model(): return 3", "", r"Model\(\) of model.py gave a int"),
    "several": (
        torch_models.CODE.replace("Model", "A") + torch_models.CODE.replace("Model", "B"),
        "",
        r"\(it has A, B\): name the class Model, or write torch: {model: NAME}",
    ),
    "misnamed": (torch_models.CODE, "torch: {model: Net}\n", "no class or function 'Net'"),
    "arguments": (
        torch_models.CODE,
        "torch: {arguments: {size: 3}}\n",
        r"Model\(size=3\) of model.py raised TypeError",
    ),
    "other weights": (
        torch_models.CODE.replace("factor =", "scale ="),
        "",
        "the weights in model.pth are not those of model.py: .*Missing key.*scale",
    ),
}


@pytest.mark.parametrize("name", CODES)
def test_code_that_does_not_make_the_model(tmp_path: Path, name: str) -> None:
    code, more, words = CODES[name]
    state_dict(tmp_path / "m")
    settings(tmp_path / "m", torch_models.SIGNATURE + more)
    (tmp_path / "m/model.py").write_text(code)
    with pytest.raises(InvalidModel, match=words):
        load_folder(tmp_path / "m")


def test_code_may_import_what_lies_beside_it(tmp_path: Path) -> None:
    for folder, factor in (("a", 3.0), ("b", 5.0)):
        state_dict(tmp_path / folder)
        (tmp_path / folder / "layers.py").write_text(f"FACTOR = {factor}\n" + torch_models.CODE)
        (tmp_path / folder / "model.py").write_text(
            "from layers import FACTOR, Model as Base\n"
            "def build(more):\n"
            "    model = Base()\n"
            "    model.forward = lambda x: x * FACTOR + more\n"
            "    return model\n"
        )
        more = "torch: {model: build, arguments: {more: 1}}\n"
        settings(tmp_path / folder, torch_models.SIGNATURE + more)
    # One process inspects several models: each has its own code.
    assert run(load_folder(tmp_path / "a"), x=X)["output"].tolist() == (X * 3 + 1).tolist()
    assert run(load_folder(tmp_path / "b"), x=X)["output"].tolist() == (X * 5 + 1).tolist()


def test_a_trusted_pickle_finds_its_classes_in_model_py(tmp_path: Path) -> None:
    trusted(tmp_path / "m")
    path = tmp_path / "m/model.pth"
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            if name.endswith("data.pkl"):
                content = content.replace(b"tests.torch_models\nDouble", b"__main__\nModel")
            archive.writestr(name, content)
    with pytest.raises(InvalidModel, match=r"needs code that is not here: .*Model.*as model\.py"):
        load_folder(tmp_path / "m")
    (tmp_path / "m/model.py").write_text(torch_models.CODE)
    assert run(load_folder(tmp_path / "m"), x=X)["output"].tolist() == (2 * X).tolist()


# Signatures


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
    with pytest.raises(ConfigurationError, match=r"forward takes \(x\).* inputs \(x, y\)"):
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


@pytest.mark.parametrize("result", [None, (), {}, "text", {"a": "text"}, object()], ids=repr)
def test_what_is_no_tensor_cannot_be_an_answer(result: Any) -> None:
    with pytest.raises(InferenceFailed, match="the model returned"):
        named_leaves(result)


# Types and devices


@pytest.mark.parametrize(
    "dtype", [d for d in DType if d is not DType.BYTES], ids=lambda d: d.value
)
def test_every_element_type(tmp_path: Path, dtype: DType) -> None:
    class Identity(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

    torch_models.script(tmp_path / "m/model.pt", Identity())
    text = f"{{name: x, dtype: {dtype.value}, shape: [n, 3]}}"
    settings(tmp_path / "m", f"signature: {{inputs: [{text}]}}\n")
    model = load_folder(tmp_path / "m")
    assert model.signature.outputs == (TensorSpec("output", dtype, ("n", 3)),)
    x = np.array([[0, 1, 1], [1, 0, 1]]).astype(dtype.numpy)
    answer = run(model, x=x)["output"]
    assert answer.dtype == dtype.numpy
    assert answer.flags.c_contiguous
    assert np.array_equal(answer, x)
    assert can_batch(model, AUTO)


def test_outputs_are_contiguous_and_of_the_declared_type(tmp_path: Path) -> None:
    class Transposed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.double().t()

    torch_models.script(tmp_path / "m/model.pt", Transposed())
    declared = "inputs: [{name: x, dtype: FP32, shape: [2, 4]}]"
    settings(tmp_path / "m", f"signature: {{{declared}}}\n")
    model = load_folder(tmp_path / "m")
    assert model.signature.outputs[0].dtype is DType.FP64
    outputs = "outputs: [{name: y, dtype: FP32, shape: [4, 2]}]"
    settings(tmp_path / "m", f"signature: {{{declared}, {outputs}}}\n")
    answer = run(load_folder(tmp_path / "m"), x=X)["y"]
    assert answer.dtype == np.float32
    assert answer.flags.c_contiguous
    assert answer.tolist() == X.T.tolist()
    outputs = outputs.replace("FP32", "INT64")
    settings(tmp_path / "m", f"signature: {{{declared}, {outputs}}}\n")
    with pytest.raises(InferenceFailed, match="'y' is FP64, but the signature says INT64"):
        run(load_folder(tmp_path / "m"), x=X)


def test_a_model_may_write_into_its_input(tmp_path: Path) -> None:
    class InPlace(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mul_(2)

    torch_models.script(tmp_path / "m/model.pt", InPlace())
    settings(tmp_path / "m", torch_models.SIGNATURE)
    model = load_folder(tmp_path / "m")
    x = np.frombuffer(X.tobytes(), np.float32).reshape(2, 4)
    for _ in range(2):
        assert run(model, x=x)["output"].tolist() == (2 * X).tolist()
    assert x.tolist() == X.tolist()


def test_bfloat16_goes_in_and_out(tmp_path: Path) -> None:
    torch_models.script(tmp_path / "m/model.pt", torch_models.Double().bfloat16())
    settings(tmp_path / "m", torch_models.SIGNATURE.replace("FP32", "BF16"))
    answer = run(load_folder(tmp_path / "m"), x=X.astype(ml_dtypes.bfloat16))["output"]
    assert answer.dtype == ml_dtypes.bfloat16
    assert answer.astype(np.float32).tolist() == (2 * X).tolist()


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("kind", ["eager", "export", "script"])
def test_precision_and_channels_last_change_no_type(
    tmp_path: Path, precision: str, kind: str
) -> None:
    module = torch_models.Convolution().eval()
    image = torch.rand(2, 3, 8, 8)
    expected = module(image).detach().numpy()
    text = f"torch: {{precision: {precision}, channels_last: true}}\n"
    declared = "signature: {inputs: [{name: image, dtype: FP32, shape: [n, 3, 8, 8]}]}\n"
    folder = tmp_path / "m"
    if kind == "export":
        torch_models.export(folder / "model.pt2", module, image)
        declared = ""
    elif kind == "script":
        torch_models.script(folder / "model.pt", module)
    else:
        torch_models.whole(folder / "model.pth", module)
        text += "trust: pickle\n"
    settings(folder, declared + text)
    model = load_folder(folder)
    assert model.signature.outputs[0].dtype is DType.FP32
    answer = run(model, image=image.numpy())["output"]
    assert answer.dtype == np.float32
    exact = bool(np.allclose(answer, expected, rtol=1e-5, atol=1e-6))
    assert exact is (precision == "fp32")
    assert np.allclose(answer, expected, rtol=0.05, atol=0.02)


def test_threads_and_inference_mode(tmp_path: Path) -> None:
    settings(tmp_path / "m", torch_models.SIGNATURE + "trust: pickle\n")
    torch_models.whole(tmp_path / "m/model.pth", Spy())
    entry = read_model(tmp_path / "m")
    before = torch.get_num_threads()
    try:
        options = RuntimeOptions("cpu", 2, tmp_path / "m", entry.config)
        model = load(entry.versions[1].path, options)
        assert torch.get_num_threads() == 2
        run(model, x=X)
        assert Spy.seen == (True, False)
    finally:
        torch.set_num_threads(before)


class Spy(nn.Module):
    """Notes in which mode it was run."""

    seen: tuple[bool, bool] | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        Spy.seen = (torch.is_inference_mode_enabled(), self.training)
        return x


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there(tmp_path: Path) -> None:
    exported(tmp_path / "m")
    assert load_folder(tmp_path / "m", "auto").device == "cpu"
    with pytest.raises(ConfigurationError, match=r"device: cuda:1 needs a GPU, but PyTorch"):
        load_folder(tmp_path / "m", "cuda:1")


def test_which_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for wanted, expected in (
        ("auto", "cuda:0"),
        ("cuda", "cuda:0"),
        ("cuda:1", "cuda:1"),
        ("cpu", "cpu"),
    ):
        assert str(_device(wanted)) == expected
    with pytest.raises(ConfigurationError, match="cuda:2 is not here: PyTorch sees 2 GPUs"):
        _device("cuda:2")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_on_a_gpu(tmp_path: Path, name: str) -> None:
    FORMATS[name][0](tmp_path / "m")
    model = load_folder(tmp_path / "m", "cuda:0")
    assert model.device == "cuda:0"
    assert run(model, x=X)["output"].tolist() == (2 * X).tolist()
    with pytest.raises(ConfigurationError, match="is not here: PyTorch sees"):
        load_folder(tmp_path / "m", "cuda:64")
    if name == "torch.export":
        with pytest.raises(InsufficientMemory):
            run(model, x=np.zeros((2**32, 4), np.float32))
        assert run(model, x=X)["output"].tolist() == (2 * X).tolist()


# What goes wrong


@pytest.mark.parametrize("kind", ["script", "eager"])
def test_an_error_of_the_model_has_its_words(tmp_path: Path, kind: str) -> None:
    settings(tmp_path / "m", torch_models.SIGNATURE + "trust: pickle\n")
    if kind == "script":
        torch_models.script(tmp_path / "m/model.pt", torch_models.Picky())
    else:
        torch_models.whole(tmp_path / "m/model.pth", torch_models.Picky())
    model = load_folder(tmp_path / "m")
    with pytest.raises(InferenceFailed, match=r"^ValueError: no value may be above 100$"):
        run(model, x=X * 100)
    assert run(model, x=X)["output"].tolist() == X.tolist()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate "
            "memory: you tried to allocate 4096 bytes. Error code 12 (Cannot allocate memory)"
        ),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("std::bad_alloc"),
        MemoryError(),
    ],
    ids=lambda error: str(error)[:20],
)
def test_no_memory_is_told_apart(error: Exception) -> None:
    with pytest.raises(InsufficientMemory):
        reraise(error, InferenceFailed)


def write_cut(folder: Path, write: Callable[[Path], None], kept: float) -> None:
    write(folder)
    (path,) = (p for p in folder.iterdir() if p.suffix in {".pt", ".pt2", ".pth", ".safetensors"})
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])


@pytest.mark.parametrize("kept", [0.3, 0.95])
@pytest.mark.parametrize("write", [scripted, exported, state_dict, tensors, old_state_dict])
def test_files_that_are_cut_short(
    tmp_path: Path, write: Callable[[Path], None], kept: float
) -> None:
    write_cut(tmp_path / "m", write, kept)
    with pytest.raises(InvalidModel):
        load_folder(tmp_path / "m")


@pytest.mark.parametrize("write", [scripted, exported, state_dict, tensors, old_state_dict])
def test_files_with_damage_inside(tmp_path: Path, write: Callable[[Path], None]) -> None:
    write(tmp_path / "m")
    (path,) = (p for p in (tmp_path / "m").iterdir() if p.suffix not in {".py", ".yaml", ""})
    data = path.read_bytes()
    random = np.random.default_rng(5)
    for _ in range(40):
        damaged = bytearray(data)
        for place in random.integers(0, len(data), 8):
            damaged[place] = random.integers(0, 256)
        path.write_bytes(damaged)
        try:
            run(load_folder(tmp_path / "m"), x=X)
        except TidegateError:
            continue


def rewritten(path: Path, change: Callable[[str, bytes], bytes | None]) -> None:
    """Write an archive again with other contents."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            new = change(name, content)
            if new is not None:
                archive.writestr(name, new)


HOSTILE_EXPORTS: dict[str, tuple[str, bytes, bytes]] = {
    "function": ("models/model.json", b"torch.ops.aten.mul.Tensor", b"torch.os.system"),
    "dunder": ("models/model.json", b"torch.ops.aten.mul.Tensor", b"torch.ops.aten.__class__.x"),
    "method": ("models/model.json", b"torch.ops.aten.mul.Tensor", b"_operator.methodcaller"),
    "call": ("models/model.json", b"Symbol('s", b"__import__('os').system('s"),
    "attribute": ("models/model.json", b"Symbol('s", b"Symbol.mro() or Symbol('s"),
    "string": ("models/model.json", b"Symbol('s", b"sympify('open(1)') or Symbol('s"),
    "name": ("models/model.json", b'"name": "x"', b'"name": "x):\\n import os;("'),
    "pickled weight": (
        "model_weights_config.json",
        b'"use_pickle": false',
        b'"use_pickle": true',
    ),
}


@pytest.mark.parametrize("name", HOSTILE_EXPORTS)
def test_an_export_that_would_run_code(tmp_path: Path, name: str) -> None:
    member, old, new = HOSTILE_EXPORTS[name]
    exported(tmp_path / "m")

    def change(place: str, content: bytes) -> bytes:
        if not place.endswith(member):
            return content
        assert old in content
        return content.replace(old, new)

    rewritten(tmp_path / "m/model.pt2", change)
    with pytest.raises(InvalidModel, match="could run any code"):
        load_folder(tmp_path / "m")


def test_sample_inputs_of_an_export_are_not_unpickled(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    buffer = io.BytesIO()
    torch.save(((Trap(mark),), {}), buffer)
    exported(tmp_path / "m")
    rewritten(
        tmp_path / "m/model.pt2",
        lambda name, content: buffer.getvalue() if "sample_inputs" in name else content,
    )
    with pytest.raises(InvalidModel, match=r"sample inputs in model\.pt2 are a pickle"):
        load_folder(tmp_path / "m")
    assert not mark.exists()


def test_an_archive_that_fills_the_memory(tmp_path: Path) -> None:
    scripted(tmp_path / "m")
    path = tmp_path / "m/model.pt"
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/data/9", bytes(80 * 2**20))
    with pytest.raises(InvalidModel, match="would unpack to"):
        load_folder(tmp_path / "m")


def test_an_export_in_machine_code(tmp_path: Path) -> None:
    exported(tmp_path / "m")
    with zipfile.ZipFile(tmp_path / "m/model.pt2", "a") as archive:
        archive.writestr("model/data/aotinductor/model/a.so", b"\x7fELF")
    with pytest.raises(InvalidModel, match="AOTInductor"):
        load_folder(tmp_path / "m")


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    state_dict(tmp_path / "m")
    settings(tmp_path / "m", torch_models.SIGNATURE + "torch: {compile: true}\n")
    model = load_folder(tmp_path / "m")
    assert list((tmp_path / "cache").rglob("*.so"))
    warm_up(model)
    assert can_batch(model, AUTO)
    # One row is a case of its own; every other number is one.
    compiled = sorted((tmp_path / "cache").rglob("*.so"))
    for rows in (1, 3, 7):
        x = np.full((rows, 4), rows, np.float32)
        assert run(model, x=x)["output"].tolist() == (2 * x).tolist()
    assert sorted((tmp_path / "cache").rglob("*.so")) == compiled, "compiled before requests"


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")
def test_compiling_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, str(tmp_path / "no-compiler")))
    exported(tmp_path / "m")
    settings(tmp_path / "m", "torch: {compile: true}\n")
    with pytest.raises(
        ConfigurationError, match=r"torch\.compile could not compile .*no-compiler"
    ):
        load_folder(tmp_path / "m")


def test_compiling_torchscript_is_a_mistake(tmp_path: Path) -> None:
    scripted(tmp_path / "m")
    settings(tmp_path / "m", torch_models.SIGNATURE + "torch: {compile: true}\n")
    with pytest.raises(ConfigurationError, match="compiled already"):
        load_folder(tmp_path / "m")


def test_without_pytorch_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "installed", lambda name: False)
    monkeypatch.setitem(__import__("sys").modules, "tidegate.runtimes.torch", None)
    with pytest.raises(RuntimeMissing, match=r"pip install 'tidegate\[torch\]'"):
        registry.load("torch", Path("m.pt2"), RuntimeOptions())


def test_options_reach_the_model_through_its_settings() -> None:
    config = ModelConfig.model_validate(
        {"torch": {"compile": True}, "resources": {"threads": 3}, "warmup": "a.npz"}
    )
    assert ModelConfig.model_validate_json(config.model_dump_json()) == config
