"""TensorFlow's formats, each loaded and compared with TensorFlow or Keras called directly."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import tensorflow_models as made
from tests.tensorflow_models import IMAGES, X, keras, tf
from tidegate.config.loading import load_model_config
from tidegate.config.model import Batching, ModelConfig
from tidegate.errors import (
    ConfigurationError,
    InferenceFailed,
    InsufficientMemory,
    InvalidModel,
)
from tidegate.replica.warmup import batched_signatures
from tidegate.repository.formats import detect
from tidegate.repository.layout import read_model
from tidegate.runtimes.interface import RuntimeOptions
from tidegate.runtimes.tensorflow import TensorflowModel, load
from tidegate.runtimes.tensorflow_framework import _cpu_features, devices, prepare
from tidegate.types import Array, DType, Signature, TensorSpec

pytestmark = pytest.mark.filterwarnings("ignore")  # of the packages that Keras and h5py import


def options(path: Path, text: str = "", **changes: Any) -> RuntimeOptions:
    """What a replica would say of the model at ``path`` with this ``model.yaml``."""
    folder = path if path.is_dir() else path.parent
    made.settings(folder, text)
    config = load_model_config(folder / "model.yaml")
    values = {"device": config.device, "folder": folder, "config": config, **changes}
    return RuntimeOptions(**values)


def opened(path: Path, text: str = "") -> TensorflowModel:
    return load(path, options(path, text))


def run(model: TensorflowModel, *arrays: Array) -> dict[str, Array]:
    names = [spec.name for spec in model.signature.inputs]
    return model.run(
        dict(zip(names, arrays)), tuple(spec.name for spec in model.signature.outputs)
    )


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.saved(tmp_path_factory.mktemp("tensorflow") / "saved")


@pytest.fixture(scope="session")
def model(saved: Path) -> TensorflowModel:
    return opened(saved)


@pytest.fixture(scope="session")
def network() -> Any:
    return made.network()


def test_a_saved_model_has_all_its_signatures(model: TensorflowModel) -> None:
    assert list(model.signatures) == ["serving_default", "fails", "lengths", "text"]
    assert model.signature == Signature(
        (TensorSpec("x", DType.FP32, ("batch", 4)),),
        (
            TensorSpec("best", DType.INT64, ("batch",)),
            TensorSpec("scores", DType.FP32, ("batch", 3)),
        ),
    )
    assert model.signatures["text"].inputs == (TensorSpec("text", DType.BYTES, ("batch",)),)
    assert (model.platform, model.device, model.most_rows) == (
        "tensorflow_savedmodel",
        "cpu",
        None,
    )


def test_a_saved_model_computes_what_tensorflow_does(model: TensorflowModel, saved: Path) -> None:
    found = run(model, X)
    direct = tf.saved_model.load(str(saved)).signatures["serving_default"](x=tf.constant(X))
    for name, array in direct.items():
        np.testing.assert_allclose(found[name], array.numpy(), rtol=1e-6)
        assert found[name].flags.c_contiguous
    np.testing.assert_allclose(found["scores"], made.expected()["scores"], rtol=1e-5)
    assert list(model.run({"x": X}, ("best",))) == ["best"]


def test_operators_beside_each_other_compute_the_same(saved: Path) -> None:
    model = opened(saved, "tensorflow: {inter_op_threads: 2}")
    (saved / "model.yaml").unlink()
    np.testing.assert_allclose(run(model, X)["scores"], made.expected()["scores"], rtol=1e-5)


def test_dimensions_have_a_name_where_they_are_equal(model: TensorflowModel) -> None:
    # These may differ in length, so nobody's request is refused for that.
    assert model.signatures["lengths"].inputs == (
        TensorSpec("a", DType.FP32, (None,)),
        TensorSpec("b", DType.FP32, (None,)),
    )
    assert batched_signatures(model, Batching()) == {
        "serving_default": True,
        "fails": True,
        "lengths": False,
        "text": True,
    }


def test_strings_are_bytes_of_any_kind_and_scalars_have_no_dimensions(
    model: TensorflowModel,
) -> None:
    texts = np.array([b"caf\xc3\xa9", b"\x00\xff", b""], np.object_)
    found = run(model.under("text"), texts)
    assert found["upper"].tolist() == [b"CAF\xc3\xa9", b"\x00\xff", b""]
    assert found["length"].tolist() == [5, 2, 0]
    total = run(model.under("lengths"), np.ones(2, np.float32), np.ones(3, np.float32))["total"]
    assert (total.shape, float(total)) == ((), 5.0)


def test_inputs_may_lie_anywhere_and_are_not_written_to(model: TensorflowModel) -> None:
    raw = bytearray(X.nbytes + 1)
    unaligned = np.ndarray(X.shape, np.float32, raw, 1)
    unaligned[:] = X
    unaligned.flags.writeable = False
    np.testing.assert_allclose(run(model, unaligned)["scores"], made.expected()["scores"], 1e-5)
    run(model.under("fails"), unaligned)
    assert (unaligned == X).all()


@pytest.mark.parametrize("dtype", [d for d in DType if d is not DType.BYTES])
def test_every_type(tmp_path: Path, dtype: DType) -> None:
    kind = tf.dtypes.as_dtype(dtype.numpy)
    folder = made.save_function(
        tmp_path / "m", lambda x: {"y": tf.reverse(x, [0])}, x=([None], kind)
    )
    echo = opened(folder)
    assert echo.signature.inputs[0].dtype is echo.signature.outputs[0].dtype is dtype
    x = np.array([0, 1, 1], dtype.numpy)
    y = run(echo, x)["y"]
    assert (y.dtype, y.tolist()) == (dtype.numpy, x[::-1].tolist())
    echo.close()


def test_what_no_protocol_has(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    wrong = made.save_function(
        tmp_path / "m", lambda z: {"y": tf.math.real(z)}, z=([None], tf.complex64)
    )
    with pytest.raises(
        InvalidModel, match="'z' of the signature 'serving_default' is of the type complex64"
    ):
        opened(wrong)


def test_the_default_signature(saved: Path, tmp_path: Path) -> None:
    assert next(iter(opened(saved, "tensorflow: {signature: text}").signatures)) == "text"
    wrong = "tensorflow.signature is 'txt', but saved has the signatures 'fails', 'lengths'"
    with pytest.raises(ConfigurationError, match=wrong):
        opened(saved, "tensorflow: {signature: txt}")
    (saved / "model.yaml").unlink()


def test_callers_choose_outputs_in_any_number_and_order(tmp_path: Path) -> None:
    names = "abcde"
    folder = made.save_function(
        tmp_path / "m",
        lambda x: {name: x + place for place, name in enumerate(names)},
        x=([None], tf.float32),
    )
    many = opened(folder)
    x = np.zeros(1, np.float32)
    for count in range(len(names) + 1):
        for chosen in itertools.permutations(names, count):
            found = many.run({"x": x}, chosen)
            assert list(found) == list(chosen)
            assert all(found[name].tolist() == [names.index(name)] for name in chosen)
    assert len(many._graph.calls["serving_default"]._by_set) <= 9
    assert len(many._graph.calls["serving_default"]._by_request) <= 256


def test_errors_are_the_models_words_alone(model: TensorflowModel) -> None:
    with pytest.raises(InferenceFailed) as caught:
        run(model.under("fails"), X * 1000)
    words = str(caught.value)
    assert words.startswith("InvalidArgumentError: assertion failed: [no value above 100]")
    assert "node" not in words
    assert "\n" not in words


def test_too_little_memory_is_told(tmp_path: Path) -> None:
    folder = made.save_function(
        tmp_path / "m", lambda size: {"y": tf.zeros([size, size])}, size=([], tf.int64)
    )
    greedy = opened(folder)
    with pytest.raises(InsufficientMemory, match="OOM when allocating tensor with shape"):
        run(greedy, np.array(10_000_000))


def test_a_saved_model_of_tensorflow_1(tmp_path: Path) -> None:
    old = opened(made.saved_v1(tmp_path / "old"))
    assert list(old.signatures) == ["classify", "predict"]
    found = run(old, X)
    assert found["classes"].tolist() == made.expected()["best"].tolist()
    assert (found["x"] == X).all()
    np.testing.assert_allclose(run(old.under("predict"), X)["scores"], X @ made.WEIGHTS, 1e-5)
    with pytest.raises(InvalidModel, match="tags"):
        opened(tmp_path / "old", "tensorflow: {tags: [serve, gpu]}")


@pytest.mark.parametrize("name", ["model.keras", "model.h5", "keras.bin", "hdf5.bin"])
def test_keras_files(network: Any, tmp_path: Path, name: str) -> None:
    real = {"keras.bin": "m.keras", "hdf5.bin": "m.h5"}.get(name, name)
    network.save(tmp_path / real)
    if real != name:
        (tmp_path / real).rename(tmp_path / name)
    loaded = opened(tmp_path / name)
    assert loaded.signature == Signature(
        (TensorSpec("image", DType.FP32, ("batch", 8, 8, 1)),),
        (
            TensorSpec("probabilities", DType.FP32, ("batch", 10)),
            TensorSpec("width", DType.FP32, ("batch", 1)),
        ),
    )
    found = run(loaded, IMAGES)
    for key, array in made.called(network, IMAGES).items():
        np.testing.assert_allclose(found[key], array, rtol=1e-5, atol=1e-6)


def test_keras_models_with_named_inputs_and_strings(tmp_path: Path) -> None:
    a, b = keras.Input((2,), name="one"), keras.Input((2,), name="two")
    total = keras.layers.Add(name="total")([a, b])
    keras.Model({"z": a, "y": b}, total).save(tmp_path / "named.keras")
    named = opened(tmp_path / "named.keras")
    assert [spec.name for spec in named.signature.inputs] == ["y", "z"]
    ones = np.ones((1, 2), np.float32)
    assert run(named, ones, 2 * ones)["total"].tolist() == [[3, 3]]

    text = keras.Input((), dtype="string", name="colour")
    place = keras.layers.StringLookup(vocabulary=["red", "green"], name="place")(text)
    keras.Model(text, place).save(tmp_path / "words.keras")
    found = run(opened(tmp_path / "words.keras"), np.array([b"green", b"blue"], np.object_))
    assert found["place"].tolist() == [2, 0]


@pytest.mark.parametrize("name", ["m.keras", "m.h5"])
def test_code_in_a_keras_file_needs_trust(tmp_path: Path, name: str) -> None:
    x = keras.Input((2,), name="x")
    keras.Model(x, keras.layers.Lambda(lambda t: t * 7, name="y")(x)).save(tmp_path / name)
    with pytest.raises(InvalidModel, match=r"holds Python code.*model\.export.*trust: pickle"):
        opened(tmp_path / name)
    trusted = opened(tmp_path / name, "trust: pickle")
    assert run(trusted, np.ones((1, 2), np.float32))["y"].tolist() == [[7, 7]]


def test_a_keras_file_needs_a_temporary_folder(
    network: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network.save(tmp_path / "m.keras")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(ConfigurationError, match=r"temporary folder, and there is none.*TMPDIR"):
        opened(tmp_path / "m.keras")


def test_weights_of_keras_alone(network: Any, tmp_path: Path) -> None:
    network.save_weights(tmp_path / "m.weights.h5")
    with pytest.raises(InvalidModel, match="weights without a model: save the whole model"):
        opened(tmp_path / "m.weights.h5")


@pytest.mark.parametrize("name", ["m.keras", "m.h5"])
def test_a_keras_model_of_a_class_that_is_not_here(tmp_path: Path, name: str) -> None:
    class Own(keras.layers.Layer):
        def call(self, x: Any) -> Any:
            return x

    x = keras.Input((2,))
    keras.Model(x, Own()(x)).save(tmp_path / name)
    with pytest.raises(InvalidModel, match=r"needs Python code that is not in the file, of Own: "):
        opened(tmp_path / name)


def test_a_damaged_keras_file(network: Any, tmp_path: Path) -> None:
    network.save(tmp_path / "m.h5")
    content = (tmp_path / "m.h5").read_bytes()
    (tmp_path / "m.h5").write_bytes(content[: len(content) // 2])
    with pytest.raises(InvalidModel, match=r"Keras [0-9.]+ refuses m\.h5"):
        opened(tmp_path / "m.h5")


DECLARED = "signature: {inputs: ['input:0'], outputs: [classes, 'scores:0']}"


def test_a_frozen_graph(tmp_path: Path) -> None:
    path = made.frozen(tmp_path / "m.pb")
    assert detect(path).name == "frozen-graph"
    graph = opened(path, DECLARED)
    assert graph.signature == Signature(
        (TensorSpec("input:0", DType.FP32, ("batch", 4)),),
        (
            TensorSpec("classes", DType.INT64, ("batch",)),
            TensorSpec("scores:0", DType.FP32, ("batch", 3)),
        ),
    )
    assert graph.platform == "tensorflow_graphdef"
    found = run(graph, X)
    assert found["classes"].tolist() == made.expected()["best"].tolist()
    np.testing.assert_allclose(found["scores:0"], made.expected()["scores"], rtol=1e-5)


def test_a_frozen_graph_says_itself_what_it_takes(tmp_path: Path) -> None:
    graph = opened(made.frozen(tmp_path / "m.pb"))
    assert [spec.name for spec in graph.signature.inputs] == ["input"]
    assert [spec.name for spec in graph.signature.outputs] == ["classes"]


def test_a_graph_without_its_version_is_known_by_its_name(tmp_path: Path) -> None:
    definition = tf.compat.v1.GraphDef()
    definition.ParseFromString(made.frozen(tmp_path / "m.pb").read_bytes())
    definition.ClearField("versions")
    assert detect(made.write(tmp_path / "old.pb", definition)).name == "frozen-graph"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("signature: {inputs: [inptu]}", "signature.inputs names 'inptu', but m.pb has no such"),
        ("signature: {outputs: ['scores:7']}", "signature.outputs names 'scores:7'"),
        (
            "signature: {inputs: [{name: input, dtype: INT64}]}",
            "'input' is INT64, but the model's own input 'input' is FP32",
        ),
    ],
)
def test_a_frozen_graph_has_not_what_is_declared(tmp_path: Path, text: str, error: str) -> None:
    path = made.frozen(tmp_path / "m.pb")
    with pytest.raises(ConfigurationError, match=error):
        opened(path, text)


def test_graphs_that_are_not_frozen_or_say_nothing(tmp_path: Path) -> None:
    variables = made.write(tmp_path / "a/m.pb", made.graph_of_ones().as_graph_def())
    with pytest.raises(InvalidModel, match="has the variable 'weights', whose value is not"):
        opened(variables)
    constant = tf.Graph()
    with constant.as_default():
        tf.add(tf.constant(1.0), tf.constant(2.0))
    silent = made.write(tmp_path / "b/m.pb", constant.as_graph_def())
    with pytest.raises(InvalidModel, match="has no placeholder"):
        opened(silent)
    cut = made.frozen(tmp_path / "c/m.pb")
    cut.write_bytes(cut.read_bytes()[:-3] + b"\xff\xff\xff")
    with pytest.raises(InvalidModel):
        opened(cut)


def test_an_operator_that_tensorflow_has_not(saved: Path, tmp_path: Path) -> None:
    definition = tf.compat.v1.GraphDef()
    definition.ParseFromString(made.frozen(tmp_path / "m.pb").read_bytes())
    definition.node[-1].op = "MyArgMax"
    path = made.write(tmp_path / "own/m.pb", definition)
    with pytest.raises(InvalidModel, match=r"operator MyArgMax, .*tensorflow: \{libraries: "):
        opened(path)


def test_a_checkpoint_says_how_to_export(tmp_path: Path) -> None:
    entry = read_model(made.checkpoint(tmp_path / "m"))
    (problem,) = entry.problems
    assert (problem.file, problem.kind) == ("model.ckpt.index", "skipped")
    assert "is a TensorFlow checkpoint (weights without a model)" in problem.reason
    assert "tf.saved_model.save(model, path)" in problem.hint


def test_a_saved_model_without_its_variables(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "m")
    shutil.rmtree(tmp_path / "m/variables")
    with pytest.raises(InvalidModel, match=r"TensorFlow 2[0-9.]+ refuses the SavedModel m: "):
        opened(tmp_path / "m")
    shutil.copytree(saved, tmp_path / "cut")
    (data,) = (tmp_path / "cut/variables").glob("*.data-*")
    data.write_bytes(data.read_bytes()[:20])
    with pytest.raises(InvalidModel, match=r"Read less bytes than requested$"):
        opened(tmp_path / "cut")
    (tmp_path / "cut/saved_model.pb").write_bytes(b"\x08\x01\x12\xff")
    with pytest.raises(InvalidModel, match="cut"):
        opened(tmp_path / "cut")


def test_a_gpu_that_is_not_here(saved: Path) -> None:
    if tf.config.list_physical_devices("GPU"):
        pytest.skip("there is one")
    with pytest.raises(ConfigurationError, match=r"device: cuda:1 needs a GPU.*and-cuda"):
        load(saved, RuntimeOptions(device="cuda:1"))
    (saved / "model.yaml").unlink(missing_ok=True)


def test_what_is_set_up_for_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus, told = ["gpu 0", "gpu 1"], []
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: gpus)
    monkeypatch.setattr(tf.config, "set_visible_devices", lambda found, kind: told.append(found))
    growing = tf.config.experimental
    monkeypatch.setattr(growing, "set_memory_growth", lambda gpu, on: told.append((gpu, on)))
    chosen = [prepare(RuntimeOptions(device=d)) for d in ("auto", "cuda", "cuda:1", "cpu")]
    assert chosen == ["cuda:0", "cuda:0", "cuda:1", "cpu"]
    first, second = [["gpu 0"], ("gpu 0", True)], [["gpu 1"], ("gpu 1", True)]
    assert told == [*first, *first, *second, []]
    assert devices() == ("cpu", "cuda")
    with pytest.raises(ConfigurationError, match=r"TensorFlow sees 2 GPUs, cuda:0 to cuda:1"):
        prepare(RuntimeOptions(device="cuda:2"))
    with pytest.raises(ConfigurationError, match=r"bf16 is not .* on cuda:0: use fp16 or fp32"):
        prepare(RuntimeOptions(device="cuda", config=ModelConfig(precision="bf16")))
    assert prepare(RuntimeOptions(device="cuda", config=ModelConfig(precision="fp32")))
    assert not tf.config.experimental.tensor_float_32_execution_enabled()
    monkeypatch.undo()
    prepare(RuntimeOptions(device="cpu"))  # as it was


def test_the_precision_that_a_cpu_has_not(saved: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"precision: fp16 is not .* on cpu: use bf16"):
        opened(saved, "precision: fp16\ndevice: cpu")
    (saved / "model.yaml").unlink()


def test_libraries_that_cannot_be_loaded(saved: Path, tmp_path: Path) -> None:
    model = tmp_path / "m"
    shutil.copytree(saved, model)
    text = "tensorflow: {libraries: [ops/own.so]}"
    with pytest.raises(ConfigurationError, match=r"'ops/own\.so', which is not in the model's"):
        opened(model, text)
    (model / "ops").mkdir()
    (model / "ops/own.so").write_bytes(b"no library")
    with pytest.raises(InvalidModel, match=r"refuses the library ops/own\.so: .*tf\.sysconfig"):
        opened(model, text)
    (tmp_path / "other.so").write_bytes(b"")
    (model / "ops/own.so").unlink()
    (model / "ops/own.so").symlink_to(tmp_path / "other.so")
    with pytest.raises(ConfigurationError, match="a link that leads out of the model's folder"):
        opened(model, text)
    with pytest.raises(ConfigurationError, match=r"'\.\./other\.so' must lie in the model's"):
        opened(model, "tensorflow: {libraries: [../other.so]}")
    bare = RuntimeOptions(config=load_model_config_text(tmp_path, text))
    with pytest.raises(ConfigurationError, match="a model in a folder of its own"):
        load(saved, bare)


def load_model_config_text(folder: Path, text: str) -> ModelConfig:
    made.settings(folder, text)
    return load_model_config(folder / "model.yaml")


def test_bf16_is_close_and_inputs_and_outputs_stay_fp32(tmp_path: Path) -> None:
    weights = np.random.default_rng(1).normal(size=(256, 256)).astype(np.float32)
    folder = made.save_function(
        tmp_path / "m",
        lambda x: {"y": tf.nn.relu(x @ weights) @ weights},
        x=([None, 256], tf.float32),
    )
    x = np.random.default_rng(2).normal(size=(64, 256)).astype(np.float32)
    exact = run(opened(folder, "precision: fp32"), x)["y"]
    if not _cpu_features() & {"avx512f", "avx_ne_convert"}:
        with pytest.raises(ConfigurationError, match="needs a CPU with AVX-512"):
            opened(folder, "precision: bf16\ndevice: cpu")
        return
    coarse = run(opened(folder, "precision: bf16\ndevice: cpu"), x)["y"]
    assert coarse.dtype == np.float32
    assert 0 < np.abs(coarse - exact).max() < 0.03 * np.abs(exact).max()
    assert (run(opened(folder), x)["y"] == exact).all()
