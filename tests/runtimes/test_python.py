from __future__ import annotations

import logging
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from tests import models
from tidegate.config.model import Batching
from tidegate.errors import (
    ConfigurationError,
    InferenceFailed,
    InsufficientMemory,
    InvalidInput,
    InvalidModel,
)
from tidegate.replica.batch import BatchRunner
from tidegate.replica.binding import Bound
from tidegate.replica.warmup import can_batch, warm_up
from tidegate.repository.entries import VersionEntry
from tidegate.repository.layout import is_model_folder, read_model, scan
from tidegate.runtimes.interface import RuntimeOptions
from tidegate.runtimes.python import PythonModel, load
from tidegate.runtimes.samples import samples_of
from tidegate.types import Array, DType, TensorSpec

X = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.float32)
DECLARED = "signature: {inputs: [{name: x, dtype: FP32, shape: [batch, 4]}]}\n"
DOUBLE = """
class Model:
    signature = {"inputs": [{"name": "x", "dtype": "FP32", "shape": ["batch", 4]}]}

    def run(self, inputs):
        return {"y": 2 * inputs["x"]}
"""


def write(folder: Path, code: str, settings: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.py").write_text(textwrap.dedent(code))
    if settings:
        (folder / "model.yaml").write_text(settings)
    return folder


def found(folder: Path) -> VersionEntry:
    """Return the only version of a model's folder."""
    entry = read_model(folder)
    if entry.problems:
        raise InvalidModel("; ".join(map(str, entry.problems)))
    (version,) = entry.versions.values()
    assert (version.format, version.runtime) == ("python", "python")
    return version


def options(folder: Path, device: str = "auto", threads: int = 1) -> RuntimeOptions:
    return RuntimeOptions(device, threads, folder, read_model(folder).config)


def load_folder(folder: Path, device: str = "auto") -> PythonModel:
    """Load a model's folder as a node would."""
    return load(found(folder).path, options(folder, device))


def run(model: PythonModel, **inputs: Array) -> dict[str, Array]:
    return model.run(inputs, [spec.name for spec in model.signature.outputs])


def test_a_class_is_a_model(tmp_path: Path) -> None:
    model = load_folder(write(tmp_path / "m", DOUBLE))
    assert model.signature.inputs == (TensorSpec("x", DType.FP32, ("batch", 4)),)
    assert model.signature.outputs == (TensorSpec("y", DType.FP32, ("batch", 4)),)
    assert (model.platform, model.device) == ("python", "cpu")
    np.testing.assert_array_equal(run(model, x=X)["y"], 2 * X)
    assert can_batch(model, Batching())
    assert is_model_folder(tmp_path / "m")


WHOLE = """
import numpy as np


class Scorer:
    def __init__(self, factor=1, *, names=()):
        self.factor, self.names, self.calls = factor, names, []

    def load(self, context):
        self.weights = np.load(context.path("weights.npy"))
        self.context = context

    def signature(self):
        rows = len(self.weights)
        return {
            "inputs": [{"name": "x", "dtype": "float32", "shape": ["n", rows]}],
            "outputs": [{"name": "score", "dtype": "FP32", "shape": ["n"]}],
        }

    def run(self, inputs):
        return {"score": inputs["x"] @ self.weights * self.factor}

    def unload(self):
        (self.context.folder / "ended").touch()


class Helper:
    pass
"""


def test_load_arguments_and_unload(tmp_path: Path) -> None:
    settings = "python: {model: Scorer, arguments: {factor: 2, names: [a, b]}}\nprecision: bf16\n"
    folder = write(tmp_path / "m", WHOLE, settings)
    np.save(folder / "weights.npy", np.arange(4))
    model = load(found(folder).path, options(folder, "cuda:1", threads=3))
    context = model._instance.context
    assert (context.device, context.precision, context.threads) == ("cuda:1", "bf16", 3)
    assert context.arguments == {"factor": 2, "names": ["a", "b"]}
    assert context.folder == context.model_folder == folder
    assert model.device == "cuda:1"
    assert model.signature.outputs == (TensorSpec("score", DType.FP32, ("n",)),)
    # The class computes in FP64; what it gives is what its signature says.
    score = run(model, x=X)["score"]
    assert score.dtype == np.float32
    np.testing.assert_array_equal(score, X @ np.arange(4) * 2)
    assert not (folder / "ended").exists()
    model.close()
    assert (folder / "ended").exists()


def test_the_signature_in_model_yaml(tmp_path: Path) -> None:
    code = DOUBLE.replace("signature =", "other =")
    folder = write(tmp_path / "m", code, DECLARED)
    assert load_folder(folder).signature.outputs == (TensorSpec("y", DType.FP32, ("batch", 4)),)


def test_the_signature_is_learnt_from_the_sample(tmp_path: Path) -> None:
    code = DOUBLE.replace("signature =", "other =")
    folder = write(tmp_path / "m", code, "warmup: sample.npz\n")
    np.savez(folder / "sample.npz", x=X)
    model = load_folder(folder)
    assert model.signature.inputs == (TensorSpec("x", DType.FP32, ("batch", 4)),)
    assert model.signature.outputs == (TensorSpec("y", DType.FP32, ("batch", 4)),)


def test_nothing_says_what_it_takes(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", DOUBLE.replace("signature =", "other ="))
    with pytest.raises(InvalidModel, match=r"model\.py does not say what it takes"):
        load_folder(folder)


def test_model_yaml_names_outputs_and_must_agree(tmp_path: Path) -> None:
    code = DOUBLE.replace('"y": 2', '"z": inputs["x"], "y": 2')
    folder = write(tmp_path / "m", code, "signature: {outputs: [y]}\n")
    assert [spec.name for spec in load_folder(folder).signature.outputs] == ["y"]
    write(folder, code, "signature: {outputs: [w]}\n")
    with pytest.raises(ConfigurationError, match=r"names 'w', but run\(\) of model\.py gives"):
        load_folder(folder)
    write(folder, code, "signature: {inputs: [{name: x, dtype: INT8}]}\n")
    with pytest.raises(ConfigurationError, match="says that 'x' is INT8"):
        load_folder(folder)


def test_strings(tmp_path: Path) -> None:
    code = """
    class Model:
        signature = {"inputs": [{"name": "text", "dtype": "BYTES", "shape": ["batch", 1]}]}

        def run(self, inputs):
            words = [[t.decode().upper() for t in row] for row in inputs["text"]]
            return {"upper": words, "length": [[len(w) for w in row] for row in words]}
    """
    model = load_folder(write(tmp_path / "m", code))
    assert [(s.name, s.dtype) for s in model.signature.outputs] == [
        ("upper", DType.BYTES),
        ("length", DType.INT64),
    ]
    outputs = run(model, text=np.array([["é".encode()], [b"ab"]], np.object_))
    assert outputs["upper"].tolist() == [["É".encode()], [b"AB"]]
    assert outputs["length"].tolist() == [[1], [2]]


def test_inputs_may_be_changed(tmp_path: Path) -> None:
    code = DOUBLE.replace(
        'return {"y": 2 * inputs["x"]}', 'x = inputs["x"]; x *= 2; return {"y": x}'
    )
    folder = write(tmp_path / "m", code, "warmup: sample.npz\n")
    np.savez(folder / "sample.npz", x=X)
    model = load_folder(folder)
    warm_up(model, samples_of(options(folder)))
    assert can_batch(model, Batching(), samples_of(options(folder)))
    request = np.frombuffer(X.tobytes(), np.float32).reshape(2, 4)
    for _ in range(2):
        np.testing.assert_array_equal(run(model, x=request)["y"], 2 * X)


RAISES = """
from tidegate.errors import InvalidInput


class Model:
    signature = {
        "inputs": [{"name": "x", "dtype": "FP32", "shape": ["n", 4]}],
        "outputs": [{"name": "y", "dtype": "FP32", "shape": ["n", 4]}],
    }

    def run(self, inputs):
        RAISE
"""


@pytest.mark.parametrize(
    ("line", "kind", "message"),
    [
        ("raise InvalidInput('no cats here')", InvalidInput, "no cats here"),
        ("1 / 0", InferenceFailed, "run() of model.py raised ZeroDivisionError: division by zero"),
        ("raise SystemExit(3)", InferenceFailed, "run() of model.py raised SystemExit: 3"),
        ("raise MemoryError('too much')", InsufficientMemory, "ran out of memory: too much"),
        ("return inputs['x']", InferenceFailed, "run() of model.py gave a ndarray: it must give"),
        ("return {'z': inputs['x']}", InferenceFailed, "gave 'z', but its signature says that it"),
        (
            "return {'y': 'text'}",
            InferenceFailed,
            "is of the type <U4, but the signature says FP32",
        ),
        ("return {'y': [[1], [1, 2]]}", InferenceFailed, "'y' of run() in model.py is a list"),
    ],
)
def test_what_run_raises(tmp_path: Path, line: str, kind: type[Exception], message: str) -> None:
    model = load_folder(write(tmp_path / "m", RAISES.replace("RAISE", line)))
    with pytest.raises(kind) as raised:
        run(model, x=X)
    assert message in str(raised.value)
    assert type(raised.value) is kind
    assert "Traceback" not in str(raised.value)


def test_only_the_culprit_of_a_batch_fails(tmp_path: Path) -> None:
    code = RAISES.replace("RAISE", "if (inputs['x'] < 0).any(): raise InvalidInput('below 0')")
    model = load_folder(write(tmp_path / "m", code + "        return {'y': inputs['x']}\n"))
    batch = [Bound((row[None],), ("y",), 1, None, 16) for row in (X[0], -X[0], X[1])]
    first, second, third = BatchRunner(model, time.monotonic).run(batch).outcomes
    assert isinstance(second, InvalidInput)
    assert isinstance(first, dict)
    assert isinstance(third, dict)
    np.testing.assert_array_equal(np.concatenate([first["y"], third["y"]]), X)


@pytest.mark.parametrize(
    ("code", "settings", "message"),
    [
        ("def f(:", "", "model.py, line 1, raised SyntaxError"),
        ("\nimport nowhere", "", "model.py, line 2, raised ModuleNotFoundError: No module named"),
        ("import sys; sys.exit(2)", "", "model.py, line 1, raised SystemExit: 2"),
        ("x = 1", "", "does not say which class is the model (those with a method run"),
        (DOUBLE.replace("Model", "A") + DOUBLE.replace("Model", "B"), "", "are A, B): call it"),
        (DOUBLE, "python: {model: B}", "model.py has no class 'B' with a method run"),
        (DOUBLE, "python: {arguments: {a: 1}}", "Model(a=1) of model.py raised TypeError"),
        (
            "class Model:\n  def load(self, c):\n    1 / 0\n  def run(self, i): ...",
            "",
            "load() of model.py raised ZeroDivisionError: division by zero (model.py, line 3)",
        ),
        (
            DOUBLE.replace('"FP32"', '"FP31"'),
            "",
            "signature.inputs.0.dtype of the class in model.py: ",
        ),
        (DOUBLE.replace("2 *", "2j *"), "", "no tensor type holds the numpy type complex"),
    ],
)
def test_a_broken_model(tmp_path: Path, code: str, settings: str, message: str) -> None:
    with pytest.raises(InvalidModel) as raised:
        load_folder(write(tmp_path / "m", code, settings))
    assert message in str(raised.value)


def test_the_traceback_of_load_is_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    code = "class Model:\n  def load(self, c):\n    1 / 0\n  def run(self, i): ..."
    with caplog.at_level(logging.ERROR), pytest.raises(InvalidModel):
        load_folder(write(tmp_path / "m", code))
    assert "line 3, in load" in caplog.text


def test_siblings_are_the_models_own(tmp_path: Path) -> None:
    code = DOUBLE.replace(
        "class Model", "from words import FACTOR\nfrom parts.more import ADDED\n\nclass Model"
    )
    code = code.replace("2 * inputs", "ADDED + FACTOR * inputs")
    for name, factor in (("one", 3), ("two", 5)):
        folder = write(tmp_path / name, code)
        (folder / "words.py").write_text(f"FACTOR = {factor}\n")
        (folder / "parts").mkdir()
        (folder / "parts" / "more.py").write_text("from words import FACTOR\nADDED = FACTOR\n")
    path = list(sys.path)
    one, two = load_folder(tmp_path / "one"), load_folder(tmp_path / "two")
    np.testing.assert_array_equal(run(one, x=X)["y"], 3 + 3 * X)
    np.testing.assert_array_equal(run(two, x=X)["y"], 5 + 5 * X)
    assert sys.path == path
    assert "words" not in sys.modules


def test_versions_with_code_of_their_own_or_shared(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", WHOLE.replace("Scorer", "Model"))
    for version in (1, 2):
        (folder / str(version)).mkdir()
        np.save(folder / str(version) / "weights.npy", np.full(4, version))
    write(folder / "2", WHOLE.replace("Scorer", "Model").replace("* self.factor", "* 10"))
    entry = scan(tmp_path).models["m"]
    assert not entry.problems
    for version, expected in ((1, 10), (2, 200)):
        model = load(entry.versions[version].path, options(folder))
        assert run(model, x=X[:1])["score"].tolist() == [expected]


def test_what_lies_beside_the_code_counts_as_a_change(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", WHOLE)
    (folder / "1").mkdir()
    (folder / "parts").mkdir()
    seen = set()
    for file, text in (
        ("1/weights.npy", "1"),
        ("parts/tokens.txt", "1"),
        ("parts/tokens.txt", "22"),
        ("model.py", WHOLE + "#"),
        ("model.yaml", "replicas: 2"),
    ):
        (folder / file).write_text(text)
        seen.add(scan(tmp_path).models["m"].versions[1].fingerprint)
    assert len(seen) == 5


def test_weights_that_nothing_else_serves(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", DOUBLE)
    (folder / "forest.joblib").write_bytes(b"\x80\x04\x95\x0b" + bytes(20))
    (folder / "readme.txt").write_text("text")
    assert found(folder).path == folder


def test_runtime_python_goes_before_what_lies_there(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", DOUBLE)
    models.identity(folder / "model.onnx")
    assert read_model(folder).versions[1].runtime == "onnx"
    write(folder, DOUBLE, "runtime: python\n")
    assert found(folder).path == folder
    (folder / "model.py").unlink()
    (problem,) = read_model(folder).problems
    assert str(problem) == "m: has no model.py, which runtime: python in model.yaml asks for"


def test_a_damaged_file_is_told_of(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", DOUBLE)
    (folder / "weights.pth").write_bytes(b"PK\x03\x04 but cut short")
    (problem,) = read_model(folder).problems
    assert "weights.pth is a damaged or truncated zip archive" in str(problem)


def test_a_joblib_of_scikit_learn(tmp_path: Path) -> None:
    joblib = pytest.importorskip("joblib")
    from sklearn.datasets import load_digits
    from sklearn.ensemble import RandomForestClassifier

    digits = load_digits()
    forest = RandomForestClassifier(10, random_state=1).fit(digits.data, digits.target)
    code = """
    import joblib


    class Model:
        signature = {"inputs": [{"name": "pixels", "dtype": "FP64", "shape": ["batch", 64]}]}

        def load(self, context):
            self.forest = joblib.load(context.path("forest.joblib"))

        def run(self, inputs):
            return {"probabilities": self.forest.predict_proba(inputs["pixels"])}
    """
    folder = write(tmp_path / "m", code)
    joblib.dump(forest, folder / "forest.joblib")
    model = load_folder(folder)
    assert model.signature.outputs == (TensorSpec("probabilities", DType.FP64, ("batch", 10)),)
    assert can_batch(model, Batching())
    probabilities = run(model, pixels=digits.data[:9])["probabilities"]
    np.testing.assert_array_equal(probabilities, forest.predict_proba(digits.data[:9]))
