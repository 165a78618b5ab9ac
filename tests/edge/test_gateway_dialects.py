"""Servers of every make behind one gateway: who gets which calls, and dl_inference's service."""

from __future__ import annotations

import warnings
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import json_format

from tests.edge.gateway import GatewayEdge, running_gateway
from tests.edge.harness import message, string
from tests.tensorflow_models import tf
from tidegate.edge.pools import Protocol, Server
from tidegate.protocols import dl_inference, open_inference, seldon, tensorflow_serving
from tidegate.protocols.open_inference.messages import (
    ModelInferRequest,
    ModelInferResponse,
    ModelReadyRequest,
    ModelReadyResponse,
)
from tidegate.protocols.registry import GATEWAY_ROUTINGS
from tidegate.protocols.seldon.messages import SeldonMessage

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from tensorflow_serving.apis import (
        get_model_status_pb2,
        model_service_pb2_grpc,
        predict_pb2,
        prediction_service_pb2_grpc,
    )

SPEC = string(1, string(1, "m"))
"""A message of TensorFlow Serving's for the model m."""
MULTI = string(1, SPEC)
CALLS: dict[Protocol, tuple[tuple[str, bytes], ...]] = {
    "open-inference": (
        (open_inference.MODEL_INFER, message("m")),
        (open_inference.MODEL_READY, message("m")),
        (open_inference.MODEL_METADATA, message("m")),
        (open_inference.MODEL_CONFIG, message("m")),
        (open_inference.MODEL_STATISTICS, message("m")),
    ),
    "tensorflow-serving": (
        (tensorflow_serving.PREDICT, SPEC),
        (tensorflow_serving.CLASSIFY, SPEC),
        (tensorflow_serving.REGRESS, SPEC),
        (tensorflow_serving.MULTI_INFERENCE, MULTI),
        (tensorflow_serving.GET_MODEL_METADATA, SPEC),
        (tensorflow_serving.GET_MODEL_STATUS, SPEC),
    ),
    "seldon": (
        ("/seldon.protos.Model/Predict", b""),
        ("/seldon.protos.Seldon/Predict", b""),
        ("/seldon.protos.Model/SendFeedback", b""),
        ("/seldon.protos.Seldon/SendFeedback", b""),
    ),
}
PATHS: dict[Protocol, tuple[tuple[str, str], ...]] = {
    "open-inference": tuple(
        (path, path)
        for path in (
            "/v2/models/m",
            "/v2/models/m/infer?x=1",
            "/v2/models/m/versions/2/infer",
            "/v2/models/m/ready",
            "/v2/models/m/stats",
            "/v2/models/m/versions/2/stats",
        )
    ),
    "tensorflow-serving": tuple(
        (path, path)
        for path in (
            "/v1/models/m",
            "/v1/models/m:predict",
            "/v1/models/m/metadata",
            "/v1/models/m/versions/2",
            "/v1/models/m/versions/2:predict",
            "/v1/models/m/labels/new:predict",
        )
    ),
    "seldon": (
        ("/seldon/ns/m/api/v1.0/predictions?x=1", "/api/v1.0/predictions?x=1"),
        ("/seldon/ns/m/api/v1.0/feedback", "/api/v1.0/feedback"),
        ("/api/v1.0/predictions", "/api/v1.0/predictions"),
        ("/api/v0.1/predictions", "/api/v0.1/predictions"),
        ("/predict", "/predict"),
        ("/api/v1.0/feedback", "/api/v1.0/feedback"),
        ("/send-feedback", "/send-feedback"),
    ),
}
SERVICE: dict[str, tuple[bytes, Protocol, str]] = {
    dl_inference.PREDICT: (SPEC, "tensorflow-serving", tensorflow_serving.PREDICT),
    dl_inference.PYTORCH_PREDICT: (b"", "seldon", "/seldon.protos.Model/Predict"),
    dl_inference.CAFFE_PREDICT: (b"", "seldon", "/seldon.protos.Model/Predict"),
    dl_inference.TIS_PREDICT: (message("m"), "open-inference", open_inference.MODEL_INFER),
}
FOREIGN = tuple(CALLS)


@pytest.fixture
async def gateway(run_dir: Path) -> AsyncIterator[GatewayEdge]:
    async with running_gateway(run_dir) as running:
        await running.controller()
        yield running


def test_the_table_has_every_method_that_names_a_model() -> None:
    known = {path for calls in CALLS.values() for path, _ in calls} | set(SERVICE)
    assert known == {method.path for each in GATEWAY_ROUTINGS for method in each.methods}


async def test_ours_get_every_call_as_it_is(gateway: GatewayEdge) -> None:
    await gateway.model("m", await gateway.server("a"))
    await gateway.publish()
    for method, sent in (*(c for calls in CALLS.values() for c in calls), *_service()):
        seen = await gateway.call(sent, method=method, seldon="m")
        assert (seen["replica"], seen["path"], seen["size"]) == ("a", method, 5 + len(sent))
    for path in (*(sent for paths in PATHS.values() for sent, _ in paths), "/models/m"):
        seen = (await gateway.rest("POST", path, b"{}", seldon="m")).json
        assert (seen["replica"], seen["path"]) == ("a", path)


def _service() -> tuple[tuple[str, bytes], ...]:
    return tuple((method, sent) for method, (sent, _, _) in SERVICE.items())


@pytest.mark.parametrize("protocol", FOREIGN)
async def test_other_servers_get_their_protocol_and_nothing_else(
    gateway: GatewayEdge, protocol: Protocol
) -> None:
    await gateway.model("m", await gateway.server("a", protocol))
    await gateway.publish()
    for speaks, calls in CALLS.items():
        for method, sent in calls:
            if speaks == protocol:
                seen = await gateway.call(sent, method=method, seldon="m")
                assert (seen["replica"], seen["path"], seen["size"]) == (
                    "a",
                    method,
                    5 + len(sent),
                )
            else:
                code, words = await gateway.failure(sent, method=method, seldon="m")
                assert code == "UNIMPLEMENTED"
                assert words == f"{_spoken(protocol)}, and {method} is no call of that"
    for speaks, paths in PATHS.items():
        for path, written in paths:
            answer = await gateway.rest("POST", path, b"{}", seldon="m")
            if speaks == protocol:
                assert (answer.json["replica"], answer.json["path"]) == ("a", written)
            else:
                assert answer.status == 501
                assert _spoken(protocol) in str(answer.json)
    assert (await gateway.rest("GET", "/models/m")).status == 501
    for method, (sent, speaks, written) in SERVICE.items():
        if speaks == protocol:
            seen = await gateway.call(sent, method=method, seldon="m")
            assert (seen["replica"], seen["path"], seen["size"]) == ("a", written, 5 + len(sent))
        else:
            assert (await gateway.failure(sent, method=method, seldon="m"))[0] == "UNIMPLEMENTED"


def _spoken(protocol: str) -> str:
    return f"the endpoints of model m speak {protocol} over gRPC and REST"


async def test_servers_of_several_makes_share_what_they_all_speak(gateway: GatewayEdge) -> None:
    await gateway.model(
        "m",
        await gateway.server("ours"),
        await gateway.server("serving", "tensorflow-serving"),
        await gateway.server("triton", "open-inference", rest=False),
    )
    await gateway.publish()
    for sent, method, names in (
        (SPEC, tensorflow_serving.PREDICT, {"ours", "serving"}),
        (SPEC, dl_inference.PREDICT, {"ours", "serving"}),
        (message("m"), open_inference.MODEL_INFER, {"ours", "triton"}),
        (message("m"), dl_inference.TIS_PREDICT, {"ours", "triton"}),
        (b"", seldon.PREDICT, {"ours"}),
        (b"", dl_inference.CAFFE_PREDICT, {"ours"}),
    ):
        found = {
            (await gateway.call(sent, method=method, seldon="m"))["replica"] for _ in range(30)
        }
        assert found == names, method
    for path, names in (
        ("/v1/models/m:predict", {"ours", "serving"}),
        ("/v2/models/m/infer", {"ours"}),
        ("/models/m", {"ours"}),
    ):
        found = {(await gateway.rest("POST", path, b"{}")).json["replica"] for _ in range(30)}
        assert found == names, path


async def test_canary_and_copies_may_be_of_another_make(gateway: GatewayEdge) -> None:
    canary = await gateway.pool("m/canary", "serving", protocol="tensorflow-serving")
    await gateway.model("m", await gateway.server("ours"), canary=(100, canary))
    await gateway.publish()
    for method in (tensorflow_serving.PREDICT, dl_inference.PREDICT):
        seen = await gateway.call(SPEC, method=method)
        assert (seen["replica"], seen["path"]) == ("serving", tensorflow_serving.PREDICT)
    assert (await gateway.call())["replica"] == "ours"  # which the canary does not speak


async def test_a_task_leads_to_its_model(gateway: GatewayEdge) -> None:
    await gateway.model("ours", await gateway.server("a"))
    await gateway.model("serving", await gateway.server("b", "tensorflow-serving"))
    await gateway.model("seldon-7", await gateway.server("c", "seldon"))
    mixed = (await gateway.server("d"), await gateway.server("e", "tensorflow-serving"))
    await gateway.model("mixed", *mixed)
    gateway.tasks = {"69": "ours", "70": "serving", "71": "mixed", "72": "absent"}
    await gateway.publish()
    for name, replica, written in (
        ("anything-69", "a", dl_inference.PREDICT),
        ("anything-70", "b", tensorflow_serving.PREDICT),
        ("anything-71", "d", dl_inference.PREDICT),
        ("anything-72", "controller", dl_inference.PREDICT),
        ("anything-73", "controller", dl_inference.PREDICT),
    ):
        for _ in range(6):
            sent = string(1, string(1, name))
            seen = await gateway.call(sent, method=dl_inference.PREDICT)
            assert (seen["replica"], seen["path"]) == (replica, written)
    tagged = json_format.ParseDict({"meta": {"tags": {"taskId": 69}}}, SeldonMessage())
    seen = await gateway.call(tagged.SerializeToString(), method=dl_inference.PYTORCH_PREDICT)
    assert seen["replica"] == "a"
    seen = await gateway.call(message("seldon-7"), method=dl_inference.PYTORCH_PREDICT)
    assert seen["replica"] == "controller"  # a message of Seldon's names no model
    named = {"seldon": "seldon-7"}
    seen = await gateway.call(b"", method=dl_inference.PYTORCH_PREDICT, **named)
    assert (seen["replica"], seen["headers"]["seldon"]) == ("c", "seldon-7")


async def test_the_only_model_needs_no_name(gateway: GatewayEdge) -> None:
    await gateway.model("m", await gateway.server("a"))
    await gateway.publish()
    seen = await gateway.call(b"", method=seldon.PREDICT)
    # A node behind may have several.
    assert (seen["replica"], seen["headers"]["seldon"]) == ("a", "m")
    seen = (await gateway.rest("POST", "/api/v1.0/predictions", b"{}", seldon="")).json
    assert (seen["replica"], seen["headers"]["seldon"]) == ("a", "m")
    await gateway.model("n", await gateway.server("b"))
    await gateway.publish()
    assert (await gateway.call(b"", method=seldon.PREDICT))["replica"] == "controller"


async def test_the_controller_answers_for_the_gateway(gateway: GatewayEdge) -> None:
    await gateway.model("m", await gateway.server("a"))
    await gateway.publish()
    for method in (
        open_inference.SERVER_LIVE,
        open_inference.REPOSITORY_INDEX,
        open_inference.REPOSITORY_LOAD,
        open_inference.SHARED_MEMORY_STATUS,
        open_inference.TRACE_SETTING,
        open_inference.LOG_SETTINGS,
        open_inference.MODEL_STATISTICS,  # of all models
        tensorflow_serving.RELOAD_CONFIG,
        "/grpc.health.v1.Health/Check",
    ):
        assert (await gateway.call(b"", method=method))["replica"] == "controller", method
    for path in (
        "/v2/models/m/endpoints",
        "/v2/models/m/trace/setting",
        "/v2/models/stats",
        "/v2/repository/index",
        "/models",
        "/openapi.json",
    ):
        assert (await gateway.rest("GET", path)).json["replica"] == "controller", path


class Serving(prediction_service_pb2_grpc.PredictionServiceServicer):  # type: ignore[misc]
    """TensorFlow Serving's service, from its own package."""

    async def Predict(self, request: Any, context: Any) -> Any:  # noqa: N802
        answer = predict_pb2.PredictResponse()
        answer.model_spec.name = request.model_spec.name
        doubled = tf.make_ndarray(request.inputs["x"]) * 2
        answer.outputs["y"].CopyFrom(tf.make_tensor_proto(doubled))
        return answer


class States(model_service_pb2_grpc.ModelServiceServicer):  # type: ignore[misc]
    async def GetModelStatus(self, request: Any, context: Any) -> Any:  # noqa: N802
        answer = get_model_status_pb2.GetModelStatusResponse()
        answer.model_version_status.add(version=7, state="AVAILABLE")
        return answer


def _seldon_predict(request: Any, context: Any) -> Any:
    answer = SeldonMessage()
    answer.data.ndarray.extend([2 * number for number in request.data.ndarray])
    return answer


def _infer(request: Any, context: Any) -> Any:
    answer = ModelInferResponse(model_name=request.model_name)
    answer.outputs.add(name="y", datatype="FP32", shape=[len(request.raw_input_contents[0]) // 4])
    doubled = np.frombuffer(request.raw_input_contents[0], np.float32) * 2
    answer.raw_output_contents.append(doubled.tobytes())
    return answer


def _ready(request: Any, context: Any) -> Any:
    return ModelReadyResponse(ready=True)


def _method(read: Any, handle: Any) -> Any:
    return grpc.unary_unary_rpc_method_handler(
        handle, read.FromString, lambda answer: answer.SerializeToString()
    )


@pytest.fixture
async def others(gateway: GatewayEdge) -> AsyncIterator[GatewayEdge]:
    """A gateway before servers that are made with gRPC's own library."""
    server = grpc.aio.server()
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(Serving(), server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(States(), server)
    server.add_generic_rpc_handlers((
        grpc.method_handlers_generic_handler(
            "seldon.protos.Model", {"Predict": _method(SeldonMessage, _seldon_predict)}
        ),
        grpc.method_handlers_generic_handler(
            "inference.GRPCInferenceService",
            {
                "ModelInfer": _method(ModelInferRequest, _infer),
                "ModelReady": _method(ModelReadyRequest, _ready),
            },
        ),
    ))  # fmt: skip
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    makes: dict[str, Protocol] = {
        "tf-69": "tensorflow-serving",
        "pt": "seldon",
        "tis": "open-inference",
    }
    for name, protocol in makes.items():
        await gateway.model(name, Server(f"127.0.0.1:{port}", protocol))
    await gateway.publish()
    yield gateway
    await server.stop(0)


async def test_dl_inferences_service_is_answered_by_every_make(others: GatewayEdge) -> None:
    row = np.array([[1, 2, 3]], np.float32)
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "tf-69"
    request.inputs["x"].CopyFrom(tf.make_tensor_proto(row))
    for method in (dl_inference.PREDICT, tensorflow_serving.PREDICT):
        bytes_ = await others.call(request.SerializeToString(), method=method)
        answer = predict_pb2.PredictResponse.FromString(bytes_)
        assert answer.model_spec.name == "tf-69"
        assert tf.make_ndarray(answer.outputs["y"]).tolist() == [[2, 4, 6]]
    stub = prediction_service_pb2_grpc.PredictionServiceStub(others.channel)
    assert (await stub.Predict(request)).outputs["y"].dtype == tf.float32.as_datatype_enum
    states = model_service_pb2_grpc.ModelServiceStub(others.channel)
    status = get_model_status_pb2.GetModelStatusRequest()
    status.model_spec.name = "tf-69"
    assert (await states.GetModelStatus(status)).model_version_status[0].version == 7

    message_ = json_format.ParseDict({"data": {"ndarray": [1, 2, 3]}}, SeldonMessage())
    for method in (dl_inference.PYTORCH_PREDICT, dl_inference.CAFFE_PREDICT, seldon.PREDICT):
        bytes_ = await others.call(message_.SerializeToString(), method=method, seldon="pt")
        assert list(SeldonMessage.FromString(bytes_).data.ndarray) == [2, 4, 6]

    infer = ModelInferRequest(model_name="tis", raw_input_contents=[row.tobytes()])
    infer.inputs.add(name="x", datatype="FP32", shape=[3])
    for method in (dl_inference.TIS_PREDICT, open_inference.MODEL_INFER):
        bytes_ = await others.call(infer.SerializeToString(), method=method)
        found = ModelInferResponse.FromString(bytes_).raw_output_contents[0]
        assert np.frombuffer(found, np.float32).tolist() == [2, 4, 6]
