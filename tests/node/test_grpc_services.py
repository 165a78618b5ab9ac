"""Health checking and server reflection of a node, by gRPC's own clients."""

from __future__ import annotations

import queue
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.protobuf import descriptor_pool, message_factory
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from tests import models
from tests.node.harness import ServedNode, fetch
from tidegate.protocols import grpc_health, grpc_reflection

pytestmark = pytest.mark.asyncio(loop_scope="module")

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, 2
SERVICE = "inference.GRPCInferenceService"
WAIT = 20


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ServedNode]:
    root = tmp_path_factory.mktemp("services")
    models.scale(root / "scale.onnx", 2.0)
    models.scale(root / "other.onnx", 2.0)
    async with ServedNode(root) as served:
        yield served


@pytest.fixture
def channel(node: ServedNode) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(node.target) as channel:
        yield channel


@pytest.fixture
def health(channel: grpc.Channel) -> Any:
    return health_pb2_grpc.HealthStub(channel)


def asked(service: str) -> Any:
    return health_pb2.HealthCheckRequest(service=service)


async def test_check(health: Any) -> None:
    for service in ("", SERVICE, "grpc.health.v1.Health", "scale", "scale:1"):
        assert health.Check(asked(service), timeout=WAIT).status == SERVING
    with pytest.raises(grpc.RpcError) as caught:
        health.Check(asked("nobody"), timeout=WAIT)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert "'nobody'" in caught.value.details()


async def test_list(channel: grpc.Channel) -> None:
    answer = channel.unary_unary(grpc_health.LIST)(b"", timeout=WAIT)
    pool = descriptor_pool.DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
    kind = pool.FindMessageTypeByName("grpc.health.v1.HealthListResponse")
    message: Any = message_factory.GetMessageClass(kind).FromString(answer)
    statuses = message.statuses
    assert statuses[""].status == statuses["other"].status == SERVING


async def control(node: ServedNode, model: str, verb: str) -> None:
    url = f"http://127.0.0.1:{node.admin_port}/v2/repository/models/{model}/{verb}"
    assert fetch(url, b"") == (200, b"{}")


async def test_watch_tells_each_change(node: ServedNode, health: Any) -> None:
    watched = health.Watch(asked("other"), timeout=WAIT)
    whole = health.Watch(asked(""), timeout=WAIT)
    unknown = health.Watch(asked("nobody"), timeout=WAIT)
    assert next(watched).status == next(whole).status == SERVING
    assert next(unknown).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    await control(node, "other", "unload")
    assert next(watched).status == NOT_SERVING
    await control(node, "other", "load")
    assert next(watched).status == SERVING
    for call in (watched, whole, unknown):
        call.cancel()


class Conversation:
    """A stream that is held open: each question follows an answer, as grpcurl does."""

    def __init__(self, channel: grpc.Channel, version: str) -> None:
        self._questions: queue.SimpleQueue[Any] = queue.SimpleQueue()
        method = channel.stream_stream(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )
        self.answers = method(iter(self._questions.get, None), timeout=WAIT)

    def ask(self, **question: str) -> Any:
        self._questions.put(reflection_pb2.ServerReflectionRequest(**question))
        return next(self.answers)

    def end(self) -> None:
        self._questions.put(None)
        assert list(self.answers) == []


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_reflection_in_turns(channel: grpc.Channel, version: str) -> None:
    conversation = Conversation(channel, version)
    listed = conversation.ask(list_services="").list_services_response.service
    assert {s.name for s in listed} == {
        SERVICE,
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
        "tensorflow.serving.PredictionService",
        "tensorflow.serving.ModelService",
        "seldon.protos.Model",
        "seldon.protos.Seldon",
        "com.bj58.ailab.dlpredictonline.grpc.WpaiDLPredictOnlineService",
    }
    for symbol in (
        SERVICE,
        f"{SERVICE}.ModelInfer",
        "inference.ModelInferRequest.InferInputTensor",
        "inference.TYPE_FP32",
        "grpc.reflection.v1alpha.ErrorResponse",
    ):
        answer = conversation.ask(file_containing_symbol=symbol)
        assert len(answer.file_descriptor_response.file_descriptor_proto) == 1
    for question in ({"file_containing_symbol": "no.such"}, {"file_by_filename": "/etc/passwd"}):
        assert conversation.ask(**question).error_response.error_code == 5
    conversation.end()


async def test_a_question_without_one_ends_the_stream(channel: grpc.Channel) -> None:
    conversation = Conversation(channel, "v1")
    with pytest.raises(grpc.RpcError) as caught:
        conversation.ask()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_client_that_knows_no_proto_can_call(channel: grpc.Channel) -> None:
    """What grpcurl does: find the method, make the message, call it."""
    database = ProtoReflectionDescriptorDatabase(channel)
    assert SERVICE in database.get_services()
    pool = descriptor_pool.DescriptorPool(database)
    method = pool.FindServiceByName(SERVICE).FindMethodByName("ModelMetadata")
    request = message_factory.GetMessageClass(method.input_type)(name="scale")
    response = message_factory.GetMessageClass(method.output_type)
    call = channel.unary_unary(
        f"/{SERVICE}/ModelMetadata",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=response.FromString,
    )
    assert call(request, timeout=WAIT).platform == "onnxruntime_onnx"
    alpha = pool.FindMessageTypeByName("grpc.reflection.v1alpha.ServerReflectionResponse")
    request_type = alpha.fields_by_name["original_request"].message_type
    assert request_type is not None
    assert request_type.full_name == "grpc.reflection.v1alpha.ServerReflectionRequest"


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"\xff", grpc.StatusCode.INVALID_ARGUMENT),
        (b"\x22" + b"\xff" * 9, grpc.StatusCode.INVALID_ARGUMENT),
        (bytes(2**20 + 1), grpc.StatusCode.RESOURCE_EXHAUSTED),
    ],
)
async def test_bad_messages_in_a_stream(
    channel: grpc.Channel, sent: bytes, code: grpc.StatusCode
) -> None:
    for path in (*grpc_reflection.INFO, "/grpc.health.v1.Health/Watch"):
        call = channel.stream_stream(path)
        with pytest.raises(grpc.RpcError) as caught:
            next(call(iter([sent]), timeout=WAIT))
        assert caught.value.code() is code


async def test_the_streams_are_bounded(channel: grpc.Channel, health: Any) -> None:
    calls = [health.Watch(asked(""), timeout=60) for _ in range(1024)]
    assert [next(call).status for call in calls] == [SERVING] * 1024
    with pytest.raises(grpc.RpcError) as caught:
        next(health.Watch(asked(""), timeout=WAIT))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert health.Check(asked(""), timeout=WAIT).status == SERVING
    for call in calls:
        call.cancel()
