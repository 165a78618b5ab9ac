"""Every model of the matrix: written for a repository, and called through its own framework.

Importing this imports all frameworks: do it in a process of its own.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import joblib
import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import nn

from tests import caffe_models, torch_models
from tests import models as onnx_models
from tests.matrix import cells
from tests.matrix.cases import Case, strings
from tests.matrix.folder_files import MAKES_PICTURES, PYTHON, READS_PICTURES, STEPS
from tests.tensorflow_models import save_function, tf
from tidegate.runtimes.openvino_quiet import openvino
from tidegate.types import Array

Arrays = dict[str, Array]
Maker = Callable[[Path, Arrays], Arrays]

EXAMPLES = Path(__file__).parents[2] / "examples"
LARGEST = 2**53 - 1
"""The largest number that JSON and Seldon's doubles carry without a loss."""
TEXTS = (b"tide", "Gr\u00f6\u00dfe \u4e2d \U0001f30a".encode(), b"")
NO_TEXTS = (b"\x00\xff\xfe", b"\x89PNG\r\n\x1a\n")


def make(root: Path) -> list[Case]:
    """Write every model into ``root``; return what goes in and comes out of each."""
    torch.manual_seed(0)
    cases: list[Case] = []
    for task, (runtime, kind) in enumerate(cells.models(), 1):
        # What strings hold is the same to a model: those of any bytes are sent to that of texts.
        model = f"{'texts' if kind == 'bytes' else kind}-{runtime}"
        folder = root / model
        folder.mkdir(exist_ok=True)
        inputs = sent(runtime, kind)
        outputs = MAKERS[runtime, kind](folder, inputs)
        if kind == "bytes":
            task = next(case.task for case in cases if case.model == model)
        else:
            with (folder / "model.yaml").open("a") as settings:
                settings.write(f"task_ids: [{task}]\n")
        cases.append(Case(model, task, kind, inputs, outputs))
    return cases


def sent(runtime: str, kind: str) -> Arrays:
    """Return what is sent to a model."""
    digits = load_digits().images[:3].astype(np.float32)[:, None]
    if kind == "numbers":
        return {"data" if runtime == "caffe" else "image": digits}
    if kind == "integers":
        largest = 2**31 - 1 if runtime == "openvino" else LARGEST
        number = np.array([[largest, -largest, 0], [1, -3, 8]])
        return {"number": number, "negate": np.array([[True, False, True], [False, True, False]])}
    if kind in ("texts", "bytes"):
        return {"text": strings(*(TEXTS if kind == "texts" else NO_TEXTS))}
    return {"image": strings(png((digits[1, 0] * 15.9375).astype(np.uint8)))}


def png(pixels: Array) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def pixels_of(file: bytes) -> Array:
    return np.asarray(Image.open(io.BytesIO(file)).convert("L"), np.float32)


def reading_pictures(numbers: Maker) -> Maker:
    """Return what writes a model of numbers with hooks that read a picture."""

    def write(folder: Path, inputs: Arrays) -> Arrays:
        name = "data" if "caffe" in folder.name else "image"
        arrays = {name: pixels_of(inputs["image"][0])[None, None] / 16}
        found = numbers(folder, arrays)
        (output,) = (key for key in found if key.startswith("prob"))
        (folder / "hooks.py").write_text(READS_PICTURES % output)
        said = {"digit": int(found[output][0].argmax()), "written": "\u4e2d"}
        return {"payload": strings(json.dumps(said).encode())}

    return write


def labelling_pictures(folder: Path, inputs: Arrays) -> Arrays:
    """Write a model of numbers with a ``model.yaml`` that says what is done around it."""
    arrays = {"image": pixels_of(inputs["image"][0])[None, None] / 16}
    scores = onnx_numbers(folder, arrays)["probabilities"][0]
    (folder / "labels.txt").write_text("".join(f"\u2116 {digit}\n" for digit in range(10)))
    (folder / "model.yaml").write_text(STEPS)
    best = np.argsort(-scores)[:3]
    labels = strings(*(f"\u2116 {digit}".encode() for digit in best))
    return {"label": labels[None], "score": scores[best][None]}


# -- ONNX Runtime -------------------------------------------------------------------------------


def call_onnx(path: Path, inputs: Arrays) -> Arrays:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs)))


def onnx_numbers(folder: Path, inputs: Arrays) -> Arrays:
    path = folder / "model.onnx"
    shutil.copy(EXAMPLES / "models/digits/2/model.onnx", path)
    return call_onnx(path, inputs)


def onnx_integers(folder: Path, inputs: Arrays) -> Arrays:
    return call_onnx(write_integers(folder / "model.onnx"), inputs)


def write_integers(path: Path) -> Path:
    constants = [
        numpy_helper.from_array(np.array(value), name) for name, value in (("two", 2), ("zero", 0))
    ]
    nodes = [
        helper.make_node("Neg", ["number"], ["negative"]),
        helper.make_node("Where", ["negate", "negative", "number"], ["result"]),
        helper.make_node("Mod", ["number", "two"], ["rest"]),
        helper.make_node("Equal", ["rest", "zero"], ["even"]),
    ]
    return write_onnx(
        path,
        nodes,
        {"number": TensorProto.INT64, "negate": TensorProto.BOOL},
        {"result": TensorProto.INT64, "even": TensorProto.BOOL},
        ["batch", 3],
        constants,
    )


def onnx_texts(folder: Path, inputs: Arrays) -> Arrays:
    nodes = [helper.make_node("StringConcat", ["text", "mark"], ["loud"])]
    mark = helper.make_tensor("mark", TensorProto.STRING, [1], [b"!"])
    text = TensorProto.STRING
    path = write_onnx(
        folder / "model.onnx", nodes, {"text": text}, {"loud": text}, ["batch"], [mark]
    )
    texts = np.array([text.decode() for text in inputs["text"]], np.object_)
    found = call_onnx(path, {"text": texts})["loud"]
    return {"loud": strings(*(text.encode() for text in found))}


def write_onnx(
    path: Path,
    nodes: list[Any],
    inputs: dict[str, int],
    outputs: dict[str, int],
    shape: list[int | str],
    constants: list[Any],
) -> Path:
    ends = (
        [helper.make_tensor_value_info(name, kind, shape) for name, kind in tensors.items()]
        for tensors in (inputs, outputs)
    )
    graph = helper.make_graph(nodes, "matrix", *ends, constants)
    opsets = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, ir_version=9, opset_imports=opsets), path)
    return path


def onnx_picture(folder: Path, inputs: Arrays) -> Arrays:
    path = onnx_models.identity(folder / "model.onnx", shape=("batch", "height", "width"))
    (folder / "hooks.py").write_text(MAKES_PICTURES)
    found = call_onnx(path, {"x": pixels_of(inputs["image"][0])[None]})["y"][0]
    return {"payload": strings(png((255 - found).astype(np.uint8)))}


# -- PyTorch ------------------------------------------------------------------------------------


def call_torch(path: Path, inputs: Arrays) -> Any:
    with torch.inference_mode():
        return torch.export.load(path).module()(*map(torch.from_numpy, inputs.values()))


def torch_numbers(folder: Path, inputs: Arrays) -> Arrays:
    shutil.copytree(EXAMPLES / "torch/digits", folder, dirs_exist_ok=True)
    found = call_torch(folder / "model.pt2", inputs)
    return dict(zip(("probabilities", "digit"), (each.numpy() for each in found)))


class Integers(nn.Module):
    def forward(self, number: torch.Tensor, negate: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"result": torch.where(negate, -number, number), "even": number % 2 == 0}


def torch_integers(folder: Path, inputs: Arrays) -> Arrays:
    batch = {0: torch.export.Dim("batch")}
    path = torch_models.export(
        folder / "model.pt2",
        Integers(),
        *map(torch.from_numpy, inputs.values()),
        dynamic={"number": batch, "negate": batch},
    )
    return {name: each.numpy() for name, each in call_torch(path, inputs).items()}


# -- TensorFlow ---------------------------------------------------------------------------------


def call_tensorflow(folder: Path, inputs: Arrays) -> Arrays:
    function = tf.saved_model.load(str(folder)).signatures["serving_default"]
    found = function(**{name: tf.constant(array) for name, array in inputs.items()})
    return {name: each.numpy() for name, each in found.items()}


def tensorflow_numbers(folder: Path, inputs: Arrays) -> Arrays:
    weights = caffe_models.digits_weights()
    kernels = {name: np.transpose(weights[name][0], (2, 3, 1, 0)) for name in ("conv1", "conv2")}

    def read(image: Any) -> Any:
        found = tf.transpose(image, (0, 2, 3, 1)) / 16.0
        for name, kernel in kernels.items():
            found = tf.nn.relu(tf.nn.conv2d(found, kernel, 1, "SAME") + weights[name][1])
        found = tf.transpose(tf.nn.max_pool2d(found, 2, 2, "VALID"), (0, 3, 1, 2))
        found = tf.reshape(found, (-1, 48 * 4 * 4))
        found = tf.nn.relu(found @ weights["ip1"][0].T + weights["ip1"][1])
        found = tf.nn.softmax(found @ weights["ip2"][0].T + weights["ip2"][1])
        return {"probabilities": found, "digit": tf.argmax(found, 1)}

    save_function(folder, read, image=([None, 1, 8, 8], tf.float32))
    return call_tensorflow(folder, inputs)


def tensorflow_integers(folder: Path, inputs: Arrays) -> Arrays:
    def compute(number: Any, negate: Any) -> Any:
        return {"result": tf.where(negate, -number, number), "even": number % 2 == 0}

    rows = [None, 3]
    save_function(folder, compute, number=(rows, tf.int64), negate=(rows, tf.bool))
    return call_tensorflow(folder, inputs)


def tensorflow_texts(folder: Path, inputs: Arrays) -> Arrays:
    def shout(text: Any) -> Any:
        return {"loud": tf.strings.join([text, "!"])}

    if not (folder / "saved_model.pb").exists():
        save_function(folder, shout, text=([None], tf.string))
    return call_tensorflow(folder, inputs)


# -- OpenVINO, Caffe, Python --------------------------------------------------------------------


def call_openvino(source: Path, folder: Path, inputs: Arrays) -> Arrays:
    core = openvino.Core()
    openvino.save_model(core.read_model(source), folder / "model.xml", compress_to_fp16=False)
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(folder / "model.xml", "CPU", exact)
    return {port.any_name: array for port, array in compiled(inputs).items()}


def openvino_numbers(folder: Path, inputs: Arrays) -> Arrays:
    return call_openvino(EXAMPLES / "models/digits/2/model.onnx", folder, inputs)


def openvino_integers(folder: Path, inputs: Arrays) -> Arrays:
    source = write_integers(folder.parents[1] / "integers.onnx")
    return call_openvino(source, folder, inputs)


def caffe_numbers(folder: Path, inputs: Arrays) -> Arrays:
    weights = caffe_models.lenet(folder)
    net = cv2.dnn.readNetFromCaffe(str(folder / "deploy.prototxt"), str(weights))
    net.setInput(inputs["data"])
    return {"prob": net.forward()}


def python_numbers(folder: Path, inputs: Arrays) -> Arrays:
    digits = load_digits()
    regression = LogisticRegression(tol=0.1).fit(digits.data[:300], digits.target[:300])
    (folder / "model.py").write_text(PYTHON["numbers"])
    joblib.dump(regression, folder / "regression.joblib")
    found = regression.predict_proba(inputs["image"].reshape(-1, 64))
    return {"probabilities": found.astype(np.float32)}


def python_integers(folder: Path, inputs: Arrays) -> Arrays:
    (folder / "model.py").write_text(PYTHON["integers"])
    number, negate = inputs["number"], inputs["negate"]
    return {"result": np.where(negate, -number, number), "even": number % 2 == 0}


def python_texts(folder: Path, inputs: Arrays) -> Arrays:
    (folder / "model.py").write_text(PYTHON["texts"])
    return {"loud": inputs["text"] + b"!"}


NUMBERS: dict[str, Maker] = {
    "onnx": onnx_numbers,
    "torch": torch_numbers,
    "tensorflow": tensorflow_numbers,
    "openvino": openvino_numbers,
    "caffe": caffe_numbers,
    "python": python_numbers,
}
MAKERS: dict[tuple[str, str], Maker] = {
    **{(runtime, "numbers"): maker for runtime, maker in NUMBERS.items()},
    **{(runtime, "image"): reading_pictures(maker) for runtime, maker in NUMBERS.items()},
    ("onnx", "integers"): onnx_integers,
    ("torch", "integers"): torch_integers,
    ("tensorflow", "integers"): tensorflow_integers,
    ("openvino", "integers"): openvino_integers,
    ("python", "integers"): python_integers,
    ("onnx", "texts"): onnx_texts,
    ("tensorflow", "texts"): tensorflow_texts,
    ("python", "texts"): python_texts,
    ("tensorflow", "bytes"): tensorflow_texts,
    ("python", "bytes"): python_texts,
    ("onnx", "steps"): labelling_pictures,
    ("onnx", "picture"): onnx_picture,
}
