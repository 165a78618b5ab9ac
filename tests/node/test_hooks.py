"""Models with hooks, and folders of dl_inference, on a real node."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import pytest_asyncio
import tritonclient.grpc.aio as triton
from google.protobuf import json_format
from PIL import Image
from tritonclient.utils import InferenceServerException

from tests import dl_inference, models
from tests.node.harness import ServedNode
from tests.replica.test_steps import tokenizer
from tidegate import AsyncClient
from tidegate.protocols.dl_inference import PYTORCH_PREDICT
from tidegate.protocols.seldon.messages import SeldonMessage
from tidegate.types import DType

pytestmark = pytest.mark.asyncio(loop_scope="module")

PICTURE = """
import numpy as np
import labels
from tidegate.hooks import InvalidInput, Request

INPUT = "image"
OUTPUT = "json"

def preprocess(request: Request):
    picture = request.image()
    if picture.size == (1, 1):
        raise InvalidInput("one pixel is no picture")
    if picture.size == (2, 2):
        raise KeyError("a secret")
    pixels = np.asarray(picture.resize((4, 4)), np.float32) / 255
    return pixels.transpose(2, 0, 1)[None]

def postprocess(request, outputs):
    means = outputs["y"][0].mean((1, 2))
    return {"label": labels.NAMES[int(means.argmax())], "score": means.max()}
"""
SHOUT = """
import labels

INPUT = OUTPUT = "text"

def preprocess(request):
    import numpy as np
    return np.ones((1, 4), np.float32)

def postprocess(request, outputs):
    return f"{request.text.upper()} {labels.NAMES}"
"""
COLORS = """
preprocess: {image: {}}
postprocess: {softmax: true, labels: labels.txt, top_k: 2}
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ServedNode]:
    root = tmp_path_factory.mktemp("hooks")
    for name, source, shape in (("picture", PICTURE, ("batch", 3, 4, 4)), ("shout", SHOUT, None)):
        (root / name / "1").mkdir(parents=True)
        models.identity(root / name / "1" / "model.onnx", shape=shape or ("batch", 4))
        (root / name / "hooks.py").write_text(source)
    (root / "picture" / "labels.py").write_text("NAMES = ['red', 'green', 'blue']\n")
    (root / "shout" / "labels.py").write_text("NAMES = 1\n")
    (root / "colors").mkdir()
    models.channel_means(root / "colors" / "model.onnx")
    (root / "colors" / "labels.txt").write_text("red\ngreen\nblue\n")
    (root / "colors" / "model.yaml").write_text(COLORS)
    (root / "words").mkdir()
    models.identity(root / "words" / "model.onnx", DType.INT64, ("batch", "length"))
    tokenizer(root / "words")
    (root / "words" / "model.yaml").write_text("preprocess: {text: {inputs: {x: ids}}}\n")
    dl_inference.write(root / "mmoe", settings="trust: pickle\ntask_ids: [69]\n")
    dl_inference.write(root / "untrusted", settings="")
    async with ServedNode(root) as served:
        yield served


@pytest_asyncio.fixture(loop_scope="module")
async def client(node: ServedNode) -> AsyncIterator[triton.InferenceServerClient]:
    async with triton.InferenceServerClient(node.target) as connected:
        yield connected


def image(color: str, size: int = 9) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), color).save(buffer, "PNG")
    return buffer.getvalue()


async def ask(
    client: triton.InferenceServerClient, model: str, name: str, data: bytes, **parameters: Any
) -> bytes:
    found = triton.InferInput(name, [1], "BYTES")
    found.set_data_from_numpy(np.array([data], np.object_))
    answer = await client.infer(model, [found], parameters=parameters or None)
    (payload,) = answer.as_numpy("payload")
    return bytes(payload)


async def test_an_image_goes_in_and_json_comes_out(client: triton.InferenceServerClient) -> None:
    metadata = await client.get_model_metadata("picture")
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.inputs] == [
        ("image", "BYTES", [1])
    ]
    assert [t.name for t in metadata.outputs] == ["payload"]
    colors = ("red", "lime", "blue") * 5
    answers = await asyncio.gather(
        *(ask(client, "picture", "image", image(color)) for color in colors)
    )
    labels = [json.loads(answer)["label"] for answer in answers]
    assert labels == ["red", "green", "blue"] * 5


async def test_who_is_at_fault(node: ServedNode, client: triton.InferenceServerClient) -> None:
    for data, status, said in (
        (image("red", 1), "INVALID_ARGUMENT", "one pixel is no picture"),
        (b"no picture", "INVALID_ARGUMENT", "this is no image"),
        (image("red", 2), "INTERNAL", "preprocess raised KeyError: 'a secret'"),
    ):
        with pytest.raises(InferenceServerException) as refused:
            await ask(client, "picture", "image", data)
        assert status in str(refused.value.status())
        assert said in str(refused.value)
        assert "Traceback" not in str(refused.value)


async def test_siblings_of_one_name_in_two_models(client: triton.InferenceServerClient) -> None:
    assert await ask(client, "shout", "text", "grün".encode()) == "GRÜN 1".encode()


async def test_rest_and_the_client(node: ServedNode) -> None:
    tensor = {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["a"]}
    status, body = await node.post(
        "/v2/models/shout/infer", json.dumps({"inputs": [tensor]}).encode()
    )
    assert (status, json.loads(body)["outputs"][0]["data"]) == (200, ["A 1"])
    async with AsyncClient(f"grpc://{node.target}") as connected:
        answer = await connected.model("picture").infer({"image": [image("blue")]})
        assert json.loads(answer["payload"][0])["label"] == "blue"
        mmoe = connected.model("mmoe")
        answer = await mmoe.infer({"text": ["1 2 3 4"]}, parameters={"taskId": 69})
        assert json.loads(answer["payload"][0])["tags"] == {"taskId": 69}


async def test_steps_without_code(client: triton.InferenceServerClient) -> None:
    metadata = await client.get_model_metadata("colors")
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.inputs] == [
        ("image", "BYTES", [-1])
    ]
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.outputs] == [
        ("label", "BYTES", [-1, 2]),
        ("score", "FP32", [-1, 2]),
    ]
    images = triton.InferInput("image", [2], "BYTES")
    images.set_data_from_numpy(np.array([image("blue"), image("lime")], np.object_))
    answer = await client.infer("colors", [images])
    assert answer.as_numpy("label")[:, 0].tolist() == [b"blue", b"green"]
    best, other = np.exp([1, 0]) / (np.e + 2)
    np.testing.assert_allclose(answer.as_numpy("score"), [[best, other]] * 2, rtol=1e-5)
    texts = triton.InferInput("text", [2], "BYTES")
    texts.set_data_from_numpy(np.array([b"a b", "ü".encode()], np.object_))
    answer = await client.infer("words", [texts])
    assert answer.as_numpy("y").tolist() == [[2, 4, 5, 3], [2, 6, 3, 7]]


async def test_a_folder_of_dl_inference(
    node: ServedNode, client: triton.InferenceServerClient
) -> None:
    expected = {"sum": 20.0, "tags": {"taskId": 69}, "file": "2", "list": [[20.0, 2.0]]}
    for name, data in (("text", b"1 2 3 4"), ("json", b'{"numbers": [1, 2, 3, 4]}')):
        assert json.loads(await ask(client, "mmoe", name, data, taskId=69)) == expected
    with pytest.raises(InferenceServerException, match="preprocess raised ValueError"):
        await ask(client, "mmoe", "text", b"one two")
    assert "untrusted/model.pth" in node.output
    assert "trust: pickle" in node.output


async def test_a_client_of_dl_inference(node: ServedNode) -> None:
    async with grpc.aio.insecure_channel(node.target) as channel:
        predict = channel.unary_unary(
            PYTORCH_PREDICT,
            request_serializer=SeldonMessage.SerializeToString,
            response_deserializer=SeldonMessage.FromString,
        )
        for data in (
            {"strData": "1 2 3 4"},
            {"binData": "MSAyIDMgNA=="},
            {"jsonData": {"numbers": [1, 2, 3, 4]}},
            {"data": {"ndarray": [1, 2, 3, 4]}},
            {"data": {"tensor": {"shape": [4], "values": [1, 2, 3, 4]}}},
        ):
            sent = json_format.ParseDict(
                {"meta": {"tags": {"taskId": 69}}, **data}, SeldonMessage()
            )
            answer = json_format.MessageToDict((await predict(sent, timeout=20)).jsonData)
            assert (answer["sum"], answer["tags"]) == (20.0, {"taskId": 69.0})


async def test_curl(node: ServedNode) -> None:
    status, body = await node.post("/models/colors", image("blue"), {"content-type": "image/png"})
    assert status == 200, body
    assert [each["label"] for each in json.loads(body)] == ["blue", "red"]
    status, body = await node.post("/models/words", "ü b".encode(), {"content-type": "text/plain"})
    assert (status, json.loads(body)["outputs"]["y"]) == (200, [[2, 6, 5, 3]])


async def test_changed_hooks_are_taken_without_a_failure(
    node: ServedNode, client: triton.InferenceServerClient
) -> None:
    hooks = Path(node.repository) / "shout" / "hooks.py"
    hooks.write_text(SHOUT.replace("upper", "title"))
    answers = set()
    async with asyncio.timeout(30):
        while b"Word 1" not in answers:
            answers.add(await ask(client, "shout", "text", b"word"))
    assert answers <= {b"WORD 1", b"Word 1"}
