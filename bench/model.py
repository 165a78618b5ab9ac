"""The model of the comparisons: an MLP so small that a server's own cost is all one measures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

INPUT, OUTPUT = "x", "y"
WIDTH, HIDDEN, CLASSES = 16, 32, 8

Floats = npt.NDArray[np.float32]


def _weights() -> dict[str, Floats]:
    random = np.random.default_rng(7)
    shapes = {"w1": (WIDTH, HIDDEN), "b1": (HIDDEN,), "w2": (HIDDEN, CLASSES), "b2": (CLASSES,)}
    return {name: random.normal(size=s).astype(np.float32) for name, s in shapes.items()}


def save(path: Path) -> None:
    """Write the MLP as ONNX: ``x`` FP32 [batch, 16] to ``y`` FP32 [batch, 8]."""
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", [INPUT, "w1", "b1"], ["a"]),
            helper.make_node("Relu", ["a"], ["h"]),
            helper.make_node("Gemm", ["h", "w2", "b2"], [OUTPUT]),
        ],
        "mlp",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", WIDTH])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(value, name) for name, value in _weights().items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)


def rows(count: int) -> Floats:
    """Return ``count`` different inputs of one row each, float32 [count, 16]."""
    return np.random.default_rng(11).normal(size=(count, WIDTH)).astype(np.float32)


def expected(inputs: Floats) -> Floats:
    """Return what the model answers, computed with numpy."""
    w = _weights()
    return np.asarray(np.maximum(inputs @ w["w1"] + w["b1"], 0) @ w["w2"] + w["b2"])
