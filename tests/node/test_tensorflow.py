"""TensorFlow models on a real node: several signatures, an operator of their own, Keras."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import grpc
import numpy as np
import pytest
import pytest_asyncio
import tritonclient.grpc.aio as triton
from tensorflow_serving.apis import get_model_metadata_pb2, predict_pb2
from tensorflow_serving.apis.prediction_service_pb2_grpc import PredictionServiceStub
from tritonclient.utils import InferenceServerException

from tests import tensorflow_models as made
from tests.node.harness import ServedNode
from tests.tensorflow_operator import compiled, tripling

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.filterwarnings("ignore"),  # of the packages that Keras imports
]

X = np.arange(8, dtype=np.float32).reshape(2, 4)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ServedNode]:
    root = tmp_path_factory.mktemp("models")
    tripling(root / "own", compiled(tmp_path_factory.mktemp("operator")))
    (root / "network").mkdir()
    made.network().save(root / "network/model.keras")
    made.settings(root / "weights", "")
    made.checkpoint(root / "weights")
    async with ServedNode(root) as served:
        yield served


@pytest_asyncio.fixture(loop_scope="module")
async def client(node: ServedNode) -> AsyncIterator[triton.InferenceServerClient]:
    async with triton.InferenceServerClient(node.target) as connected:
        yield connected


def tensor(name: str, array: np.ndarray, datatype: str) -> triton.InferInput:
    found = triton.InferInput(name, list(array.shape), datatype)
    found.set_data_from_numpy(array)
    return found


async def test_an_operator_of_its_own_comes_from_the_models_folder(
    client: triton.InferenceServerClient,
) -> None:
    metadata = await client.get_model_metadata("own")
    assert metadata.platform == "tensorflow_savedmodel"
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.inputs] == [
        ("x", "FP32", [-1, 4])
    ]
    answer = await client.infer("own", [tensor("x", X, "FP32")])
    assert answer.as_numpy("y").tolist() == (3 * X).tolist()


async def test_another_signature_over_grpc_and_rest(
    client: triton.InferenceServerClient, node: ServedNode
) -> None:
    texts = np.array([b"Gr\xc3\xbc\xc3\x9fe", b"b"], np.object_)
    answer = await client.infer(
        "own", [tensor("text", texts, "BYTES")], parameters={"signature_name": "text"}
    )
    assert answer.as_numpy("y").tolist() == [b"GR\xc3\xbc\xc3\x9fE", b"B"]
    body = {
        "parameters": {"signature_name": "text"},
        "inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["a"]}],
    }
    code, content = await node.post("/v2/models/own/infer", json.dumps(body).encode())
    assert code == 200
    assert json.loads(content)["outputs"][0]["data"] == ["A"]
    with pytest.raises(InferenceServerException, match="it has 'serving_default', 'text'"):
        await client.infer(
            "own", [tensor("x", X, "FP32")], parameters={"signature_name": "classify"}
        )


async def test_requests_of_two_signatures_at_once(client: triton.InferenceServerClient) -> None:
    async def triple(row: int) -> bool:
        x = np.full((1, 4), row, np.float32)
        answer = await client.infer("own", [tensor("x", x, "FP32")])
        return bool((answer.as_numpy("y") == 3 * x).all())

    async def upper(row: int) -> bool:
        text = np.array([b"text %d" % row], np.object_)
        answer = await client.infer(
            "own", [tensor("text", text, "BYTES")], parameters={"signature_name": "text"}
        )
        return bool(answer.as_numpy("y").tolist() == [b"TEXT %d" % row])

    assert all(await asyncio.gather(*(ask(row) for row in range(32) for ask in (triple, upper))))


async def test_a_keras_file(client: triton.InferenceServerClient) -> None:
    answer = await client.infer("network", [tensor("image", made.IMAGES, "FP32")])
    for name, array in made.called(made.network(), made.IMAGES).items():
        np.testing.assert_allclose(answer.as_numpy(name), array, rtol=1e-5, atol=1e-6)


async def test_tensorflow_is_quiet_and_a_checkpoint_is_explained(node: ServedNode) -> None:
    assert "weights/model.ckpt.index is a TensorFlow checkpoint" in node.output
    folder = node.run_dir / str(node.port) / "logs"
    logs = "".join((folder / f"{name}-1.0.log").read_text() for name in ("own", "network"))
    assert "loading own version 1" in logs
    for noise in ("oneDNN", "InitializeLog", "cpu_feature_guard", "WARNING", "deprecated"):
        assert noise not in logs


async def test_tensorflow_serving_asks_for_signatures_over_grpc(node: ServedNode) -> None:
    async with grpc.aio.insecure_channel(node.target) as channel:
        service = PredictionServiceStub(channel)
        request = predict_pb2.PredictRequest()
        request.model_spec.name = "own"
        request.inputs["x"].CopyFrom(made.tf.make_tensor_proto(X))
        answer = await service.Predict(request)
        assert made.tf.make_ndarray(answer.outputs["y"]).tolist() == (3 * X).tolist()

        request = predict_pb2.PredictRequest()
        request.model_spec.name = "own"
        request.model_spec.signature_name = "text"
        request.inputs["text"].CopyFrom(made.tf.make_tensor_proto(["a", "b"]))
        answer = await service.Predict(request)
        assert answer.model_spec.signature_name == "text"
        assert made.tf.make_ndarray(answer.outputs["y"]).tolist() == [b"A", b"B"]
        request.model_spec.signature_name = "classify"
        with pytest.raises(grpc.aio.AioRpcError, match="it has 'serving_default', 'text'"):
            await service.Predict(request)

        asked = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
        asked.model_spec.name = "own"
        metadata = (await service.GetModelMetadata(asked)).metadata["signature_def"]
        found = get_model_metadata_pb2.SignatureDefMap()
        assert metadata.Unpack(found)
        assert {
            name: (list(each.inputs), list(each.outputs))
            for name, each in found.signature_def.items()
        } == {"serving_default": (["x"], ["y"]), "text": (["text"], ["y"])}


async def test_tensorflow_serving_asks_for_signatures_over_rest(node: ServedNode) -> None:
    texts = b'{"signature_name": "text", "instances": ["a", {"b64": "Yg=="}]}'
    code, content = await node.post("/v1/models/own:predict", texts)
    assert (code, json.loads(content)) == (200, {"predictions": ["A", "B"]})
    rows = json.dumps({"instances": X.tolist()}).encode()
    code, content = await node.post("/v1/models/own:predict", rows)
    assert (code, json.loads(content)) == (200, {"predictions": (3 * X).tolist()})


async def test_plain_http_of_the_same_model(node: ServedNode) -> None:
    code, content = await node.post(
        "/models/own", json.dumps({"x": X.tolist()}).encode(), {"content-type": "application/json"}
    )
    assert code == 200, content
    assert b"12.0" in content
