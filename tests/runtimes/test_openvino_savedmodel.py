"""TensorFlow's SavedModels on OpenVINO."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests import tensorflow_models as made
from tests.tensorflow_models import IMAGES, X, tf
from tidegate.errors import InvalidModel
from tidegate.repository.layout import read_model
from tidegate.runtimes import registry
from tidegate.runtimes.interface import Model, RuntimeOptions
from tidegate.types import DType, TensorSpec


def served(folder: Path) -> Model:
    """Load the model as a replica does whose model.yaml asks for OpenVINO."""
    made.settings(folder, "runtime: openvino\n")
    entry = read_model(folder)
    assert entry.problems == ()
    version = entry.versions[1]
    assert (version.format, version.runtime) == ("savedmodel", "openvino")
    options = RuntimeOptions("cpu", 1, version.folder, entry.config)
    return registry.load(version.runtime, version.path, options)


def test_the_default_signature_is_served(tmp_path: Path) -> None:
    made.saved(tmp_path / "m/1")
    model = served(tmp_path / "m")
    assert model.signature.inputs == (TensorSpec("x", DType.FP32, ("batch", 4)),)
    assert {spec.name: spec.dtype for spec in model.signature.outputs} == {
        "scores": DType.FP32,
        "best": DType.INT64,
    }
    answers = model.run({"x": X}, ["best", "scores"])
    for name, wanted in made.expected(X).items():
        assert np.allclose(answers[name], wanted, rtol=1e-5, atol=1e-6)


def test_a_network_answers_as_in_keras(tmp_path: Path) -> None:
    network = made.network()
    network.export(str(tmp_path / "m/1"), verbose=False)
    model = served(tmp_path / "m")
    names = [spec.name for spec in model.signature.outputs]
    answers = model.run({"image": IMAGES}, names)
    wanted = [np.asarray(y) for y in network(IMAGES)]
    for name, array in zip(names, wanted):
        assert np.allclose(answers[name], array, rtol=1e-5, atol=1e-5)


def test_text_is_refused(tmp_path: Path) -> None:
    made.save_function(
        tmp_path / "m/1", lambda text: {"text": tf.identity(text)}, text=([None], tf.string)
    )
    with pytest.raises(InvalidModel, match="has the element type string"):
        served(tmp_path / "m")
