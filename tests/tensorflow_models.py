"""Small TensorFlow models for the tests, in each format, each written by one function.

Importing this imports TensorFlow, quietly, which takes seconds.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tidegate.runtimes.tensorflow_framework import tf
from tidegate.types import Array

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the packages that Keras imports
    import keras

__all__ = ["keras", "tf"]

v1 = tf.compat.v1
WEIGHTS = np.random.default_rng(7).normal(size=(4, 3)).astype(np.float32)
X = np.arange(8, dtype=np.float32).reshape(2, 4) / 8
IMAGES = np.random.default_rng(3).random((2, 8, 8, 1), dtype=np.float32)


def saved(folder: Path) -> Path:
    """``serving_default``: ``scores = x @ WEIGHTS``; ``text``: upper case and length of strings.

    ``lengths``, whose inputs may differ in length; ``fails``, which raises for values above 100.
    """
    module = tf.Module()
    module.weights = tf.Variable(WEIGHTS)

    def score(x: Any) -> Any:
        scores = x @ module.weights
        return {"scores": scores, "best": tf.argmax(scores, 1)}

    def text(text: Any) -> Any:
        return {"upper": tf.strings.upper(text), "length": tf.strings.length(text)}

    def lengths(a: Any, b: Any) -> Any:
        return {"total": tf.reduce_sum(a) + tf.reduce_sum(b), "joined": tf.concat([a, b], 0)}

    def fails(x: Any) -> Any:
        with tf.control_dependencies([tf.debugging.assert_less(x, 100.0, "no value above 100")]):
            return {"x": tf.identity(x)}

    rows, column = ([None, 4], tf.float32), ([None], tf.float32)
    signatures = {
        "serving_default": traced(score, x=rows),
        "text": traced(text, text=([None], tf.string)),
        "lengths": traced(lengths, a=column, b=column),
        "fails": traced(fails, x=rows),
    }
    tf.saved_model.save(module, str(folder), signatures=signatures)
    return folder


def traced(function: Any, **inputs: tuple[Any, Any]) -> Any:
    """Return ``function`` of tensors of these shapes and types."""
    specs = [tf.TensorSpec(shape, dtype, name=name) for name, (shape, dtype) in inputs.items()]
    return tf.function(function).get_concrete_function(*specs)


def save_function(folder: Path, function: Any, **inputs: tuple[Any, Any]) -> Path:
    """Save ``function`` under one signature."""
    signatures = {"serving_default": traced(function, **inputs)}
    tf.saved_model.save(tf.Module(), str(folder), signatures=signatures)
    return folder


def network() -> Any:
    """A small convolutional network with two outputs of known names."""
    keras.utils.set_random_seed(5)
    image = keras.Input((8, 8, 1), name="image")
    hidden = keras.layers.Conv2D(4, 3, activation="relu")(image)
    hidden = keras.layers.BatchNormalization()(hidden)
    hidden = keras.layers.Flatten()(hidden)
    probabilities = keras.layers.Dense(10, activation="softmax", name="probabilities")(hidden)
    width = keras.layers.Dense(1, name="width")(hidden)
    return keras.Model(image, [probabilities, width])


def called(model: Any, images: Array) -> dict[str, Array]:
    """What Keras itself makes of ``images``."""
    return {name: np.asarray(y) for name, y in zip(model.output_names, model(images))}


def graph_of_ones() -> Any:
    """``scores = input @ ones``, ``classes = argmax(scores)`` with a variable, as in TF1."""
    graph = tf.Graph()
    with graph.as_default():
        x = v1.placeholder(tf.float32, [None, 4], name="input")
        weights = v1.get_variable("weights", initializer=WEIGHTS, use_resource=False)
        scores = tf.identity(tf.matmul(x, weights), name="scores")
        tf.argmax(scores, 1, name="classes")
    return graph


def saved_v1(folder: Path) -> Path:
    """A SavedModel as TensorFlow 1 wrote them, with two signatures."""
    graph = graph_of_ones()
    info = v1.saved_model.build_tensor_info
    with graph.as_default(), v1.Session() as session:
        session.run(v1.global_variables_initializer())
        x, scores, classes = (
            graph.get_tensor_by_name(f"{name}:0") for name in ("input", "scores", "classes")
        )
        define = v1.saved_model.build_signature_def
        builder = v1.saved_model.Builder(str(folder))
        builder.add_meta_graph_and_variables(
            session,
            ["serve"],
            signature_def_map={
                "predict": define({"x": info(x)}, {"scores": info(scores)}),
                "classify": define({"x": info(x)}, {"classes": info(classes), "x": info(x)}),
            },
        )
        builder.save()
    return folder


def frozen(path: Path, *outputs: str) -> Path:
    """The same graph with its variable made a constant."""
    graph = graph_of_ones()
    with graph.as_default(), v1.Session() as session:
        session.run(v1.global_variables_initializer())
        definition = v1.graph_util.convert_variables_to_constants(
            session, graph.as_graph_def(), list(outputs or ("scores", "classes"))
        )
    return write(path, definition)


def write(path: Path, definition: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(definition.SerializeToString())
    return path


def checkpoint(folder: Path) -> Path:
    """The variables of the graph alone, as a Saver writes them."""
    graph = graph_of_ones()
    with graph.as_default(), v1.Session() as session:
        session.run(v1.global_variables_initializer())
        v1.train.Saver().save(session, str(folder / "model.ckpt"), write_meta_graph=False)
    return folder


def settings(folder: Path, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.yaml").write_text(text)


def expected(x: Array = X) -> Mapping[str, Array]:
    """What ``serving_default`` of :func:`saved` gives."""
    scores = x @ WEIGHTS
    return {"scores": scores, "best": scores.argmax(1)}
