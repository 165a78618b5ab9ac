"""Small Caffe models for the tests, in the wire format of ``caffe.proto``, each written by one
function: ``deploy.prototxt`` and a ``.caffemodel``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from tidegate.types import Array

DIGITS = Path(__file__).parents[1] / "examples" / "models" / "digits" / "2" / "model.onnx"
"""A network that reads handwriting, trained; pixels of 0 to 16 in."""

LENET = """\
name: "LeNet"
layer {
  name: "data" type: "Input" top: "data"
  input_param { shape: { dim: 1 dim: 1 dim: 8 dim: 8 } }
}
layer { name: "scale" type: "Power" bottom: "data" top: "scale" power_param { scale: 0.0625 } }
layer {
  name: "conv1" type: "Convolution" bottom: "scale" top: "conv1"
  convolution_param { num_output: 24 kernel_size: 3 pad: 1 }
}
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
layer {
  name: "conv2" type: "Convolution" bottom: "conv1" top: "conv2"
  convolution_param { num_output: 48 kernel_size: 3 pad: 1 }
}
layer { name: "relu2" type: "ReLU" bottom: "conv2" top: "conv2" }
layer {
  name: "pool2" type: "Pooling" bottom: "conv2" top: "pool2"
  pooling_param { pool: MAX kernel_size: 2 stride: 2 }
}
layer {
  name: "ip1" type: "InnerProduct" bottom: "pool2" top: "ip1"
  inner_product_param { num_output: 96 }
}
layer { name: "relu3" type: "ReLU" bottom: "ip1" top: "ip1" }
layer {
  name: "ip2" type: "InnerProduct" bottom: "ip1" top: "ip2"
  inner_product_param { num_output: 10 }
}
layer { name: "softmax" type: "Softmax" bottom: "ip2" top: "prob" }
"""
"""The shape of LeNet, with as many channels as :data:`DIGITS` has."""

OLD = """\
name: "old"
input: "data"
input_dim: 1
input_dim: 1
input_dim: 2
input_dim: 2
layers {
  name: "ip" type: INNER_PRODUCT bottom: "data" top: "ip"
  inner_product_param { num_output: 3 }
}
"""
"""As nets were written before 2014."""

IMAGE = """\
input: "image"
input_shape { dim: 1 dim: 2 dim: 4 dim: 4 }
layer {
  name: "conv" type: "Convolution" bottom: "image" top: "conv"
  convolution_param { num_output: 3 kernel_size: 1 }
}
layer {
  name: "split" type: "Slice" bottom: "conv" top: "a" top: "b"
  slice_param { slice_point: 1 }
}
layer { name: "relu" type: "ReLU" bottom: "b" top: "b" }
"""
"""Images of any size; two outputs, of which one is changed in place."""


def lenet(folder: Path) -> Path:
    """Write the digits network as a Caffe model; return its weights' path."""
    weights = digits_weights()
    layers = [
        layer(name, kind, *weights[name])
        for name, kind in (
            ("conv1", "Convolution"),
            ("conv2", "Convolution"),
            ("ip1", "InnerProduct"),
            ("ip2", "InnerProduct"),
        )
    ]
    return _write(folder, LENET, network("LeNet", *layers))


def old(folder: Path) -> Path:
    """Write ``ip = W data`` with W[i, j] = i + j as Caffe did before 2014."""
    return _write(folder, OLD, field(1, b"old") + field(2, _old_layer()))


def _old_layer() -> bytes:
    weights = np.add.outer(np.arange(3), np.arange(4)).astype("<f4")
    shape = b"".join(number(place, size) for place, size in ((1, 1), (2, 1), (3, 3), (4, 4)))
    bias = b"".join(number(place, size) for place, size in ((1, 1), (2, 1), (3, 1), (4, 3)))
    blobs = (shape + field(5, weights.tobytes()), bias + field(5, bytes(12)))
    inner_product = 14
    return number(5, inner_product) + field(4, b"ip") + b"".join(field(6, b) for b in blobs)


def image(folder: Path) -> Path:
    """Write a convolution of 1 x 1, whose three channels are the sum and each of the two."""
    weights = np.array([[1, 1], [1, 0], [0, 1]], np.float32).reshape(3, 2, 1, 1)
    blobs = layer("conv", "Convolution", weights, np.zeros(3, np.float32))
    return _write(folder, IMAGE, network("image", blobs))


def digits_weights() -> dict[str, tuple[Array, Array]]:
    """Return weights and biases of the digits network, by the names of LeNet's layers."""
    graph = onnx.load(str(DIGITS)).graph
    found = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    places = {"conv1": 0, "conv2": 3, "ip1": 9, "ip2": 12}
    own = "scorer.layers"
    return {
        name: (found[f"{own}.{place}.weight"], found[f"{own}.{place}.bias"])
        for name, place in places.items()
    }


def network(name: str, *layers: bytes) -> bytes:
    """Return a NetParameter."""
    return field(1, name.encode()) + b"".join(field(100, each) for each in layers)


def layer(name: str, kind: str, *blobs: Array) -> bytes:
    """Return a LayerParameter with weights."""
    return field(1, name.encode()) + field(2, kind.encode()) + b"".join(map(_blob, blobs))


def _blob(array: Array) -> bytes:
    shape = field(1, b"".join(varint(size) for size in array.shape))
    return field(7, field(7, shape) + field(5, array.astype("<f4").tobytes()))


def field(place: int, content: bytes) -> bytes:
    """Return a length-delimited field."""
    return varint(place << 3 | 2) + varint(len(content)) + content


def number(place: int, value: int) -> bytes:
    """Return a field that is a number."""
    return varint(place << 3) + varint(value)


def varint(value: int) -> bytes:
    """Return a number as protobuf writes it."""
    low, high = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + varint(high) if high else bytes([low])


def _write(folder: Path, prototxt: str, weights: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "deploy.prototxt").write_text(prototxt)
    path = folder / "model.caffemodel"
    path.write_bytes(weights)
    return path
