"""Seldon's protocol and dl_inference's service through a whole node, with generated clients."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import grpc
import numpy as np
import pytest
import pytest_asyncio
from google.protobuf import json_format

from tests import models
from tests.node.harness import ServedNode
from tidegate.protocols.dl_inference import (
    CAFFE_PREDICT,
    PREDICT,
    PYTORCH_PREDICT,
    TIS_PREDICT,
)
from tidegate.protocols.open_inference.messages import ModelInferRequest, ModelInferResponse
from tidegate.protocols.seldon.messages import Feedback, SeldonMessage
from tidegate.protocols.tensorflow_serving.messages import PredictRequest, PredictResponse

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROW = [[1.0, 2.0, 3.0, 4.0]]
NDARRAY = {"data": {"ndarray": ROW}}
HOOKS = """
from tidegate.hooks import InvalidInput, Request

def preprocess(request: Request):
    if request.payload == b"":
        raise InvalidInput("an empty picture")
    import numpy as np
    return {"x": np.full((1, 4), len(request.payload), np.float32)}

def postprocess(request: Request, outputs):
    return {"sum": float(outputs["y"].sum()), "taskId": request.tags.get("taskId")}
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("seldon")
    for name, task in (("double", 69), ("triple", 70), ("ocr-71", None), ("hooked", 39)):
        models.scale(root / f"{name}/1/model.onnx", {"double": 2.0, "ocr-71": 5.0}.get(name, 3.0))
        if task is not None:
            (root / f"{name}/model.yaml").write_text(f"task_ids: [{task}]\n")
    (root / "hooked/hooks.py").write_text(HOOKS)
    return root


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(repository: Path) -> AsyncIterator[ServedNode]:
    async with ServedNode(repository) as served:
        yield served


async def call(node: ServedNode, method: str, request: Any, answer: Any, **metadata: str) -> Any:
    async with grpc.aio.insecure_channel(node.target) as channel:
        response = await channel.unary_unary(method)(
            request.SerializeToString(), metadata=tuple(metadata.items()), timeout=20
        )
    return answer.FromString(response)


async def refusal(node: ServedNode, method: str, request: Any, **metadata: str) -> tuple[str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(node, method, request, None, **metadata)
    return caught.value.code().name, caught.value.details() or ""


def seldon(document: Any) -> Any:
    return json_format.ParseDict(document, SeldonMessage())


async def test_rest_names_the_model_in_path_or_header(node: ServedNode) -> None:
    body = json.dumps(NDARRAY).encode()
    for path, headers, factor in (
        ("/seldon/default/double/api/v1.0/predictions", {}, 2),
        ("/api/v1.0/predictions", {"seldon": "triple"}, 3),
        ("/predict", {"seldon": "double"}, 2),
    ):
        status, answer = await node.post(
            path, body, {"content-type": "application/json", **headers}
        )
        document = json.loads(answer)
        assert (status, document["data"]["ndarray"]) == (200, [[factor * x for x in ROW[0]]])
        assert document["meta"]["puid"]
    form = urlencode({"json": json.dumps(NDARRAY)}).encode()
    kind = {"content-type": "application/x-www-form-urlencoded", "seldon": "double"}
    status, answer = await node.post("/api/v0.1/predictions", form, kind)
    assert (status, json.loads(answer)["data"]["ndarray"]) == (200, [[2, 4, 6, 8]])


async def test_rest_errors_are_seldons(node: ServedNode) -> None:
    status, answer = await node.post("/seldon/a/double/api/v1.0/predictions", b'{"data": 1}')
    said = json.loads(answer)["status"]
    assert (status, said["code"], said["status"]) == (400, 400, "FAILURE")
    status, answer = await node.post("/api/v1.0/predictions", b"{}")
    assert status == 400
    assert b"names no model, and there are 4 here" in answer


@pytest.mark.parametrize("service", ["Model", "Seldon"])
async def test_grpc_names_the_model_in_metadata(node: ServedNode, service: str) -> None:
    method = f"/seldon.protos.{service}/"
    tensor = {"data": {"tensor": {"shape": [1, 4], "values": ROW[0]}}, "meta": {"puid": "p"}}
    answer = await call(node, f"{method}Predict", seldon(tensor), SeldonMessage, seldon="triple")
    assert list(answer.data.tensor.values) == [3, 6, 9, 12]
    assert answer.meta.puid == "p"
    feedback = Feedback(request=seldon(tensor), reward=1)
    await call(node, f"{method}SendFeedback", feedback, SeldonMessage, seldon="triple")
    code, words = await refusal(node, f"{method}Predict", seldon(tensor))
    assert (code, "name one of double" in words) == ("INVALID_ARGUMENT", True)
    code, words = await refusal(node, f"{method}Predict", SeldonMessage(), seldon="triple")
    assert (code, "has no data" in words) == ("INVALID_ARGUMENT", True)


async def test_the_four_methods_of_dl_inference(node: ServedNode) -> None:
    tensors = PredictRequest()
    tensors.model_spec.name = "tensorflow-69"
    tensors.inputs["x"].dtype = 1
    for size in (1, 4):
        tensors.inputs["x"].tensor_shape.dim.add(size=size)
    tensors.inputs["x"].float_val.extend(ROW[0])
    answer = await call(node, PREDICT, tensors, PredictResponse)
    assert list(answer.outputs["y"].float_val) == [2, 4, 6, 8]

    triton = ModelInferRequest(model_name="any-70", model_version="1", id="7")
    row = triton.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    row.contents.fp32_contents.extend(ROW[0])
    answer = await call(node, TIS_PREDICT, triton, ModelInferResponse)
    assert (answer.model_name, answer.id) == ("any-70", "7")
    assert np.frombuffer(answer.raw_output_contents[0], np.float32).tolist() == [3, 6, 9, 12]

    for method in (PYTORCH_PREDICT, CAFFE_PREDICT):
        asked = seldon({**NDARRAY, "meta": {"tags": {"taskId": 69}}})
        answer = await call(node, method, asked, SeldonMessage)
        found: Any = json_format.MessageToDict(answer.data.ndarray)
        assert found == [[2, 4, 6, 8]]
        picture = seldon({"binData": "AAAA", "meta": {"tags": {"taskid": "39"}}})
        answer = await call(node, method, picture, SeldonMessage)
        assert json_format.MessageToDict(answer.jsonData) == {"sum": 36, "taskId": None}


async def test_a_name_goes_before_its_task(node: ServedNode) -> None:
    triton = ModelInferRequest(model_name="ocr-71")
    triton.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    triton.raw_input_contents.append(np.ones((1, 4), np.float32).tobytes())
    answer = await call(node, TIS_PREDICT, triton, ModelInferResponse)
    assert np.frombuffer(answer.raw_output_contents[0], np.float32).tolist() == [5] * 4
    triton.model_name = "gone-72"
    code, words = await refusal(node, TIS_PREDICT, triton)
    assert code == "NOT_FOUND"
    assert "put task_ids: [72] into its model.yaml" in words


async def test_hooks_take_what_is_no_array(node: ServedNode) -> None:
    path = "/seldon/default/hooked/api/v1.0/predictions"
    sent = {"binData": "AAAA", "meta": {"tags": {"taskId": 39}}}
    status, answer = await node.post(path, json.dumps(sent).encode())
    assert (status, json.loads(answer).get("jsonData")) == (200, {"sum": 36, "taskId": 39}), answer
    status, answer = await node.post(path, b'{"binData": ""}')
    assert (status, json.loads(answer)["status"]["info"]) == (400, "an empty picture")


def run_client(folder: Path, target: str) -> str:
    run = (sys.executable, "-m")
    subprocess.run([*run, "tidegate.cli", "protos", folder], check=True, capture_output=True)
    files = sorted(file.name for file in folder.glob("*.proto"))
    places = (f"--proto_path={folder}", f"--python_out={folder}", f"--grpc_python_out={folder}")
    subprocess.run([*run, "grpc_tools.protoc", *places, *files], check=True)
    script = [sys.executable, "-c", CLIENT, target]
    return subprocess.run(script, cwd=folder, capture_output=True, text=True, check=True).stdout


CLIENT = """
import sys
import grpc, open_inference_pb2, seldon_pb2, tensorflow_serving_pb2, wpai_pb2_grpc
with grpc.insecure_channel(sys.argv[1]) as channel:
    stub = wpai_pb2_grpc.WpaiDLPredictOnlineServiceStub(channel)
    message = seldon_pb2.SeldonMessage(binData=b"123")
    message.meta.tags["taskid"].number_value = 39
    print(stub.PytorchPredict(message, timeout=20).jsonData.struct_value["sum"])
    print(stub.CaffePredict(message, timeout=20).jsonData.struct_value["sum"])
    tensors = tensorflow_serving_pb2.PredictRequest()
    tensors.model_spec.name = "any-69"
    tensors.inputs["x"].dtype = 1
    for size in (1, 4):
        tensors.inputs["x"].tensor_shape.dim.add(size=size)
    tensors.inputs["x"].float_val.extend([1, 2, 3, 4])
    print(list(stub.Predict(tensors, timeout=20).outputs["y"].float_val))
    triton = open_inference_pb2.ModelInferRequest(model_name="any-69")
    row = triton.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    row.contents.fp32_contents.extend([1, 2, 3, 4])
    print(stub.TisPredict(triton, timeout=20).model_name)
"""


async def test_a_client_generated_from_the_published_files(
    node: ServedNode, tmp_path: Path
) -> None:
    """In a process of its own: the messages would collide with those of other tests."""
    said = await asyncio.to_thread(run_client, tmp_path, node.target)
    assert said.splitlines() == ["36.0", "36.0", "[2.0, 4.0, 6.0, 8.0]", "any-69"]
