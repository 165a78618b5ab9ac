from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

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
from tidegate.runtimes.interface import RuntimeOptions
from tidegate.runtimes.onnx import devices, load, session_options
from tidegate.types import Array, DType, TensorSpec

CPU = RuntimeOptions(device="cpu", threads=1)


def values(dtype: DType, shape: tuple[int, ...]) -> Array:
    count = int(np.prod(shape))
    if dtype is DType.BYTES:
        texts = [b"", b"plain", "žluť 漢字".encode(), b"nul\0inside", b"'quoted'", b"b'x'"]
        array = np.empty(shape, np.object_)
        array.reshape(-1)[:] = [texts[i % len(texts)] for i in range(count)]
        return array
    if dtype is DType.BOOL:
        return np.resize(np.array([True, False]), shape)
    if dtype.numpy.kind in "iu":
        info = np.iinfo(dtype.numpy)
        edges = np.array([info.min, info.max, 0, 1], dtype.numpy)
        return np.resize(edges, shape)
    return np.resize(np.array([1.5, -2.25, 0.0, np.inf, 65280.0]), shape).astype(dtype.numpy)


@pytest.mark.parametrize("shape", [(6,), (2, 3), (0, 3), ()], ids=str)
@pytest.mark.parametrize("dtype", DType)
def test_every_type_survives(tmp_path: Path, dtype: DType, shape: tuple[int, ...]) -> None:
    model = load(models.identity(tmp_path / "m.onnx", dtype, [None] * len(shape)), CPU)
    spec = model.signature.inputs[0]
    assert (spec.dtype, spec.shape) == (dtype, (None,) * len(shape))
    sent = values(dtype, shape)
    sent.flags.writeable = False
    result = model.run({"x": sent}, ["y"])["y"]
    assert result.dtype == dtype.numpy
    assert result.shape == shape
    assert result.flags.c_contiguous
    assert result.tolist() == sent.tolist()
    if dtype is DType.BYTES:
        assert all(type(element) is bytes for element in result.reshape(-1).tolist())


def test_all_types_in_one_model(tmp_path: Path) -> None:
    model = load(models.every_dtype(tmp_path / "m.onnx"), CPU)
    assert [spec.dtype for spec in model.signature.outputs] == list(models.ELEMENT)
    sent = {f"in_{d.value}": values(d, (2, 2)) for d in DType}
    names = [f"out_{d.value}" for d in DType]
    results = model.run(sent, names)
    assert list(results) == names
    for dtype in DType:
        assert results[f"out_{dtype.value}"].dtype == dtype.numpy
        assert results[f"out_{dtype.value}"].tolist() == sent[f"in_{dtype.value}"].tolist()
    assert model.run(sent, ["out_BF16"])["out_BF16"].dtype == DType.BF16.numpy
    assert list(model.run(sent, ["out_INT8"])) == ["out_INT8"]


@pytest.mark.parametrize(
    ("settings", "allowed", "microseconds"),
    [({}, "1", "20"), ({"spin": "30ms"}, "1", "30000"), ({"spin": 0}, "0", None)],
    ids=str,
)
def test_how_long_threads_spin(
    tmp_path: Path, settings: dict[str, object], allowed: str, microseconds: str | None
) -> None:
    config = ModelConfig.model_validate({"onnx": settings})
    options = RuntimeOptions(device="cpu", threads=2, config=config)
    told = session_options(options)
    assert told.get_session_config_entry("session.intra_op.allow_spinning") == allowed
    if microseconds is not None:
        found = told.get_session_config_entry("session.intra_op.spin_duration_us")
        assert found == microseconds
    model = load(models.scale(tmp_path / "m.onnx"), options)
    assert model.run({"x": np.ones((1, 4), np.float32)}, ["y"])["y"].shape == (1, 4)


def test_bf16_keeps_every_bit(tmp_path: Path) -> None:
    model = load(models.identity(tmp_path / "m.onnx", DType.BF16, ["n"]), CPU)
    sent = np.arange(2**16, dtype=np.uint16)
    result = model.run({"x": sent.view(DType.BF16.numpy)}, ["y"])["y"]
    assert np.array_equal(result.view(np.uint16), sent)


def test_text_that_is_not_utf8_is_refused_with_the_element(tmp_path: Path) -> None:
    model = load(models.identity(tmp_path / "m.onnx", DType.BYTES, ["n"]), CPU)
    with pytest.raises(InvalidInput, match=r"input 'x' has the element b'\\xff\\xfe'.*not UTF-8"):
        model.run({"x": np.array([b"fine", b"\xff\xfe"], np.object_)}, ["y"])


def test_the_signature(tmp_path: Path) -> None:
    model = load(models.add_sub(tmp_path / "m.onnx", DType.INT32, ("batch", None, 3)), CPU)
    shape = ("batch", None, 3)
    assert model.signature.inputs == (
        TensorSpec("a", DType.INT32, shape),
        TensorSpec("b", DType.INT32, shape),
    )
    assert [spec.name for spec in model.signature.outputs] == ["total", "difference"]
    assert (model.platform, model.device) == ("onnxruntime_onnx", "cpu")
    x = np.ones((1, 2, 3), np.int32)
    assert list(model.run({"a": x, "b": x}, ["difference"])) == ["difference"]


def test_an_unknown_rank_is_no_scalar(tmp_path: Path) -> None:
    model = load(models.identity(tmp_path / "m.onnx", shape=None), CPU)
    assert model.signature.inputs[0].shape is None
    assert model.signature.outputs[0].shape is None
    assert model.run({"x": np.zeros((2, 3), np.float32)}, ["y"])["y"].shape == (2, 3)
    scalar = load(models.identity(tmp_path / "s.onnx", shape=()), CPU)
    assert scalar.signature.inputs[0].shape == ()


def test_constants_among_the_inputs_are_not_asked_for(tmp_path: Path) -> None:
    path = models.tiny_mlp(tmp_path / "m.onnx", constants_as_inputs=True)
    assert [spec.name for spec in load(path, CPU).signature.inputs] == ["x"]


def test_external_data_lie_beside_the_model(tmp_path: Path) -> None:
    path = models.tiny_mlp(tmp_path / "m/model.onnx", external=True)
    plain = models.tiny_mlp(tmp_path / "plain.onnx")
    x = np.linspace(-1, 1, 32, dtype=np.float32).reshape(2, 16)
    one, other = (load(p, CPU).run({"x": x}, ["probabilities"]) for p in (path, plain))
    assert np.array_equal(one["probabilities"], other["probabilities"])
    (tmp_path / "m/weights.bin").write_bytes(b"short")
    with pytest.raises(InvalidModel, match="can not be read in full"):
        load(path, CPU)
    (tmp_path / "m/weights.bin").unlink()
    with pytest.raises(InvalidModel, match=r"refuses model\.onnx: .*weights\.bin"):
        load(path, CPU)


def test_external_data_of_a_model_with_bf16_outputs(tmp_path: Path) -> None:
    path = models.cast_weights(tmp_path / "m/model.onnx", DType.BF16)
    result = load(path, CPU).run({"x": np.ones((1, 4), np.float32)}, ["y"])["y"]
    assert result.dtype == DType.BF16.numpy
    assert result.tolist() == [[1.0, 2.0, 3.0, 4.0]]


def test_what_no_tensor_can_carry(tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match=r"output 'ys' of m\.onnx is a seq.*zipmap=False"):
        load(models.sequence(tmp_path / "m.onnx"), CPU)


def _operator(model: onnx.ModelProto) -> None:
    model.graph.node[0].op_type = "Frobnicate"


def _ir(model: onnx.ModelProto) -> None:
    model.ir_version = 99


@pytest.mark.parametrize(
    ("damage", "words"), [(_operator, "No Op registered for Frobnicate"), (_ir, "IR version: 99")]
)
def test_onnxruntimes_own_words(
    tmp_path: Path, damage: Callable[[onnx.ModelProto], None], words: str
) -> None:
    path = models.identity(tmp_path / "m.onnx")
    content = onnx.load(path)
    damage(content)
    onnx.save(content, path)
    with pytest.raises(InvalidModel) as caught:
        load(path, CPU)
    message = str(caught.value)
    assert message.startswith(f"onnxruntime {onnxruntime.__version__} refuses m.onnx: ")
    assert words in message
    assert "onnxruntime_src" not in message
    assert "\n" not in message


@pytest.mark.parametrize("data", [b"", b"words", b"\x08\x09"], ids=["empty", "text", "cut"])
def test_what_is_no_model(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    with pytest.raises(InvalidModel, match=r"refuses m\.onnx"):
        load(path, CPU)


def test_a_run_that_fails_and_the_next_that_does_not(tmp_path: Path) -> None:
    model = load(models.gather(tmp_path / "m.onnx"), CPU)
    with pytest.raises(InferenceFailed, match=r"Gather node.*idx=9 must be within") as caught:
        model.run({"index": np.array([[9]])}, ["value"])
    assert "ONNXRuntimeError" not in str(caught.value)
    assert model.run({"index": np.array([[2]])}, ["value"])["value"].tolist() == [[2.0]]


def test_memory_that_cannot_be_had(tmp_path: Path) -> None:
    model = load(models.hungry(tmp_path / "m.onnx"), CPU)
    with pytest.raises(InsufficientMemory, match="Failed to allocate memory"):
        model.run({"count": np.array([10**13])}, ["y"])
    assert model.run({"count": np.array([2])}, ["y"])["y"].tolist() == [0.0, 0.0]


LIMITED = """
import resource, sys
from pathlib import Path
from tidegate.errors import InsufficientMemory
from tidegate.runtimes.interface import RuntimeOptions
from tidegate.runtimes.onnx import load
resource.setrlimit(resource.RLIMIT_DATA, (400 * 2**20, 400 * 2**20))
try:
    load(Path(sys.argv[1]), RuntimeOptions("cpu", 1))
except InsufficientMemory as error:
    print("does not fit:", error)
"""


def test_a_model_that_does_not_fit(tmp_path: Path) -> None:
    path = models.tiny_mlp(tmp_path / "m.onnx", inputs=16, hidden=2**21, outputs=40)
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(path)], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.startswith("does not fit:"), done.stderr


def test_a_gpu_that_is_not_here(tmp_path: Path) -> None:
    path = models.identity(tmp_path / "m.onnx")
    assert load(path, RuntimeOptions("auto")).device in ("cpu", "cuda:0")
    if "cuda" not in devices():
        with pytest.raises(ConfigurationError, match=r"device: cuda:1 .*onnxruntime-gpu"):
            load(path, RuntimeOptions("cuda:1"))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_precision_that_only_others_have(tmp_path: Path, precision: str) -> None:
    path = models.identity(tmp_path / "m.onnx")
    config = ModelConfig.model_validate({"precision": precision})
    with pytest.raises(ConfigurationError, match=rf"precision: {precision} .* runtime: openvino"):
        load(path, RuntimeOptions("cpu", config=config))
    exact = ModelConfig.model_validate({"precision": "fp32"})
    assert load(path, RuntimeOptions("cpu", config=exact)).device == "cpu"


QUIET = """
import sys
from pathlib import Path
import numpy as np
from tidegate.errors import InferenceFailed
from tidegate.runtimes.interface import RuntimeOptions
from tidegate.runtimes.onnx import load
load(Path(sys.argv[1]), RuntimeOptions("cpu", 1))
try:
    load(Path(sys.argv[2]), RuntimeOptions("cpu", 1)).run({"index": np.array([[9]])}, ["value"])
except InferenceFailed:
    print("failed")
"""


def test_onnxruntime_does_not_fill_the_log(tmp_path: Path) -> None:
    noisy = models.tiny_mlp(tmp_path / "a.onnx", constants_as_inputs=True)
    failing = models.gather(tmp_path / "b.onnx")
    done = subprocess.run(
        [sys.executable, "-c", QUIET, noisy, failing], capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("failed\n", "")


def test_it_tells_nobody(tmp_path: Path) -> None:
    """onnxruntime would leave a database of events for its maker."""
    path = models.identity(tmp_path / "m.onnx")
    home = tmp_path / "home"
    home.mkdir()
    code = QUIET.partition("try:")[0]
    told = {"HOME": str(home), "XDG_CACHE_HOME": str(home), "PATH": ""}
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"} | told
    subprocess.run([sys.executable, "-c", code, path], check=True, timeout=60, env=environment)
    assert list(home.iterdir()) == []


def test_an_idle_model_uses_no_cpu(tmp_path: Path) -> None:
    model = load(models.tiny_mlp(tmp_path / "m.onnx"), RuntimeOptions("cpu", 2))
    model.run({"x": np.zeros((1, 16), np.float32)}, ["probabilities"])
    process = psutil.Process()
    before = sum(process.cpu_times()[:2])
    threading.Event().wait(0.5)
    assert sum(process.cpu_times()[:2]) - before < 0.25


def test_the_fast_path_adds_little(tmp_path: Path) -> None:
    path = models.tiny_mlp(tmp_path / "m.onnx")
    model = load(path, CPU)
    x = {"x": np.zeros((1, 16), np.float32)}
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])

    def pace(call: Callable[[], object]) -> float:
        began = time.perf_counter()
        for _ in range(100):
            call()
        return (time.perf_counter() - began) / 100

    # The best of many short rounds: the machine may be busy with something else.
    ours, theirs = [], []
    for _ in range(50):
        ours.append(pace(lambda: model.run(x, ("probabilities",))))
        theirs.append(pace(lambda: session.run(["probabilities"], x)))
    assert min(ours) - min(theirs) < 10e-6


def test_close_frees_the_session(tmp_path: Path) -> None:
    model = load(models.identity(tmp_path / "m.onnx"), CPU)
    model.close()


def test_a_declared_signature_refines_that_of_the_model(tmp_path: Path) -> None:
    path = models.identity(tmp_path / "m.onnx", shape=(None, 4))

    def declared(**signature: object) -> RuntimeOptions:
        return RuntimeOptions("cpu", config=ModelConfig.model_validate({"signature": signature}))

    rows = [{"name": "x", "shape": ["batch", 4]}]
    outputs = [{"name": "y", "shape": ["batch", 4]}]
    signature = load(path, declared(inputs=rows, outputs=outputs)).signature
    assert signature.inputs[0].shape == signature.outputs[0].shape == ("batch", 4)
    for contradiction, words in (
        ({"inputs": ["z"]}, "no such input: it has 'x'"),
        ({"inputs": [{"name": "x", "dtype": "INT64"}]}, "'x' is INT64, but .* is FP32"),
        ({"outputs": [{"name": "y", "shape": ["n", 5]}]}, r"\['n', 5\], but .* \[None, 4\]"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            load(path, declared(**contradiction))
