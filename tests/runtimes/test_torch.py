"""The PyTorch runtime on real files of every format."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import nn

from tests import torch_models
from tests.runtimes.torch_folder import AUTO, Trap, X, load_folder, run
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
from tidegate.errors import (
    ConfigurationError,
    InferenceFailed,
    InsufficientMemory,
    InvalidModel,
)
from tidegate.replica.warmup import can_batch, warm_up
from tidegate.repository.layout import read_model
from tidegate.runtimes.interface import RuntimeOptions
from tidegate.runtimes.torch import _device, load
from tidegate.types import DType, TensorSpec

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
    with pytest.raises(InvalidModel, match=r"weights alone \(1 tensor: factor\): put the code"):
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
    with pytest.raises(InvalidModel, match=r"not here: Model of the program that .*as model\.py"):
        load_folder(tmp_path / "m")
    (tmp_path / "m/model.py").write_text(torch_models.CODE)
    assert run(load_folder(tmp_path / "m"), x=X)["output"].tolist() == (2 * X).tolist()


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
    text = f"precision: {precision}\ntorch: {{channels_last: true}}\n"
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
