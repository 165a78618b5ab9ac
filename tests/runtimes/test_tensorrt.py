"""What can be told of TensorRT without a GPU: what onnxruntime is told, and what it answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from tests import models
from tidegate.config.model import ModelConfig
from tidegate.errors import ConfigurationError, InvalidInput, InvalidModel
from tidegate.repository import formats
from tidegate.runtimes import onnx
from tidegate.runtimes.interface import RuntimeOptions
from tidegate.runtimes.tensorrt import devices, load, ranges_of, settings_of
from tidegate.types import DType, Signature, TensorSpec

REAL_SESSION = onnx.create_session
PROVIDERS = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]


def options(device: str = "auto", **config: Any) -> RuntimeOptions:
    return RuntimeOptions(device, 1, config=ModelConfig.model_validate(config))


class Gpu:
    """Runs on the CPU what is meant for TensorRT, and remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[dict[str, str]] = []
        self.used = PROVIDERS
        self.error: Exception | None = None

    def create(
        self, path: Path, model: str | bytes, given: RuntimeOptions, providers: list[Any]
    ) -> Any:
        session = REAL_SESSION(path, model, given, [onnx.CPU])
        if providers != [onnx.CPU]:
            assert [p if isinstance(p, str) else p[0] for p in providers] == PROVIDERS
            self.told.append(providers[0][1])
            assert Path(providers[0][1]["trt_engine_cache_path"]).is_dir()
            if self.error is not None:
                raise self.error
            session.get_providers = lambda: self.used
        return session


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Gpu:
    found = Gpu()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: PROVIDERS)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None, raising=False)
    monkeypatch.setattr(onnx, "create_session", found.create)
    return found


def test_what_the_provider_is_told(gpu: Gpu, tmp_path: Path) -> None:
    path = models.tiny_mlp(tmp_path / "m/model.onnx")
    config = {"precision": "fp16", "batching": {"max_batch_size": 8}}
    model = load(path, options("cuda:1", tensorrt={"workspace": "2GiB"}, **config))
    assert (model.platform, model.device, model.most_rows) == (
        "onnxruntime_tensorrt",
        "cuda:1",
        8,
    )
    (told,) = gpu.told
    cache = Path(told.pop("trt_engine_cache_path"))
    assert told == {
        "device_id": "1",
        "trt_engine_cache_enable": "1",
        "trt_fp16_enable": "1",
        "trt_bf16_enable": "0",
        "trt_max_workspace_size": str(2**31),
        "trt_profile_min_shapes": "x:1x16",
        "trt_profile_opt_shapes": "x:8x16",
        "trt_profile_max_shapes": "x:8x16",
    }
    # Never in the model's folder, which would change it.
    assert cache.parent == tmp_path / "cache/tidegate/engines"
    assert [child.name for child in path.parent.iterdir()] == ["model.onnx"]
    assert model.run({"x": np.zeros((8, 16), np.float32)}, ["probabilities"])
    with pytest.raises(InvalidInput, match=r"dimension 0 of the input 'x' is 9, .* for 1 to 8"):
        model.run({"x": np.zeros((9, 16), np.float32)}, ["probabilities"])


def test_engines_are_taken_from_the_cache_unless_anything_changed(
    gpu: Gpu, tmp_path: Path
) -> None:
    path = models.tiny_mlp(tmp_path / "m/model.onnx", external=True)

    def folder(**config: Any) -> str:
        load(path, options(**config))
        return Path(gpu.told[-1]["trt_engine_cache_path"]).name

    first = folder()
    assert first.endswith(".part")
    assert folder() == first.removesuffix(".part")
    assert folder(precision="bf16").endswith(".part")
    weights = path.with_name("weights.bin")
    weights.write_bytes(weights.read_bytes()[::-1])
    # The graph is the same, but an engine holds the weights.
    assert folder().endswith(".part")


def test_outputs_that_numpy_lacks_are_cast(gpu: Gpu, tmp_path: Path) -> None:
    path = models.cast_weights(tmp_path / "m/model.onnx", DType.BF16)
    answer = load(path, options()).run({"x": np.ones((1, 4), np.float32)}, ["y"])["y"]
    assert answer.dtype == DType.BF16.numpy


SIGNATURE = Signature(
    (
        TensorSpec("ids", DType.INT64, ("batch", "length")),
        TensorSpec("fixed", DType.FP32, (3, 4)),
        TensorSpec("other", DType.FP32, (None, 4)),
    ),
    (),
)


def test_ranges_of_dynamic_dimensions() -> None:
    ranges = ranges_of(SIGNATURE, options(tensorrt={"dimensions": {"length": [2, 128]}}))
    assert ranges == {"ids": [(1, 32), (2, 128)], "other": [(1, 32), (4, 4)]}
    told = settings_of(options(precision="bf16"), ranges, "0")
    assert told["trt_profile_min_shapes"] == "ids:1x2,other:1x4"
    assert told["trt_profile_max_shapes"] == "ids:32x128,other:32x4"
    assert (told["trt_fp16_enable"], told["trt_bf16_enable"]) == ("0", "1")
    told = settings_of(options(precision="fp32"), {}, "0")
    assert (told["trt_fp16_enable"], told["trt_bf16_enable"]) == ("0", "0")
    assert not any("profile" in name for name in told)


def test_a_dimension_without_a_range() -> None:
    with pytest.raises(ConfigurationError, match=r"dimension 1 of 'ids' .* \{length: \[1, 512\]"):
        ranges_of(SIGNATURE, options())
    nameless = Signature((TensorSpec("x", DType.FP32, ("n", None)),), ())
    with pytest.raises(ConfigurationError, match="has given it a name"):
        ranges_of(nameless, options())
    with pytest.raises(ConfigurationError, match="the number of dimensions of 'x'"):
        ranges_of(Signature((TensorSpec("x", DType.FP32, None),), ()), options())


def test_a_build_without_tensorrt(tmp_path: Path) -> None:
    path = models.identity(tmp_path / "m.onnx")
    if "TensorrtExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this one has it")
    assert devices() == ()
    assert not formats.installed("tensorrt")
    with pytest.raises(ConfigurationError, match=r"has no TensorRT; .* 'tidegate\[tensorrt\]'"):
        load(path, options())


def test_a_cpu_is_no_gpu(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="device: cpu is not for the runtime tensorrt"):
        load(models.identity(tmp_path / "m.onnx"), options("cpu"))


# What onnxruntime-gpu 1.31 says where there is no GPU.
NO_LIBRARIES = (
    "onnxruntime 1.31.1 refuses m.onnx: Please install TensorRT libraries as mentioned in the GPU "
    "requirements page, make sure they're in the PATH or LD_LIBRARY_PATH, and that your GPU is "
    "supported."
)


def _no_libraries(gpu: Gpu) -> None:
    gpu.error = InvalidModel(NO_LIBRARIES)


def _another_provider(gpu: Gpu) -> None:
    gpu.used = PROVIDERS[1:]


@pytest.mark.parametrize("fault", [_no_libraries, _another_provider])
def test_tensorrt_that_cannot_be_used(
    gpu: Gpu, tmp_path: Path, fault: Callable[[Gpu], None]
) -> None:
    fault(gpu)
    with pytest.raises(ConfigurationError, match="has TensorRT, but cannot use it: there is no"):
        load(models.identity(tmp_path / "m.onnx"), options())


def test_a_model_that_tensorrt_refuses(gpu: Gpu, tmp_path: Path) -> None:
    gpu.error = InvalidModel("onnxruntime 1.31.1 refuses m.onnx: no engine could be built")
    with pytest.raises(InvalidModel, match="no engine could be built"):
        load(models.identity(tmp_path / "m.onnx"), options())


def test_a_range_that_is_upside_down() -> None:
    with pytest.raises(ValueError, match="the smallest length, 9, comes before the largest, 3"):
        options(tensorrt={"dimensions": {"length": [9, 3]}})
