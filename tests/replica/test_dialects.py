"""What holds for every protocol beside the Open Inference Protocol."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import numpy as np

from tests import models
from tests.replica.edge_client import EdgeClient
from tests.replica.served import Replica, serving
from tidegate.errors import InvalidInput
from tidegate.protocols.dialect import Dialect, Inference, ModelView, Reply, RestCall
from tidegate.protocols.routing import Routing
from tidegate.runtimes.interface import RuntimeOptions
from tidegate.runtimes.onnx import load
from tidegate.types import InferRequest, InferResponse, Tensor

DOUBLE, ABOUT = "/toy.Toy/Double", "/toy.Toy/About"


def _read_numbers(text: bytes, model: str) -> Inference:
    if not text:
        raise InvalidInput("no numbers came")
    numbers = np.array([text.split()], np.float32)
    request = InferRequest(model, inputs=(Tensor.of("x", numbers),))
    return Inference(request, functools.partial(_write_numbers, f"{model}:".encode()))


def _write_numbers(prefix: bytes, response: InferResponse) -> Reply:
    numbers = response.outputs[0].data.reshape(-1).tolist()
    if numbers[0] == 0:
        raise ValueError("nothing to say")
    return Reply([prefix, " ".join(map(str, numbers)).encode()], b"text/plain", 201)


def _read_message(message: bytes | memoryview, model: ModelView) -> Inference | Reply:
    name, _, numbers = bytes(message).partition(b":")
    return _read_numbers(numbers, name.decode())


def _read_question(message: bytes | memoryview, model: ModelView) -> Inference | Reply:
    return Reply(
        [f"{model.metadata.name} {model.version}".encode()], model=bytes(message).decode()
    )


def _read_call(call: RestCall, model: ModelView) -> Inference | Reply:
    if call.method == "GET":
        return Reply([call.query.encode()])
    return _read_numbers(call.body, "")


TOY = Dialect(
    name="toy",
    routing=Routing(methods=(), prefixes=(), server_methods=()),
    inferences={DOUBLE: _read_message},
    questions={ABOUT: _read_question},
    paths=("/toy/",),
    read=_read_call,
)


@contextlib.asynccontextmanager
async def talking(folder: Path) -> AsyncIterator[tuple[EdgeClient, Replica]]:
    model = load(models.scale(folder / "m.onnx"), RuntimeOptions(device="cpu"))
    async with (
        serving(model, folder, dialects=[TOY]) as replica,
        EdgeClient(replica.socket) as client,
    ):
        yield client, replica


async def test_calls_in_a_dialect(tmp_path: Path) -> None:
    async with talking(tmp_path) as (client, replica):
        reply = await client.grpc(DOUBLE, b"m:1 2 3 4")
        assert reply.message == b"m:2.0 4.0 6.0 8.0"
        reply = await client.grpc(ABOUT, b"m")
        assert reply.message == b"m 2"
        reply = await client.rest("POST", "/toy/", b"1 2 3 4")
        assert (reply.status, reply.body) == (201, b":2.0 4.0 6.0 8.0")
        assert reply.headers["content-type"] == "text/plain"
        reply = await client.rest("GET", "/toy/?a=b&c")
        assert reply.body == b"a=b&c"
        counted = replica.service.stats().counted.requests
    assert counted["toy-grpc"] == {"OK": 1}
    assert counted["toy-rest"] == {"201": 1}
    assert counted["grpc"] == {"OK": 0}


async def test_a_message_for_another_model(tmp_path: Path) -> None:
    async with talking(tmp_path) as (client, _):
        for path, message in ((DOUBLE, b"other:1 2 3 4"), (ABOUT, b"other")):
            reply = await client.grpc(path, message)
            assert (reply.grpc_status, reply.body) == (grpc.StatusCode.NOT_FOUND.value[0], b"")
            assert "'other' is not served here" in reply.grpc_message


async def test_failures_are_counted_with_the_protocol(tmp_path: Path) -> None:
    async with talking(tmp_path) as (client, replica):
        reply = await client.rest("POST", "/toy/", b"")
        assert (reply.status, reply.error) == (400, "no numbers came")
        reply = await client.rest("POST", "/toy/", b"1 2")
        assert reply.status == 400
        assert "must be 4" in reply.error
        reply = await client.grpc(DOUBLE, b"m:0 0 0 0")
        assert reply.grpc_status == grpc.StatusCode.INTERNAL.value[0]
        assert "the answer cannot be sent: nothing to say" in reply.grpc_message
        reply = await client.grpc("/toy.Toy/Triple", b"m:1")
        assert reply.grpc_status == grpc.StatusCode.UNIMPLEMENTED.value[0]
        counted = replica.service.stats().counted.requests
    assert counted["toy-rest"] == {"400": 2}
    assert counted["toy-grpc"] == {"INTERNAL": 1}
