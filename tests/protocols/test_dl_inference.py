from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format

from tidegate.errors import InvalidInput, ModelNotFound
from tidegate.protocols import dl_inference
from tidegate.protocols.dialect import ModelView
from tidegate.protocols.open_inference.messages import ModelInferRequest, ModelInferResponse
from tidegate.protocols.seldon.messages import SeldonMessage
from tidegate.protocols.tensorflow_serving.messages import PredictRequest, PredictResponse
from tidegate.types import DType, InferResponse, ModelMetadata, Signature, Tensor, TensorSpec

SPEC = TensorSpec("x", DType.FP32, (None,))
VIEW = ModelView(ModelMetadata("ocr", ("1",), "p", Signature((SPEC,), ())), "1", frozenset((69,)))
ANSWER = InferResponse("ocr", "1", "", [Tensor.of("y", np.array([2.0], np.float32))])


def predict(name: str) -> bytes:
    request = PredictRequest()
    request.model_spec.name = name
    request.inputs["x"].dtype = 1
    request.inputs["x"].tensor_shape.dim.add(size=1)
    request.inputs["x"].float_val.append(1)
    return bytes(request.SerializeToString())


def triton(name: str) -> bytes:
    request = ModelInferRequest(model_name=name)
    request.inputs.add(name="x", datatype="FP32", shape=[1]).contents.fp32_contents.append(1)
    return bytes(request.SerializeToString())


def seldon(**tags: Any) -> bytes:
    document = {"meta": {"tags": tags}, "data": {"ndarray": [1]}}
    return bytes(json_format.ParseDict(document, SeldonMessage()).SerializeToString())


@pytest.mark.parametrize("name", ["ocr", "any-69", "a.b-0069"])
def test_a_name_or_a_task(name: str) -> None:
    inference = dl_inference.read_tensorflow(predict(name), VIEW)
    assert inference.request.model == "ocr"
    answer = PredictResponse.FromString(b"".join(map(bytes, inference.encode(ANSWER).parts)))
    assert (answer.model_spec.name, list(answer.outputs["y"].float_val)) == (name, [2])
    inference = dl_inference.read_triton(triton(name), VIEW)
    assert inference.request.model == "ocr"
    reply = ModelInferResponse.FromString(b"".join(map(bytes, inference.encode(ANSWER).parts)))
    assert reply.model_name == name


@pytest.mark.parametrize("name", ["ocr-70", "ocr-", "69", "ocr2"])
def test_another_name_stays(name: str) -> None:
    # The replica compares it with its own.
    assert dl_inference.read_tensorflow(predict(name), VIEW).request.model == name
    assert dl_inference.read_triton(triton(name), VIEW).request.model == name


def test_a_task_among_tags() -> None:
    for tags in ({"taskId": 69}, {"taskid": "69"}, {"other": 1}, {}):
        request = dl_inference.read_seldon(seldon(**tags), VIEW).request
        assert (request.model, request.inputs[0].data.tolist()) == ("ocr", [1])
        assert request.tags == tags
    with pytest.raises(ModelNotFound, match="task_ids"):
        dl_inference.read_seldon(seldon(taskId=70), VIEW)
    for bad in (1.5, "x", [69], None, True):
        with pytest.raises(InvalidInput, match="not the id of a task"):
            dl_inference.read_seldon(seldon(taskId=bad), VIEW)
