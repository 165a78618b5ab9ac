from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import psutil
import pytest

from tests import models
from tidegate.config.model import ModelConfig
from tidegate.errors import (
    ConfigurationError,
    InferenceFailed,
    InsufficientMemory,
    InvalidInput,
    InvalidModel,
)
from tidegate.runtimes import registry
from tidegate.runtimes.interface import RuntimeOptions
from tidegate.runtimes.openvino import OpenVinoModel, load, settings_of
from tidegate.runtimes.openvino_quiet import openvino
from tidegate.types import Array, DType, TensorSpec

NUMBERS = [dtype for dtype in DType if dtype is not DType.BYTES]
ALL = ("FP32", "BF16", "FP16")


def options(threads: int = 1, device: str = "cpu", **config: Any) -> RuntimeOptions:
    return RuntimeOptions(device, threads, config=ModelConfig.model_validate(config))


CPU = options()


def as_ir(source: Path, path: Path) -> Path:
    """Convert a model to OpenVINO's own format: ``path`` and its weights beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    model = openvino.Core().read_model(source)
    openvino.save_model(model, path, compress_to_fp16=False)
    return path


def values(dtype: DType, shape: tuple[int, ...]) -> Array:
    if dtype is DType.BOOL:
        return np.resize(np.array([True, False]), shape)
    if dtype.numpy.kind in "iu":
        info = np.iinfo(dtype.numpy)
        low, high = max(info.min, -(2**31)), min(info.max, 2**31 - 1)
        return np.resize(np.array([low, high, 0, 1], dtype.numpy), shape)
    return np.resize(np.array([1.5, -2.25, 0.0, np.inf, 65280.0]), shape).astype(dtype.numpy)


@pytest.mark.parametrize("shape", [(6,), (2, 3), (0, 3), ()], ids=str)
@pytest.mark.parametrize("dtype", NUMBERS)
def test_every_type_survives(tmp_path: Path, dtype: DType, shape: tuple[int, ...]) -> None:
    model = load(models.identity(tmp_path / "m.onnx", dtype, [None] * len(shape)), CPU)
    spec = model.signature.inputs[0]
    assert (spec.dtype, spec.shape) == (dtype, (None,) * len(shape))
    sent = values(dtype, shape)
    sent.flags.writeable = False
    result = model.run({"x": sent}, ["y"])["y"]
    assert (result.dtype, result.shape) == (dtype.numpy, shape)
    assert result.flags.c_contiguous
    assert result.tolist() == sent.tolist()


def test_all_types_in_one_model(tmp_path: Path) -> None:
    model = load(models.every_dtype(tmp_path / "m.onnx", dtypes=NUMBERS), CPU)
    sent = {f"in_{d.value}": values(d, (2, 2)) for d in NUMBERS}
    names = [f"out_{d.value}" for d in NUMBERS]
    results = model.run(sent, names)
    assert list(results) == names
    for dtype in NUMBERS:
        assert results[f"out_{dtype.value}"].tolist() == sent[f"in_{dtype.value}"].tolist()
    assert list(model.run(sent, ["out_INT8"])) == ["out_INT8"]


def test_answers_stay_when_the_next_is_computed(tmp_path: Path) -> None:
    model = load(models.scale(tmp_path / "m.onnx"), CPU)
    first = model.run({"x": np.ones((1, 4), np.float32)}, ["y"])["y"]
    model.run({"x": np.zeros((1, 4), np.float32)}, ["y"])
    assert first.tolist() == [[2.0, 2.0, 2.0, 2.0]]


@pytest.mark.parametrize("dtype", [DType.INT64, DType.UINT64])
def test_integers_that_would_lose_bits_are_refused(tmp_path: Path, dtype: DType) -> None:
    model = load(models.add_sub(tmp_path / "m.onnx", dtype, ("n",)), CPU)
    small, large = np.array([5, 7], dtype.numpy), np.array([5, 2**31], dtype.numpy)
    assert model.run({"a": small, "b": small}, ["total"])["total"].tolist() == [10, 14]
    with pytest.raises(InvalidInput, match=r"'b' holds 2147483648, .* integers in 32 bits"):
        model.run({"a": small, "b": large}, ["total"])


def test_the_signature_has_the_names_of_the_onnx_file(tmp_path: Path) -> None:
    shape = ("batch", None, 3)
    model = load(models.add_sub(tmp_path / "m.onnx", DType.INT32, shape), CPU)
    assert model.signature.inputs == (
        TensorSpec("a", DType.INT32, shape),
        TensorSpec("b", DType.INT32, shape),
    )
    assert [spec.name for spec in model.signature.outputs] == ["total", "difference"]
    assert (model.platform, model.device, model.most_rows) == ("openvino", "cpu", None)


def test_ir_answers_as_the_model_it_was_made_from(tmp_path: Path) -> None:
    source = models.tiny_mlp(tmp_path / "m.onnx")
    model = load(as_ir(source, tmp_path / "ir/model.xml"), CPU)
    # IR knows no names of dimensions.
    assert model.signature.inputs == (TensorSpec("x", DType.FP32, ("batch", 16)),)
    assert model.signature.outputs == (TensorSpec("probabilities", DType.FP32, ("batch", 10)),)
    x = np.linspace(-1, 1, 48, dtype=np.float32).reshape(3, 16)
    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"x": x})
    answer = model.run({"x": x}, ["probabilities"])["probabilities"]
    assert np.allclose(answer, expected, rtol=1e-5, atol=1e-6)


def test_a_bounded_dimension_bounds_the_batch(tmp_path: Path) -> None:
    loaded = openvino.Core().read_model(models.tiny_mlp(tmp_path / "m.onnx"))
    loaded.reshape([openvino.Dimension(1, 6), 16])
    openvino.save_model(loaded, tmp_path / "m.xml")
    assert load(tmp_path / "m.xml", CPU).most_rows == 6


def test_constants_among_the_inputs_are_not_asked_for(tmp_path: Path) -> None:
    path = models.tiny_mlp(tmp_path / "m.onnx", constants_as_inputs=True)
    assert [spec.name for spec in load(path, CPU).signature.inputs] == ["x"]


def test_external_data_lie_beside_the_model(tmp_path: Path) -> None:
    path = models.cast_weights(tmp_path / "m/model.onnx", DType.BF16)
    answer = load(path, CPU).run({"x": np.ones((1, 4), np.float32)}, ["y"])["y"]
    assert answer.dtype == ml_dtypes.bfloat16
    assert answer.tolist() == [[1.0, 2.0, 3.0, 4.0]]


def test_a_declared_signature_refines_that_of_the_model(tmp_path: Path) -> None:
    path = as_ir(models.add_sub(tmp_path / "m.onnx"), tmp_path / "m.xml")
    inputs = [{"name": "a", "shape": ["rows", 4]}]
    model = load(path, options(signature={"inputs": inputs}))
    assert [spec.shape for spec in model.signature.inputs] == [("rows", 4), ("batch", 4)]
    with pytest.raises(ConfigurationError, match="no such input: it has 'a', 'b'"):
        load(path, options(signature={"inputs": ["c"]}))


def test_precision(tmp_path: Path) -> None:
    path = models.tiny_mlp(tmp_path / "m.onnx", inputs=64, hidden=128)
    x = np.random.default_rng(3).standard_normal((8, 64), np.float32)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"x": x})

    def distance(precision: str | None = None) -> float:
        model = load(path, options(precision=precision))
        answer = model.run({"x": x}, ["probabilities"])["probabilities"]
        assert answer.dtype == np.float32
        return float(np.max(np.abs(answer - expected)))

    # OpenVINO's own default on a CPU with BF16 is BF16.
    assert distance() < 1e-5
    assert distance(precision="fp32") < 1e-5
    if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        assert 1e-5 < distance(precision="bf16") < 0.1


def test_a_precision_that_the_cpu_lacks() -> None:
    with pytest.raises(ConfigurationError, match=r"fp16 .* on this CPU; it has fp32 and bf16"):
        settings_of(options(precision="fp16"), ("FP32", "BF16", "INT8"))
    with pytest.raises(ConfigurationError, match=r"bf16 .* on this CPU; it has fp32"):
        settings_of(options(precision="bf16"), ("FP32",))
    found = settings_of(options(precision="fp16"), ALL)
    assert found["INFERENCE_PRECISION_HINT"] == "f16"


def test_what_openvino_is_told() -> None:
    told = settings_of(options(3), ALL)
    assert told["INFERENCE_PRECISION_HINT"] == "f32"
    assert told["EXECUTION_MODE_HINT"] == "ACCURACY"
    assert told["INFERENCE_NUM_THREADS"] == 3
    assert told["PERFORMANCE_HINT"] == "LATENCY"
    assert told["ENABLE_CPU_PINNING"] is False
    assert "NUM_STREAMS" not in told
    told = settings_of(options(openvino={"hint": "throughput", "streams": 4}), ALL)
    assert (told["PERFORMANCE_HINT"], told["NUM_STREAMS"]) == ("THROUGHPUT", "4")


def test_the_device(tmp_path: Path) -> None:
    path = models.identity(tmp_path / "m.onnx")
    assert load(path, options(device="auto")).device == "cpu"
    with pytest.raises(ConfigurationError, match="device: cuda:1 is not for the runtime openvino"):
        load(path, options(device="cuda:1"))
    assert registry.devices("openvino") == ("cpu",)


def divided(path: Path, streams: int) -> OpenVinoModel:
    return load(path, options(2, batching={"enabled": True}, openvino={"streams": streams}))


@pytest.mark.skipif((psutil.cpu_count() or 1) < 2, reason="one core has one stream")
def test_streams_divide_the_rows_of_a_batch(tmp_path: Path) -> None:
    model = divided(models.add_sub(tmp_path / "m.onnx"), 2)
    for rows in (1, 2, 3, 7):
        a = np.arange(rows * 4, dtype=np.float32).reshape(rows, 4)
        b = np.full((rows, 4), rows, np.float32)
        answer = model.run({"a": a, "b": b}, ["difference", "total"])
        assert list(answer) == ["difference", "total"]
        assert np.array_equal(answer["total"], a + b)
        assert np.array_equal(answer["difference"], a - b)


@pytest.mark.skipif((psutil.cpu_count() or 1) < 2, reason="one core has one stream")
def test_a_failure_in_one_stream_leaves_the_others_usable(tmp_path: Path) -> None:
    model = divided(models.add_sub(tmp_path / "m.onnx"), 2)
    wrong = {"a": np.ones((4, 4), np.float32), "b": np.ones((4, 3), np.float32)}
    with pytest.raises(InferenceFailed):
        model.run(wrong, ["total"])
    right = {"a": np.ones((4, 4), np.float32), "b": np.ones((4, 4), np.float32)}
    assert model.run(right, ["total"])["total"].tolist() == [[2.0] * 4] * 4


@pytest.mark.skipif((psutil.cpu_count() or 1) < 2, reason="one core has one stream")
def test_streams_need_rows_that_do_not_mix(tmp_path: Path) -> None:
    path = models.mixes_rows(tmp_path / "m.onnx")
    with pytest.raises(ConfigurationError, match=r"2 streams .* batching: \{enabled: true\}"):
        load(path, options(2, openvino={"streams": 2}))
    with pytest.raises(ConfigurationError, match=r"'x' of shape \[2, 4\] has no rows"):
        divided(models.identity(tmp_path / "fixed.onnx", shape=(2, 4)), 2)


def test_strings_are_refused(tmp_path: Path) -> None:
    path = models.identity(tmp_path / "m.onnx", DType.BYTES, ["n"])
    with pytest.raises(InvalidModel, match=r"input 'x' of m\.onnx has the element type string"):
        load(path, CPU)


@pytest.mark.parametrize("data", [b"", b"words", b"\x08\x09"], ids=["empty", "text", "cut"])
def test_what_is_no_model(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    with pytest.raises(InvalidModel, match=r"OpenVINO 2026\.\d+\.\d+ refuses m\.onnx: "):
        load(path, CPU)


def test_openvinos_own_words(tmp_path: Path) -> None:
    path = models.tiny_mlp(tmp_path / "m.onnx")
    content = onnx.load(path)
    content.graph.node[0].op_type = "Frobnicate"
    onnx.save(content, path)
    with pytest.raises(InvalidModel, match="No conversion rule found for operations: Frob") as no:
        load(path, CPU)
    assert "src/" not in str(no.value)
    assert "\n" not in str(no.value)


def test_weights_that_are_missing_or_cut(tmp_path: Path) -> None:
    path = as_ir(models.tiny_mlp(tmp_path / "m.onnx"), tmp_path / "ir/model.xml")
    weights = path.with_suffix(".bin")
    content = weights.read_bytes()
    weights.write_bytes(content[:100])
    with pytest.raises(InvalidModel, match="Incorrect weights in bin file"):
        load(path, CPU)
    weights.unlink()
    with pytest.raises(InvalidModel, match="bin file cannot be found"):
        load(path, CPU)


def test_an_unknown_rank(tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match="with dynamic rank"):
        load(models.identity(tmp_path / "m.onnx", shape=None), CPU)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_run_that_fails_and_the_next_that_does_not(tmp_path: Path, threads: int) -> None:
    model = load(models.add_sub(tmp_path / "m.onnx", shape=("n", "m")), options(threads))
    a, b = np.ones((2, 3), np.float32), np.ones((2, 4), np.float32)
    with pytest.raises(InferenceFailed, match=r"'total' .* dim index: 1 mismatch") as caught:
        model.run({"a": a, "b": b}, ["total"])
    assert "Exception from" not in str(caught.value)
    assert model.run({"a": a, "b": a}, ["total"])["total"].tolist() == [[2.0] * 3] * 2


LIMITED = """
import os, resource, sys
from pathlib import Path
import numpy as np
import psutil
from tidegate.errors import InsufficientMemory
from tidegate.runtimes.interface import RuntimeOptions
from tidegate.runtimes.openvino import load
path, limit = Path(sys.argv[1]), int(sys.argv[2]) * 2**20
used = psutil.Process().memory_info().data
resource.setrlimit(resource.RLIMIT_DATA, (used + limit, used + limit))
def attempt(rows):
    try:
        model.run({"x": np.zeros((rows, 16), np.float32)}, ["probabilities"])
        print("ran", flush=True)
    except InsufficientMemory:
        print("too many", flush=True)
try:
    model = load(path, RuntimeOptions("cpu", 1))
except InsufficientMemory as error:
    print("does not fit:", error, flush=True)
else:
    for rows in (1, 100000, 1):
        attempt(rows)
os._exit(0)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux minds the limit")
def test_memory_that_cannot_be_had(tmp_path: Path) -> None:
    path = models.tiny_mlp(tmp_path / "m.onnx", hidden=8192)

    def limited(mebibytes: int) -> str:
        command = [sys.executable, "-c", LIMITED, str(path), str(mebibytes)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert limited(40).startswith("does not fit: ")
    # What did not fit is forgotten: one row still does.
    assert limited(300) == "ran\ntoo many\nran\n"


def test_memory_that_ran_out_is_told_as_such(tmp_path: Path) -> None:
    model = load(models.identity(tmp_path / "m.onnx"), CPU)

    class Full:
        def set_input_tensor(self, place: int, tensor: Any) -> None:
            raise RuntimeError(
                "Exception from src/inference/src/infer_request.cpp:7:\nstd::bad_alloc"
            )

    model._requests = [Full()]
    x = np.ones((1, 4), np.float32)
    with pytest.raises(InsufficientMemory, match=r"^std::bad_alloc$"):
        model.run({"x": x}, ["y"])
    assert model.run({"x": x}, ["y"])["y"].tolist() == x.tolist()


QUIET = """
import sys, threading
import tidegate.runtimes.openvino
told = any(name.startswith("openvino_telemetry.") for name in sys.modules)
print(told, threading.active_count())
"""


SIGNALLED = """
import gc, signal, sys
from pathlib import Path
from tidegate.runtimes.interface import RuntimeOptions
from tidegate.runtimes.openvino import load
signal.signal(signal.SIGINT, lambda *_: print("survived"))
options = RuntimeOptions("cpu", 1)
first, second = (load(Path(sys.argv[1]), options) for _ in range(2))
for model in (first, second):
    model.close()
del model, first
gc.collect()
del second
gc.collect()
signal.raise_signal(signal.SIGINT)
"""


def test_a_signal_after_models_were_closed(tmp_path: Path) -> None:
    path = models.scale(tmp_path / "m.onnx")
    command = [sys.executable, "-c", SIGNALLED, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "survived\n"), done.stderr


def test_importing_it_tells_nobody() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", QUIET], capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("False 1\n", "")


def test_an_idle_model_uses_no_cpu(tmp_path: Path) -> None:
    model = load(models.tiny_mlp(tmp_path / "m.onnx"), options(2))
    model.run({"x": np.zeros((1, 16), np.float32)}, ["probabilities"])
    process = psutil.Process()
    before = sum(process.cpu_times()[:2])
    threading.Event().wait(0.5)
    assert sum(process.cpu_times()[:2]) - before < 0.25


def test_close_frees_the_model(tmp_path: Path) -> None:
    load(models.identity(tmp_path / "m.onnx"), CPU).close()
