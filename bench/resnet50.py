"""ResNet-50 (He et al. 2015, arXiv:1512.03385) as ONNX, with seeded random weights.

Layers and shapes are those of torchvision's ``resnet50`` (the stride lies in the 3x3
convolutions), with the batch normalisations folded into the convolutions, as every exporter
for inference does. What it answers means nothing; how long that takes does not depend on it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

NAME, INPUT, OUTPUT = "resnet50", "image", "scores"
SHAPE = (3, 224, 224)
CLASSES = 1000
_STAGES = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))
"""Width, blocks and the stride of the first block."""
_EXPANSION = 4


class _Graph:
    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._random = np.random.default_rng(50)

    def add(self, kind: str, *inputs: str, **attributes: object) -> str:
        output = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def weight(self, shape: tuple[int, ...], scale: float) -> str:
        name = f"w{len(self.weights)}"
        values = self._random.standard_normal(shape, np.float32) * np.float32(scale)
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def convolve(self, x: str, channels: tuple[int, int], size: int, stride: int) -> str:
        before, after = channels
        kernel = self.weight((after, before, size, size), (1 / (before * size * size)) ** 0.5)
        bias = self.weight((after,), 0.1)
        edge = size // 2
        return self.add(
            "Conv", x, kernel, bias,
            kernel_shape=[size, size], strides=[stride, stride], pads=[edge] * 4,
        )  # fmt: skip

    def bottleneck(self, x: str, before: int, width: int, stride: int) -> str:
        after = width * _EXPANSION
        y = self.add("Relu", self.convolve(x, (before, width), 1, 1))
        y = self.add("Relu", self.convolve(y, (width, width), 3, stride))
        y = self.convolve(y, (width, after), 1, 1)
        if before != after or stride != 1:
            x = self.convolve(x, (before, after), 1, stride)
        return self.add("Relu", self.add("Add", y, x))


def save(path: Path) -> None:
    """Write the network: FP32 [batch, 3, 224, 224] to FP32 [batch, 1000]; 25.5 M weights."""
    graph = _Graph()
    x = graph.add("Relu", graph.convolve(INPUT, (SHAPE[0], 64), 7, 2))
    x = graph.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    channels = 64
    for width, blocks, stride in _STAGES:
        for block in range(blocks):
            x = graph.bottleneck(x, channels, width, stride if block == 0 else 1)
            channels = width * _EXPANSION
    x = graph.add("Flatten", graph.add("GlobalAveragePool", x))
    kernel = graph.weight((channels, CLASSES), channels**-0.5)
    bias = graph.weight((CLASSES,), 0.1)
    graph.nodes.append(helper.make_node("Gemm", [x, kernel, bias], [OUTPUT]))
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            NAME,
            [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", *SHAPE])],
            [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", CLASSES])],
            graph.weights,
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=9,
    )
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
