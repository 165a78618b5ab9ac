"""Small ONNX models for the tests, each written to a path by one function.

All take a dynamic first dimension named ``batch`` unless their function says otherwise.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tidegate.types import DType

ELEMENT = {
    DType.BOOL: TensorProto.BOOL,
    DType.UINT8: TensorProto.UINT8,
    DType.UINT16: TensorProto.UINT16,
    DType.UINT32: TensorProto.UINT32,
    DType.UINT64: TensorProto.UINT64,
    DType.INT8: TensorProto.INT8,
    DType.INT16: TensorProto.INT16,
    DType.INT32: TensorProto.INT32,
    DType.INT64: TensorProto.INT64,
    DType.FP16: TensorProto.FLOAT16,
    DType.BF16: TensorProto.BFLOAT16,
    DType.FP32: TensorProto.FLOAT,
    DType.FP64: TensorProto.DOUBLE,
    DType.BYTES: TensorProto.STRING,
}
Shape = Sequence[int | str | None] | None
Writer = Callable[[Path], Path]


def identity(path: Path, dtype: DType = DType.FP32, shape: Shape = ("batch", 4)) -> Path:
    """``y = x``, for any element type and shape."""
    node = helper.make_node("Identity", ["x"], ["y"])
    return _write(path, [node], [_value("x", dtype, shape)], [_value("y", dtype, shape)])


def channel_means(path: Path) -> Path:
    """``y`` ``[batch, 3]``: the means of the channels of images ``[batch, 3, 4, 6]``."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["means"]),
        helper.make_node("Flatten", ["means"], ["y"]),
    ]
    shape = ("batch", 3, 4, 6)
    return _write(
        path,
        nodes,
        [_value("x", DType.FP32, shape)],
        [_value("y", DType.FP32, ("batch", 3))],
    )


def every_dtype(
    path: Path, shape: Shape = ("batch", 2), dtypes: Sequence[DType] = tuple(ELEMENT)
) -> Path:
    """One input ``in_TYPE`` and one output ``out_TYPE`` (the same values) for each type."""
    nodes = [helper.make_node("Identity", [f"in_{d.value}"], [f"out_{d.value}"]) for d in dtypes]
    inputs = [_value(f"in_{d.value}", d, shape) for d in dtypes]
    outputs = [_value(f"out_{d.value}", d, shape) for d in dtypes]
    return _write(path, nodes, inputs, outputs)


def add_sub(path: Path, dtype: DType = DType.FP32, shape: Shape = ("batch", 4)) -> Path:
    """``total = a + b``, ``difference = a - b``."""
    nodes = [
        helper.make_node("Add", ["a", "b"], ["total"]),
        helper.make_node("Sub", ["a", "b"], ["difference"]),
    ]
    inputs = [_value("a", dtype, shape), _value("b", dtype, shape)]
    outputs = [_value("total", dtype, shape), _value("difference", dtype, shape)]
    return _write(path, nodes, inputs, outputs)


def scale(path: Path, factor: float = 2.0) -> Path:
    """``y = x * factor`` on FP32 ``[batch, 4]``: tells versions apart by their answers."""
    nodes = [helper.make_node("Mul", ["x", "factor"], ["y"])]
    return _write(
        path,
        nodes,
        [_value("x", DType.FP32, ("batch", 4))],
        [_value("y", DType.FP32, ("batch", 4))],
        {"factor": np.float32(factor)},
    )


def tiny_mlp(
    path: Path,
    inputs: int = 16,
    hidden: int = 32,
    outputs: int = 10,
    *,
    external: bool = False,
    constants_as_inputs: bool = False,
) -> Path:
    """Two dense layers and a softmax with fixed random weights: ``x`` to ``probabilities``.

    ``external`` keeps the weights in ``weights.bin`` beside the model;
    ``constants_as_inputs`` lists them among the graph's inputs too, as old exporters do.
    """
    random = np.random.default_rng(7)
    weights: dict[str, Any] = {
        "w1": random.standard_normal((inputs, hidden), dtype=np.float32),
        "b1": np.zeros(hidden, np.float32),
        "w2": random.standard_normal((hidden, outputs), dtype=np.float32),
        "b2": np.zeros(outputs, np.float32),
    }
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "w2", "b2"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    declared = [_value("x", DType.FP32, ("batch", inputs))]
    if constants_as_inputs:
        declared += [_value(name, DType.FP32, value.shape) for name, value in weights.items()]
    result = [_value("probabilities", DType.FP32, ("batch", outputs))]
    return _write(path, nodes, declared, result, weights, external=external)


def slow(path: Path) -> Path:
    """``y = x`` on FP32 ``[batch, 1]``; the largest ``x`` is how many milliseconds it takes.

    So zeros are answered at once, ``[[250.0]]`` after about a quarter of a second; never much
    sooner, and later on a busy machine (the pace is measured while the model is written, in the
    time that the processor works for it).
    """
    _write_slow(path, 1.0)
    pace = min(_seconds(path, 2000.0) for _ in range(3)) / 2000
    return _write_slow(path, 0.001 / pace)


def gather(path: Path, rows: int = 4) -> Path:
    """``value = table[index]``; an ``index`` outside ``[-rows, rows)`` fails at run time.

    ``index`` is INT64 ``[batch, 1]``, ``value`` FP32 ``[batch, 1]`` with ``table[i] = i``.
    """
    nodes = [helper.make_node("Gather", ["table", "index"], ["value"])]
    return _write(
        path,
        nodes,
        [_value("index", DType.INT64, ("batch", 1))],
        [_value("value", DType.FP32, ("batch", 1))],
        {"table": np.arange(rows, dtype=np.float32)},
    )


def hungry(path: Path) -> Path:
    """``count`` zeros (INT64 ``[1]``) as FP32 ``y``: a large count cannot be allocated."""
    nodes = [helper.make_node("ConstantOfShape", ["count"], ["y"])]
    return _write(
        path, nodes, [_value("count", DType.INT64, (1,))], [_value("y", DType.FP32, ("n",))]
    )


def deadly(path: Path) -> Path:
    """``y = -2**31 / (x + 1)`` on INT32 ``[batch, 1]``; ``x = -2`` kills the process on x86-64.

    The quotient does not fit in 32 bits, so the processor traps (SIGFPE).
    """
    nodes = [
        helper.make_node("Add", ["x", "one"], ["divisor"]),
        helper.make_node("Div", ["smallest", "divisor"], ["y"]),
    ]
    return _write(
        path,
        nodes,
        [_value("x", DType.INT32, ("batch", 1))],
        [_value("y", DType.INT32, ("batch", 1))],
        {"one": np.int32(1), "smallest": np.int32(-(2**31))},
    )


def deadly_at_once(path: Path) -> Path:
    """Like :func:`deadly`, whatever ``x`` is: the warm-up kills the process."""
    nodes = [
        helper.make_node("Mul", ["x", "zero"], ["nothing"]),
        helper.make_node("Add", ["nothing", "minus_one"], ["divisor"]),
        helper.make_node("Div", ["smallest", "divisor"], ["y"]),
    ]
    return _write(
        path,
        nodes,
        [_value("x", DType.INT32, ("batch", 1))],
        [_value("y", DType.INT32, ("batch", 1))],
        {"zero": np.int32(0), "minus_one": np.int32(-1), "smallest": np.int32(-(2**31))},
    )


def mixes_rows(path: Path) -> Path:
    """``y = x - mean over the batch``: FP32 ``[batch, 4]``, whose rows depend on each other."""
    nodes = [
        helper.make_node("ReduceMean", ["x", "axes"], ["mean"], keepdims=1),
        helper.make_node("Sub", ["x", "mean"], ["y"]),
    ]
    return _write(
        path,
        nodes,
        [_value("x", DType.FP32, ("batch", 4))],
        [_value("y", DType.FP32, ("batch", 4))],
        {"axes": np.array([0], np.int64)},
    )


def cast_weights(path: Path, dtype: DType) -> Path:
    """``y = x * [1, 2, 3, 4]`` as ``dtype``; ``x`` is FP32 ``[batch, 4]``; external weights."""
    nodes = [
        helper.make_node("Mul", ["x", "w"], ["product"]),
        helper.make_node("Cast", ["product"], ["y"], to=ELEMENT[dtype]),
    ]
    return _write(
        path,
        nodes,
        [_value("x", DType.FP32, ("batch", 4))],
        [_value("y", dtype, ("batch", 4))],
        {"w": np.arange(1, 5, dtype=np.float32)},
        external=True,
    )


def sequence(path: Path) -> Path:
    """A model whose output is a sequence, which no tensor protocol can carry."""
    output = helper.make_tensor_sequence_value_info("ys", TensorProto.FLOAT, None)
    node = helper.make_node("SplitToSequence", ["x"], ["ys"], axis=0)
    return _write(path, [node], [_value("x", DType.FP32, ("batch", 4))], [output])


def _write_slow(path: Path, iterations_per_unit: float) -> Path:
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["state", "matrix"], ["next"]),
            helper.make_node("Identity", ["go"], ["go_on"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, [32, 32]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, [32, 32]),
        ],
    )
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["largest"], keepdims=0),
        helper.make_node("Mul", ["largest", "pace"], ["wanted"]),
        helper.make_node("Cast", ["wanted"], ["count"], to=TensorProto.INT64),
        helper.make_node("Loop", ["count", "", "matrix"], ["end"], body=body),
        helper.make_node("ReduceMax", ["end"], ["one"], keepdims=0),
        helper.make_node("Mul", ["one", "zero"], ["nothing"]),
        helper.make_node("Add", ["x", "nothing"], ["y"]),
    ]
    return _write(
        path,
        nodes,
        [_value("x", DType.FP32, ("batch", 1))],
        [_value("y", DType.FP32, ("batch", 1))],
        {
            "matrix": np.eye(32, dtype=np.float32),
            "pace": np.float32(iterations_per_unit),
            "zero": np.float32(0),
        },
    )


def _seconds(path: Path, value: float) -> float:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    began = time.thread_time()
    session.run(None, {"x": np.full((1, 1), value, np.float32)})
    return time.thread_time() - began


def _value(name: str, dtype: DType, shape: Shape) -> Any:
    return helper.make_tensor_value_info(
        name, ELEMENT[dtype], None if shape is None else list(shape)
    )


def _write(
    path: Path,
    nodes: list[Any],
    inputs: list[Any],
    outputs: list[Any],
    constants: dict[str, Any] | None = None,
    *,
    external: bool = False,
) -> Path:
    initializers = [
        numpy_helper.from_array(np.asarray(value), name)
        for name, value in (constants or {}).items()
    ]
    graph = helper.make_graph(nodes, "test", inputs, outputs, initializers)
    opsets = [helper.make_opsetid("", 20)]
    model = helper.make_model(graph, ir_version=9, opset_imports=opsets, producer_name="tests")
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own at first: a node that watches the folder never sees half a model.
    partial = path.with_name(f".{path.name}.part")
    onnx.save(
        model,
        partial,
        save_as_external_data=external,
        location="weights.bin",
        size_threshold=0,
    )
    partial.rename(path)
    return path
