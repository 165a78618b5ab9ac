from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests import models
from tidegate.errors import RuntimeMissing
from tidegate.runtimes import registry
from tidegate.runtimes.interface import RuntimeOptions

FRAMEWORKS = ("onnxruntime", "torch", "tensorflow", "openvino", "onnx", "cv2", "httpx", "grpc")


@pytest.mark.parametrize(
    "module",
    [
        "tidegate",
        "tidegate.client",
        "tidegate.serving",
        "tidegate.guard",
        "tidegate.cli.main",
        "tidegate.repository.layout",
        "tidegate.config.loading",
        "tidegate.runtimes.registry",
    ],
)
def test_importing_brings_no_framework(module: str) -> None:
    code = f"import sys, {module}; print(sorted({FRAMEWORKS!r} & sys.modules.keys()))"
    code = code.replace(repr(FRAMEWORKS), repr(set(FRAMEWORKS)))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_what_is_available() -> None:
    found = {each.runtime.name: each for each in registry.available()}
    # It needs a build of onnxruntime that nothing but a GPU can run.
    assert not found.pop("tensorrt").installed
    for each in found.values():
        assert each.installed
        assert each.version is not None
        assert "cpu" in registry.devices(each.runtime.name)
    assert found["onnx"].runtime.formats == ("onnx",)
    assert found["caffe"].runtime.formats == ("caffe",)
    assert found["openvino"].runtime.formats == ("onnx", "savedmodel", "openvino")
    assert found["torch"].runtime.formats == (
        "torchscript",
        "pt2",
        "state-dict",
        "torch-pickle",
        "safetensors",
    )


def test_runtimes_by_format() -> None:
    found = registry.runtime_for("onnx")
    assert found is not None
    assert found.name == "onnx"
    assert registry.runtime_for("torchscript") is registry.RUNTIMES["torch"]
    assert registry.runtime_for("tflite") is None
    assert registry.runtime_for("nothing") is None


def test_loading(tmp_path: Path) -> None:
    path = models.identity(tmp_path / "m.onnx")
    model = registry.load("onnx", path, RuntimeOptions("cpu"))
    assert model.signature.inputs[0].name == "x"


def test_an_unknown_runtime() -> None:
    with pytest.raises(RuntimeMissing, match="no runtime 'abacus'; known are onnx, torch,"):
        registry.load("abacus", Path("m.pt"), RuntimeOptions())


def test_a_runtime_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("onnx", "onnxruntime_quiet"):
        monkeypatch.delitem(sys.modules, f"tidegate.runtimes.{module}", raising=False)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr(registry, "installed", lambda name: False)
    with pytest.raises(RuntimeMissing, match=r"pip install 'tidegate\[onnx\]'"):
        registry.load("onnx", Path("m.onnx"), RuntimeOptions())


def test_a_runtime_that_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("onnx", "onnxruntime_quiet"):
        monkeypatch.delitem(sys.modules, f"tidegate.runtimes.{module}", raising=False)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr(registry, "installed", lambda name: True)
    with pytest.raises(RuntimeMissing, match="is installed but cannot be imported"):
        registry.load("onnx", Path("m.onnx"), RuntimeOptions())
