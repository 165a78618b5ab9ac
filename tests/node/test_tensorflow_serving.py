"""Clients of TensorFlow Serving as they are: the stubs of tensorflow-serving-api, and curl."""

from __future__ import annotations

import asyncio
import json
import warnings
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
import pytest_asyncio

from tests import models
from tests.node.harness import ServedNode, fetch
from tests.tensorflow_models import tf, traced
from tidegate.types import DType

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from tensorflow_serving.apis import (
        classification_pb2,
        get_model_metadata_pb2,
        get_model_status_pb2,
        inference_pb2,
        model_management_pb2,
        model_service_pb2_grpc,
        predict_pb2,
        prediction_service_pb2_grpc,
        regression_pb2,
    )

pytestmark = pytest.mark.asyncio(loop_scope="module")

LABELS = "versions: {labels: {stable: 2, canary: 3}}\n"
ROW = np.array([[1, 2, 3, 4]], np.float32)
TYPES = {
    dtype: tf.as_dtype(dtype.numpy) if dtype is not DType.BYTES else tf.string for dtype in DType
}


def half_plus_three(folder: Path) -> Path:
    """The model of TensorFlow Serving's documentation, with the signatures that it has there."""

    def half(x: Any) -> Any:
        return {"y": x * 0.5 + 3.0}

    def features(examples: Any) -> Any:
        return tf.io.parse_example(examples, {"x": tf.io.FixedLenFeature([1], tf.float32)})["x"]

    def regress(inputs: Any) -> Any:
        return {"outputs": features(inputs) * 0.5 + 3.0}

    def classify(inputs: Any) -> Any:
        scores = tf.concat([features(inputs), -features(inputs)], 1)
        return {"scores": scores, "classes": tf.where(scores > 0, "up", "down")}

    texts = ([None], tf.string)
    signatures = {
        "serving_default": traced(half, x=([None], tf.float32)),
        "tensorflow/serving/regress": traced(regress, inputs=texts),
        "classify_x": traced(classify, inputs=texts),
    }
    tf.saved_model.save(tf.Module(), str(folder), signatures=signatures)
    return folder


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ServedNode]:
    root = tmp_path_factory.mktemp("serving")
    half_plus_three(root / "half_plus_three" / "123")
    for version in (1, 2, 3):
        models.scale(root / "scale" / str(version) / "model.onnx", float(version))
    (root / "scale" / "model.yaml").write_text(LABELS)
    models.every_dtype(root / "every.onnx")
    models.add_sub(root / "pair.onnx", shape=(2, 3))
    models.tiny_mlp(root / "mlp.onnx", 4, 8, 3)
    models.sequence(root / "broken.onnx")
    async with ServedNode(root) as served:
        yield served


@pytest_asyncio.fixture(loop_scope="module")
async def channel(node: ServedNode) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(node.target) as opened:
        yield opened


@pytest.fixture
def predictions(channel: Any) -> Any:
    return prediction_service_pb2_grpc.PredictionServiceStub(channel)


@pytest.fixture
def service(channel: Any) -> Any:
    return model_service_pb2_grpc.ModelServiceStub(channel)


def asking(kind: Any, model: str = "scale", **spec: Any) -> Any:
    request = kind()
    request.model_spec.name = model
    for name, value in spec.items():
        if name == "version":
            request.model_spec.version.value = value
        else:
            setattr(request.model_spec, name, value)
    return request


def predict(model: str, inputs: dict[str, Any], **spec: Any) -> Any:
    request = asking(predict_pb2.PredictRequest, model, **spec)
    for name, value in inputs.items():
        request.inputs[name].CopyFrom(value if hasattr(value, "float_val") else make(value))
    return request


def make(value: Any) -> Any:
    return tf.make_tensor_proto(value)


def outputs_of(answer: Any) -> dict[str, Any]:
    return {name: tf.make_ndarray(proto) for name, proto in answer.outputs.items()}


async def failing(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""


async def rest(node: ServedNode, path: str, document: object = None) -> Any:
    if document is None:
        status, body = await node.get(f"/v1/models/{path}")
    else:
        status, body = await node.post(f"/v1/models/{path}", json.dumps(document).encode())
    found = json.loads(body)
    return found if status == 200 else (status, found["error"])


# -- the documentation's examples -----------------------------------------------------------------


async def test_the_documented_calls(node: ServedNode) -> None:
    assert await rest(node, "half_plus_three") == {
        "model_version_status": [
            {
                "version": "123",
                "state": "AVAILABLE",
                "status": {"error_code": "OK", "error_message": ""},
            }
        ]
    }
    found = await rest(node, "half_plus_three:predict", {"instances": [1.0, 2.0, 5.0]})
    assert found == {"predictions": [3.5, 4.0, 5.5]}
    found = await rest(node, "half_plus_three:predict", {"inputs": {"x": [1.0, 2.0, 5.0]}})
    assert found == {"outputs": [3.5, 4.0, 5.5]}
    document = {
        "signature_name": "tensorflow/serving/regress",
        "examples": [{"x": 1.0}, {"x": 2.0}],
    }
    assert await rest(node, "half_plus_three:regress", document) == {"results": [3.5, 4.0]}
    status, words = await rest(node, "half:predict", {"instances": [1.0, 5.0]})
    assert status == 404
    assert "half" in words


async def test_metadata_over_rest(node: ServedNode) -> None:
    found = await rest(node, "half_plus_three/versions/123/metadata")
    assert found["model_spec"] == {
        "name": "half_plus_three", "signature_name": "", "version": "123",
    }  # fmt: skip
    signatures = found["metadata"]["signature_def"]["signature_def"]
    assert signatures.keys() == {"serving_default", "tensorflow/serving/regress", "classify_x"}
    assert signatures["serving_default"]["inputs"]["x"]["dtype"] == "DT_FLOAT"
    assert signatures["classify_x"]["outputs"].keys() == {"classes", "scores"}


async def test_classify_over_rest(node: ServedNode) -> None:
    document = {"signature_name": "classify_x", "examples": [{"x": 1.5}]}
    assert await rest(node, "half_plus_three:classify", document) == {
        "results": [[["up", 1.5], ["down", -1.5]]]
    }
    found = await rest(node, "mlp:classify", {"examples": [{"x": [1.0, 2, 3, 4]}] * 2})
    assert [len(row) for row in found["results"]] == [3, 3]
    assert sum(score for _, score in found["results"][0]) == pytest.approx(1)


async def test_wrong_calls_over_rest(node: ServedNode) -> None:
    for path, document, status, words in (
        ("scale:predict", {"instances": [[1, 2]]}, 400, "dimension 1 of the input 'x' must be 4"),
        ("scale:predict", {"instances": "a"}, 400, "send a list"),
        ("scale:explain", {}, 404, "there is no path /v1/models/scale:explain"),
        ("scale/versions/9:predict", {"instances": [1]}, 404, "scale:9 is not served here"),
        (
            "scale/labels/gone:predict",
            {"instances": [1]},
            400,
            "has the label 'gone': there is 'c",
        ),
        ("nobody/labels/a:predict", {"instances": [1]}, 404, "'nobody' is not served here"),
        ("scale/labels/gone", None, 400, "no version of the model has the label 'gone'"),
        ("scale/versions/1", None, 404, "version 1 of 'scale' is not served"),
        ("broken:predict", {"instances": [1]}, 503, "not ready"),
        ("scale:predict", None, 405, "takes POST, not GET"),
        ("scale:classify", {"examples": [{"x": [1]}]}, 400, "1 examples with 1 values each"),
        ("half_plus_three:predict", {"signature_name": "no", "inputs": 1}, 400, "no signature"),
    ):
        found = await rest(node, path, document)
        assert found[0] == status, (path, found)
        assert words in found[1]


# -- gRPC -----------------------------------------------------------------------------------------


async def test_predict(predictions: Any) -> None:
    answer = await predictions.Predict(predict("half_plus_three", {"x": [1.0, 2.0, 5.0]}))
    assert list(answer.outputs["y"].float_val) == [3.5, 4.0, 5.5]
    assert answer.model_spec.version.value == 123
    assert answer.model_spec.signature_name == "serving_default"
    example = tf.train.Example()
    example.features.feature["x"].float_list.value.append(4.0)
    request = predict(
        "half_plus_three",
        {"inputs": [example.SerializeToString()]},
        signature_name="classify_x",
    )
    request.output_filter.append("classes")
    answer = await predictions.Predict(request)
    assert outputs_of(answer).keys() == {"classes"}
    assert outputs_of(answer)["classes"].tolist() == [[b"up", b"down"]]
    assert answer.model_spec.signature_name == "classify_x"


async def test_every_type(predictions: Any) -> None:
    sent = {}
    for dtype in DType:
        values: Any = [[0, 1], [2, 127]]
        data = np.array(values).astype(bool if dtype is DType.BOOL else dtype.numpy)
        if dtype is DType.BYTES:
            data = np.array([[b"", b"a"], [b"caf\xc3\xa9\x00", b"tide" * 100]], object)
        sent[dtype] = data
    inputs = {f"in_{d.value}": tf.make_tensor_proto(a, TYPES[d], a.shape) for d, a in sent.items()}
    found = outputs_of(await predictions.Predict(predict("every", inputs)))
    assert found.keys() == {f"out_{dtype.value}" for dtype in DType}
    for dtype, data in sent.items():
        assert found[f"out_{dtype.value}"].tolist() == data.tolist(), dtype


async def test_a_model_without_a_batch_dimension(node: ServedNode, predictions: Any) -> None:
    a, b = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones((2, 3), np.float32)
    found = outputs_of(await predictions.Predict(predict("pair", {"a": a, "b": b})))
    assert np.array_equal(found["total"], a + b)
    columns = {"inputs": {"a": a.tolist(), "b": b.tolist()}}
    answered = await rest(node, "pair:predict", columns)
    assert answered == {"outputs": {"total": (a + b).tolist(), "difference": (a - b).tolist()}}


async def test_large_tensors(predictions: Any) -> None:
    data = np.random.default_rng(1).random((50_000, 4), np.float32)
    for proto in (tf.make_tensor_proto(data), typed(data)):
        found = outputs_of(await predictions.Predict(predict("scale", {"x": proto})))
        assert np.array_equal(found["y"], data * 3)


def typed(data: Any) -> Any:
    proto = tf.make_tensor_proto(data)
    proto.ClearField("tensor_content")
    proto.float_val.extend(data.reshape(-1).tolist())
    return proto


def examples(request: Any, *rows: list[float]) -> Any:
    for row in rows:
        added = request.input.example_list.examples.add()
        added.features.feature["x"].float_list.value.extend(row)
    return request


async def test_classify_and_regress(predictions: Any) -> None:
    request = asking(
        classification_pb2.ClassificationRequest, "half_plus_three", signature_name="classify_x"
    )
    answer = await predictions.Classify(examples(request, [1.0], [-2.0]))
    rows = [[(c.label, c.score) for c in row.classes] for row in answer.result.classifications]
    assert rows == [[("up", 1), ("down", -1)], [("down", -2), ("up", 2)]]
    assert answer.model_spec.version.value == 123
    request = asking(classification_pb2.ClassificationRequest, "mlp")
    answer = await predictions.Classify(examples(request, [1.0, 2, 3, 4]))
    assert len(answer.result.classifications[0].classes) == 3
    request = asking(
        regression_pb2.RegressionRequest,
        "half_plus_three",
        signature_name="tensorflow/serving/regress",
    )
    answer = await predictions.Regress(examples(request, [1.0], [2.0]))
    assert [regression.value for regression in answer.result.regressions] == [3.5, 4.0]


async def test_metadata(predictions: Any) -> None:
    request = asking(get_model_metadata_pb2.GetModelMetadataRequest, "half_plus_three")
    request.metadata_field.append("signature_def")
    answer = await predictions.GetModelMetadata(request)
    assert answer.model_spec.version.value == 123
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert answer.metadata["signature_def"].Unpack(signatures)
    default = signatures.signature_def["serving_default"]
    assert default.inputs["x"].dtype == tf.float32.as_datatype_enum
    assert [d.size for d in default.inputs["x"].tensor_shape.dim] == [-1]


async def test_errors(predictions: Any) -> None:
    invalid, missing = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
    unmet = grpc.StatusCode.FAILED_PRECONDITION
    for request, expected, words in (
        (predict("scale", {"x": ROW}, version=9), missing, "scale:9"),
        (predict("scale", {"x": ROW}, version_label="gone"), invalid, "has the label 'gone'"),
        (predict("nobody", {"x": ROW}), missing, "nobody"),
        (predict("", {"x": ROW}), invalid, "no model name"),
        (predict("scale", {"x": ROW}, signature_name="no"), unmet, "no signature 'no'"),
        (predict("scale", {"x": ROW.astype(float)}), invalid, "must be FP32"),
        (predict("scale", {"z": ROW}), invalid, "no input 'z'"),
    ):
        code, said = await failing(predictions.Predict(request))
        assert (code, words in said) == (expected, True), said
    several = inference_pb2.MultiInferenceRequest()
    several.tasks.add().model_spec.name = "scale"
    code, said = await failing(predictions.MultiInference(several))
    assert code is grpc.StatusCode.UNIMPLEMENTED
    assert "call Classify and Regress" in said


# -- versions and labels --------------------------------------------------------------------------


async def test_versions_and_labels(node: ServedNode, predictions: Any) -> None:
    for spec, path, factor in (
        ({}, "", 3),
        ({"version": 2}, "/versions/2", 2),
        ({"version_label": "stable"}, "/labels/stable", 2),
        ({"version_label": "canary"}, "/labels/canary", 3),
    ):
        answer = await predictions.Predict(predict("scale", {"x": ROW}, **spec))
        assert outputs_of(answer)["y"].tolist() == (ROW * factor).tolist()
        assert answer.model_spec.version.value == factor
        found = await rest(node, f"scale{path}:predict", {"instances": ROW.tolist()})
        assert found == {"predictions": (ROW * factor).tolist()}
        found = await rest(node, f"scale{path}/metadata")
        assert found["model_spec"]["version"] == str(factor)


def states(answer: Any) -> dict[int, str]:
    name = get_model_status_pb2.ModelVersionStatus.State.Name
    return {status.version: name(status.state) for status in answer.model_version_status}


async def test_status(node: ServedNode, service: Any) -> None:
    kind = get_model_status_pb2.GetModelStatusRequest
    assert states(await service.GetModelStatus(asking(kind))) == {2: "AVAILABLE", 3: "AVAILABLE"}
    for spec in ({"version": 2}, {"version_label": "stable"}):
        assert states(await service.GetModelStatus(asking(kind, **spec))) == {2: "AVAILABLE"}
    [broken] = (await service.GetModelStatus(asking(kind, "broken"))).model_version_status
    assert states(await service.GetModelStatus(asking(kind, "broken"))) == {1: "END"}
    assert broken.status.error_code
    assert broken.status.error_message
    for model in ("nobody", "scale"):
        code, _ = await failing(service.GetModelStatus(asking(kind, model, version=1)))
        assert code is grpc.StatusCode.NOT_FOUND
    assert len((await rest(node, "scale"))["model_version_status"]) == 2
    status, body = await asyncio.to_thread(
        fetch, f"http://127.0.0.1:{node.admin_port}/v1/models/scale"
    )
    assert (status, len(json.loads(body)["model_version_status"])) == (200, 2)


async def test_a_label_moves_without_a_failed_call(node: ServedNode, predictions: Any) -> None:
    request = predict("scale", {"x": ROW}, version_label="stable")
    seen: list[int] = []

    async def keep_calling() -> None:
        while not seen or seen[-1] != 3:
            answer = await predictions.Predict(request)
            seen.append(answer.model_spec.version.value)

    calling = asyncio.create_task(keep_calling())
    await asyncio.sleep(0)
    settings = node.repository / "scale" / "model.yaml"
    try:
        settings.write_text(LABELS.replace("stable: 2", "stable: 3"))
        await asyncio.wait_for(calling, 60)
        assert set(seen) == {2, 3}
        assert seen == sorted(seen)
    finally:
        settings.write_text(LABELS)
        await until_stable_is(2, predictions)


async def until_stable_is(version: int, predictions: Any) -> None:
    request = predict("scale", {"x": ROW}, version_label="stable")
    async with asyncio.timeout(60):
        while (await predictions.Predict(request)).model_spec.version.value != version:
            pass


# -- reloading ------------------------------------------------------------------------------------


def reloading(*names: str, **config: Any) -> Any:
    request = model_management_pb2.ReloadConfigRequest()
    for name in names:
        request.config.model_config_list.config.add(name=name, **config)
    return request


async def test_reloading_is_for_the_admin_port(node: ServedNode, service: Any) -> None:
    code, said = await failing(service.HandleReloadConfigRequest(reloading("scale")))
    assert code is grpc.StatusCode.PERMISSION_DENIED
    assert "--public-control" in said


async def test_what_cannot_be_reloaded(node: ServedNode) -> None:
    invalid, unknown = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED
    latest = reloading("scale")
    policy = latest.config.model_config_list.config[0].model_version_policy
    policy.latest.num_versions = 2
    labels = reloading("scale", version_labels={"stable": 3})
    nothing = model_management_pb2.ReloadConfigRequest()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{node.admin_port}") as admin:
        service = model_service_pb2_grpc.ModelServiceStub(admin)
        for request, expected, words in (
            (nothing, invalid, "no model_config_list"),
            (reloading("scale", "scale"), invalid, "there twice"),
            (reloading("scale", base_path="/models/scale"), invalid, "leave base_path out"),
            (reloading("nobody"), grpc.StatusCode.NOT_FOUND, "nobody"),
            (reloading("broken"), grpc.StatusCode.FAILED_PRECONDITION, "cannot be loaded"),
            (latest, unknown, "are 1 by its model.yaml, not 2"),
            (labels, unknown, "change `versions.labels` there"),
        ):
            code, said = await failing(service.HandleReloadConfigRequest(request))
            assert (code, words in said) == (expected, True), said
    found = await rest(node, "mlp")
    assert found["model_version_status"][0]["state"] == "AVAILABLE"


async def test_reloading(node: ServedNode) -> None:
    names = ("half_plus_three", "scale", "every", "pair", "mlp")
    async with grpc.aio.insecure_channel(f"127.0.0.1:{node.admin_port}") as admin:
        service = model_service_pb2_grpc.ModelServiceStub(admin)
        few = reloading("scale", base_path=str(node.repository / "scale"))
        few.config.model_config_list.config[0].version_labels.update({"stable": 2, "canary": 3})
        few.metric_names.append("/tensorflow/serving/model_warmup_latency")
        answer = await service.HandleReloadConfigRequest(few)
        assert answer.status.error_code == 0
        assert [(m.name, m.int64_value_increase) for m in answer.metric] == [
            ("/tensorflow/serving/model_warmup_latency", 0)
        ]
        try:
            found = await rest(node, "mlp")
            assert found["model_version_status"][0]["state"] in ("UNLOADING", "END")
            status, _ = await rest(node, "mlp:predict", {"instances": ROW.tolist()})
            assert status == 503
        finally:
            await service.HandleReloadConfigRequest(reloading(*names))
    found = await rest(node, "mlp:predict", {"instances": ROW.tolist()})
    assert found.keys() == {"predictions"}


async def test_the_only_model_checks_labels_itself(tmp_path: Path) -> None:
    """The edge passes it every call unread."""
    models.scale(tmp_path / "scale" / "2" / "model.onnx")
    (tmp_path / "scale" / "model.yaml").write_text("versions: {labels: {stable: 2}}\n")
    async with (
        ServedNode(tmp_path) as served,
        grpc.aio.insecure_channel(served.target) as opened,
    ):
        stub = prediction_service_pb2_grpc.PredictionServiceStub(opened)
        await stub.Predict(predict("scale", {"x": ROW}, version_label="stable"))
        for spec, expected in (
            ({"version_label": "canary"}, grpc.StatusCode.INVALID_ARGUMENT),
            ({"version": 3}, grpc.StatusCode.NOT_FOUND),
        ):
            code, _ = await failing(stub.Predict(predict("scale", {"x": ROW}, **spec)))
            assert code is expected
