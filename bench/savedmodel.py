"""A network of the bench as a TensorFlow SavedModel, with the weights of its ONNX file.

    python -m bench.savedmodel resnet50.onnx models/tensorflow/1

A process of its own: TensorFlow takes seconds to import and half a gigabyte. Images come as
[batch, channels, height, width], as for the other runtimes, and are transposed once:
TensorFlow's convolutions on CPUs take channels last.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tensorflow as tf
from onnx import numpy_helper


def save(source: Path, folder: Path) -> None:
    """Write the SavedModel."""
    graph = onnx.load(source).graph
    module = tf.Module()
    weights = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    kernels = {name: tf.Variable(_turned(array)) for name, array in weights.items()}
    module.weights = kernels
    (taken,), (given,) = graph.input, graph.output
    shape = [size.dim_value or None for size in taken.type.tensor_type.shape.dim]

    def call(rows: Any) -> dict[str, Any]:
        found = {taken.name: tf.transpose(rows, [0, 2, 3, 1]) if len(shape) == 4 else rows}
        for node in graph.node:
            found[node.output[0]] = _operator(node, found, kernels)
        return {given.name: found[given.name]}

    spec = tf.TensorSpec(shape, tf.float32, name=taken.name)
    signature = tf.function(call).get_concrete_function(spec)
    tf.saved_model.save(module, str(folder), signatures={"serving_default": signature})


def _turned(array: np.ndarray) -> np.ndarray:
    """Bring the kernel of a convolution from [out, in, height, width] to TensorFlow's order."""
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array


def _operator(node: Any, found: dict[str, Any], weights: dict[str, Any]) -> Any:
    given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    x = found[node.input[0]]
    if node.op_type in ("Conv", "MaxPool"):
        edge = given["pads"][0]
        padding = [[0, 0], [edge, edge], [edge, edge], [0, 0]]
        if node.op_type == "MaxPool":
            return tf.nn.max_pool2d(x, given["kernel_shape"], given["strides"], padding)
        kernel, bias = (weights[name] for name in node.input[1:])
        return tf.nn.bias_add(tf.nn.conv2d(x, kernel, given["strides"], padding), bias)
    if node.op_type == "Gemm":
        kernel, bias = (weights[name] for name in node.input[1:])
        return tf.nn.bias_add(tf.matmul(x, kernel), bias)
    if node.op_type == "Add":
        return x + found[node.input[1]]
    # Flatten has nothing left to do once the mean has been taken.
    return {
        "Relu": tf.nn.relu,
        "GlobalAveragePool": lambda images: tf.reduce_mean(images, [1, 2]),
        "Flatten": tf.identity,
    }[node.op_type](x)


if __name__ == "__main__":
    save(Path(sys.argv[1]), Path(sys.argv[2]))
