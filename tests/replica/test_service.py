from __future__ import annotations

import asyncio
import contextlib
import functools
import gzip
import zlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from tests import models
from tests.replica.edge_client import GRPC, EdgeClient, Reply, frame
from tests.replica.fake_model import FakeModel
from tests.replica.served import (
    INFER,
    MESSAGE_LIMIT,
    METADATA,
    READY,
    Replica,
    infer_request,
    outputs_of,
    serving,
)
from tests.replica.waiting import WAIT, until
from tidegate.protocols.open_inference import MODEL_CONFIG, messages
from tidegate.replica.flight import read_suspects
from tidegate.runtimes.interface import RuntimeOptions
from tidegate.runtimes.onnx import load
from tidegate.types import DType

CPU = RuntimeOptions(device="cpu")
A = np.arange(8, dtype=np.float32).reshape(2, 4)
B = np.full((2, 4), 0.5, np.float32)
BODY = orjson.dumps(
    {
        "id": "r7",
        "inputs": [
            {"name": "a", "datatype": "FP32", "shape": [2, 4], "data": A.reshape(-1).tolist()},
            {"name": "b", "datatype": "FP32", "shape": [2, 4], "data": B.tolist()},
        ],
    }
)


@contextlib.asynccontextmanager
async def add_sub(folder: Path) -> AsyncIterator[tuple[EdgeClient, Replica]]:
    model = load(models.add_sub(folder / "m.onnx"), CPU)
    async with serving(model, folder) as replica, EdgeClient(replica.socket) as client:
        yield client, replica


@contextlib.asynccontextmanager
async def held(folder: Path, **options: Any) -> AsyncIterator[tuple[FakeModel, Replica]]:
    """A model that hangs until the end."""
    model = FakeModel()
    model.hold()
    async with serving(model, folder, **options) as replica:
        try:
            yield model, replica
        finally:
            model.release()


async def until_entered(model: FakeModel) -> None:
    assert await asyncio.to_thread(model.entered.acquire, True, WAIT)


async def test_inference_over_grpc(folder: Path) -> None:
    async with add_sub(folder) as (client, _):
        for version in ("", "2"):
            request = infer_request({"a": A, "b": B}, version=version, request_id="r7")
            reply = await client.grpc(INFER, request)
            assert reply.grpc_status == 0
            answer = messages.ModelInferResponse.FromString(reply.message)
            assert (answer.model_name, answer.model_version, answer.id) == ("m", "2", "r7")
            outputs = outputs_of(reply.message)
            np.testing.assert_array_equal(outputs["total"], A + B)
            np.testing.assert_array_equal(outputs["difference"], A - B)


async def test_large_messages_over_grpc(folder: Path) -> None:
    rows = MESSAGE_LIMIT // 2 // 16 - 10
    array = np.random.default_rng(1).random((rows, 4)).astype(np.float32)
    async with add_sub(folder) as (client, _):
        reply = await client.grpc(INFER, infer_request({"a": array, "b": array}))
        np.testing.assert_array_equal(outputs_of(reply.message)["total"], array * 2)
        np.testing.assert_array_equal(outputs_of(reply.message)["difference"], array * 0)


async def test_inference_over_rest_in_json(folder: Path) -> None:
    async with add_sub(folder) as (client, _):
        for path in ("/v2/models/m/infer", "/v2/models/m/versions/2/infer?a=b"):
            reply = await client.rest("POST", path, BODY)
            assert reply.status == 200
            assert reply.headers["content-type"] == "application/json"
            answer = reply.json
            assert (answer["model_name"], answer["model_version"], answer["id"]) == (
                "m",
                "2",
                "r7",
            )
            total, difference = answer["outputs"]
            assert total["name"] == "total"
            assert total["shape"] == [2, 4]
            assert total["data"] == (A + B).reshape(-1).tolist()
            assert difference["data"] == (A - B).reshape(-1).tolist()


async def test_inference_over_rest_in_binary(folder: Path) -> None:
    head = orjson.dumps(
        {
            "inputs": [
                {
                    "name": name,
                    "datatype": "FP32",
                    "shape": [2, 4],
                    "parameters": {"binary_data_size": 32},
                }
                for name in "ab"
            ],
            "outputs": [
                {"name": "difference", "parameters": {"binary_data": True}},
                {"name": "total"},
            ],
        }
    )
    async with add_sub(folder) as (client, _):
        reply = await client.rest(
            "POST",
            "/v2/models/m/infer",
            head + A.tobytes() + B.tobytes(),
            {"inference-header-content-length": str(len(head))},
        )
    assert reply.status == 200
    assert reply.headers["content-type"] == "application/octet-stream"
    length = int(reply.headers["inference-header-content-length"])
    outputs = orjson.loads(reply.body[:length])["outputs"]
    assert [output["name"] for output in outputs] == ["difference", "total"]
    assert reply.body[length:] == (A - B).tobytes()
    assert outputs[1]["data"] == (A + B).reshape(-1).tolist()


async def test_metadata_and_readiness(folder: Path) -> None:
    named = messages.ModelReadyRequest(name="m").SerializeToString()
    async with add_sub(folder) as (client, replica):
        replica.service.notice((1, 2), frozenset())
        rest = (await client.rest("GET", "/v2/models/m")).json
        assert rest["versions"] == ["1", "2"]
        assert rest["inputs"][0] == {"name": "a", "datatype": "FP32", "shape": [-1, 4]}
        reply = await client.grpc(METADATA, named)
        metadata = messages.ModelMetadataResponse.FromString(reply.message)
        assert list(metadata.versions) == ["1", "2"]
        assert metadata.platform == rest["platform"] == "onnxruntime_onnx"
        assert (await client.rest("GET", "/v2/models/m/ready")).status == 200
        assert (await client.rest("GET", "/v2/models/m/versions/2/ready")).status == 200
        assert (await client.grpc(READY, named)).message == b"\x08\x01"
        assert (await client.rest("GET", "/replica")).json["max_batch_size"] == 8


async def test_what_is_wrong_over_grpc(folder: Path) -> None:
    right = infer_request({"a": A, "b": B})
    async with add_sub(folder) as (client, _):

        async def told(reply: Reply, code: int, words: str) -> None:
            assert reply.grpc_status == code
            assert words in reply.grpc_message
            assert not reply.body

        wrong_name = infer_request({"a": A, "b": B}, model="other")
        await told(
            await client.grpc(INFER, wrong_name), 5, "'other' is not served here: version 2"
        )
        lying = await client.grpc(INFER, wrong_name, tidegate_model="m")
        await told(lying, 3, "for 'other', but its header tidegate-model led to version 2")
        impossible = infer_request({"a": A, "b": B}, model="../" + "m" * 70)
        await told(await client.grpc(INFER, impossible), 3, "m...' cannot be the name")
        wrong_version = infer_request({"a": A, "b": B}, version="3")
        await told(await client.grpc(INFER, wrong_version), 5, "version 3 of 'm' is not")
        no_version = infer_request({"a": A, "b": B}, version="latest")
        await told(await client.grpc(INFER, no_version), 3, "'latest' is not a version")
        await told(await client.grpc(INFER, b"\xff\xff"), 3, "")
        await told(await client.grpc(INFER, infer_request({"a": A})), 3, "'b' is missing")
        await told(await client.grpc(READY, b""), 3, "no model name")
        await told(await client.grpc("/a.B/C", b""), 12, "no method /a.B/C")
        await told(await client.grpc(INFER, right, grpc_timeout="soon"), 3, "grpc-timeout")
        await told(await client.grpc(INFER, right, grpc_timeout="0n"), 4, "had passed")
        await told(await client.grpc(INFER, right, flag=1), 3, "compressed")
        await told(await client.grpc(INFER, bytes(MESSAGE_LIMIT + 1)), 8, "limit")
        assert (await client.grpc(INFER, right)).grpc_status == 0


async def test_what_is_wrong_over_rest(folder: Path) -> None:
    infer = "/v2/models/m/infer"
    async with add_sub(folder) as (client, _):

        async def told(
            status: int, words: str, method: str, path: str, body: bytes = b"", **headers: str
        ) -> None:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            reply = await client.rest(method, path, body, named)
            assert (reply.status, words in reply.error) == (status, True), reply.error

        await told(404, "'other'", "POST", "/v2/models/other/infer", BODY)
        await told(404, "version 3", "POST", "/v2/models/m/versions/3/infer", BODY)
        await told(405, "takes POST, not GET", "GET", infer)
        await told(405, "takes GET, not POST", "POST", "/v2/models/m/ready")
        for path in ("/v2/models/m", "/v2/models/m/ready", "/v2/models/m/config"):
            probed = await client.rest("HEAD", path)
            assert (probed.status, probed.body) == (200, b"")
        await told(405, "takes GET, not DELETE", "DELETE", "/v2/models/m")
        await told(404, "'explain'", "POST", "/v2/models/m/explain", BODY)
        await told(404, "no path /v1", "GET", "/v1/models/m")
        await told(404, "no path", "GET", "/v2/models/m/infer/more")
        await told(400, "", "POST", infer, b"{")
        await told(400, "", "POST", infer)
        await told(400, "'b' is missing", "POST", infer, one())
        wrong_length = {"inference_header_content_length": "12x"}
        await told(400, "number of bytes", "POST", infer, BODY, **wrong_length)
        assert (await client.rest("POST", infer, BODY)).status == 200


def one() -> bytes:
    """A request with the first input alone."""
    document = orjson.loads(BODY)
    del document["inputs"][1]
    return orjson.dumps(document)


@pytest.mark.parametrize(
    ("encoding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)]
)
async def test_compressed_messages(
    folder: Path, encoding: str, compress: Callable[[bytes], bytes]
) -> None:
    request = infer_request({"a": A, "b": B})
    async with add_sub(folder) as (client, _):
        reply = await client.grpc(INFER, compress(request), flag=1, grpc_encoding=encoding)
        np.testing.assert_array_equal(outputs_of(reply.message)["total"], A + B)
        reply = await client.grpc(INFER, request, grpc_encoding=encoding)
        assert reply.grpc_status == 0
        reply = await client.rest(
            "POST", "/v2/models/m/infer", compress(BODY), {"content-encoding": encoding}
        )
        assert reply.json["outputs"][0]["data"] == (A + B).reshape(-1).tolist()


async def test_compressions_that_are_unknown_or_too_good(folder: Path) -> None:
    bomb = gzip.compress(bytes(10 * MESSAGE_LIMIT))
    assert len(bomb) < MESSAGE_LIMIT
    infer = "/v2/models/m/infer"
    async with add_sub(folder) as (client, _):
        reply = await client.grpc(INFER, b"x", flag=1, grpc_encoding="br")
        assert reply.grpc_status == 12
        assert "'br'" in reply.grpc_message
        reply = await client.grpc(INFER, bomb, flag=1, grpc_encoding="gzip")
        assert reply.grpc_status == 8
        reply = await client.rest("POST", infer, b"x", {"content-encoding": "br"})
        assert reply.status == 415
        reply = await client.rest("POST", infer, bomb, {"content-encoding": "gzip"})
        assert reply.status == 413


async def test_a_quarantined_request_is_refused_alone(folder: Path) -> None:
    request = infer_request({"a": A, "b": B})
    other = infer_request({"a": B, "b": A})
    async with add_sub(folder) as (client, replica):
        digest = replica.service.quarantine.digest(frame(request))
        replica.service.notice((2,), frozenset({digest}))
        reply = await client.grpc(INFER, request)
        assert reply.grpc_status == 9
        assert "two replicas died" in reply.grpc_message
        assert (await client.grpc(INFER, other)).grpc_status == 0
        replica.service.notice((2,), frozenset())
        assert (await client.grpc(INFER, request)).grpc_status == 0


@pytest.mark.parametrize("attempt", ["1", "2"])
async def test_the_record_names_the_digest_of_a_retry_alone(folder: Path, attempt: str) -> None:
    request = infer_request({"a": A, "b": B})
    async with held(folder) as (model, replica), EdgeClient(replica.socket) as client:
        digest = replica.service.quarantine.digest(frame(request))
        # Digests are made of all requests once one of them is in quarantine.
        replica.service.notice((2,), frozenset({bytes(16)}))
        headers = {**GRPC, "x-request-id": "id-1", "x-envoy-attempt-count": attempt}
        await client.send("POST", INFER, headers, frame(request))
        await until_entered(model)
        (suspect,) = read_suspects(folder / "flight")
        assert (suspect.request_id, suspect.digest) == (
            b"\x04id-1",
            digest if attempt == "2" else None,
        )


async def test_who_leaves_gives_up_the_place_in_the_queue(folder: Path) -> None:
    request = frame(infer_request({"a": A, "b": B}))
    async with held(folder) as (model, replica), EdgeClient(replica.socket) as first:
        await first.send("POST", INFER, GRPC, request)
        await until_entered(model)
        async with EdgeClient(replica.socket) as second, EdgeClient(replica.socket) as third:
            for client in (second, third):
                await client.send("POST", INFER, GRPC, request)
            await until(lambda: replica.engine.depth == 2)
            second.abort()
            await until(lambda: replica.engine.depth == 1)
            model.release()
            assert (await first.receive()).grpc_status == 0
            assert (await third.receive()).grpc_status == 0
        assert [len(run) for run in model.runs] == [2, 2]


async def test_deadlines_of_the_caller_and_of_the_model(folder: Path) -> None:
    request = infer_request({"a": A, "b": B})
    async with held(folder, timeout=0.05) as (_, replica), EdgeClient(replica.socket) as client:
        reply = await client.grpc(INFER, request, grpc_timeout="20m")
        assert reply.grpc_status == 4
        reply = await client.grpc(INFER, request, grpc_timeout="1H")
        assert reply.grpc_status == 4
        assert "no answer within the deadline, 0.0" in reply.grpc_message
        reply = await client.rest("POST", "/v2/models/m/infer", BODY)
        assert reply.status == 504
        assert "no answer within the deadline" in reply.error


async def test_deadlines_that_a_request_gives_as_a_parameter(folder: Path) -> None:
    request = with_parameters(timeout=20_000)
    body = BODY[:-1] + b', "parameters": {"timeout": 20000}}'
    async with held(folder) as (_, replica), EdgeClient(replica.socket) as client:
        reply = await client.grpc(INFER, request)
        assert (reply.grpc_status, "no answer within" in reply.grpc_message) == (4, True)
        reply = await client.rest("POST", "/v2/models/m/infer", body)
        assert (reply.status, "no answer within" in reply.error) == (504, True)


async def test_priorities_go_before_the_order_of_arrival(folder: Path) -> None:
    """Three wait, of which the last is the most urgent and the first the least."""
    async with held(folder, max_batch_size=1) as (model, replica), EdgeClient(replica.socket) as c:
        await c.send("POST", INFER, GRPC, frame(infer_request({"a": A, "b": B})))
        await until_entered(model)
        waiting = []
        async with contextlib.AsyncExitStack() as stack:
            for number, priority in enumerate((9, 0, 1), 1):
                client = await stack.enter_async_context(EdgeClient(replica.socket))
                request = with_parameters(A + number, priority=priority)
                await client.send("POST", INFER, GRPC, frame(request))
                waiting.append(client)
                await until(functools.partial(waits_for, replica, number))
            model.release()
            for client in (c, *waiting):
                assert (await client.receive()).grpc_status == 0
        assert [run[0, 0] for run in model.runs] == [
            A[0, 0],
            A[0, 0] + 3,
            A[0, 0] + 2,
            A[0, 0] + 1,
        ]


def waits_for(replica: Replica, depth: int) -> bool:
    return replica.engine.depth == depth


def with_parameters(a: np.ndarray[Any, Any] = A, **parameters: int) -> bytes:
    message = messages.ModelInferRequest.FromString(infer_request({"a": a, "b": B}))
    for key, value in parameters.items():
        message.parameters[key].int64_param = value
    return bytes(message.SerializeToString())


async def test_the_configuration_over_both_transports(folder: Path) -> None:
    named = messages.ModelReadyRequest(name="m").SerializeToString()
    async with add_sub(folder) as (client, _):
        found = (await client.rest("GET", "/v2/models/m/config")).json
        assert (found["name"], found["max_batch_size"]) == ("m", 8)
        reply = await client.grpc(MODEL_CONFIG, named)
        message = messages.ModelConfigResponse.FromString(reply.message)
        assert (message.config.name, message.config.backend) == ("m", "fake")
        assert (await client.rest("POST", "/v2/models/m/config", b"")).status == 405


async def test_a_full_queue_over_both_transports(folder: Path) -> None:
    request = infer_request({"a": A, "b": B})
    async with (
        held(folder, max_queue_size=1) as (model, replica),
        EdgeClient(replica.socket) as runs,
        EdgeClient(replica.socket) as waits,
    ):
        await runs.send("POST", INFER, GRPC, frame(request))
        await until_entered(model)
        await waits.send("POST", INFER, GRPC, frame(request))
        await until(lambda: replica.engine.depth == 1)
        async with EdgeClient(replica.socket) as client:
            assert (await client.grpc(INFER, request)).grpc_status == 8
            reply = await client.rest("POST", "/v2/models/m/infer", BODY)
            assert reply.status == 429
            assert reply.headers["retry-after"] == "1"
        model.release()
        assert (await runs.receive()).grpc_status == 0
        assert (await waits.receive()).grpc_status == 0


async def test_strings_count_with_their_bytes(folder: Path) -> None:
    """The bound on queued bytes holds for what numpy keeps as pointers, too."""
    strings = np.array([[b"x" * 4000]], np.object_)
    request = infer_request({"x": strings})
    model = load(models.identity(folder / "m.onnx", DType.BYTES, ("n", 1)), CPU)
    async with serving(model, folder, max_queue_bytes=10_000, max_queue_delay=10.0) as replica:
        clients = [EdgeClient(replica.socket) for _ in range(3)]
        async with clients[0], clients[1], clients[2]:
            for client in clients[:2]:
                await client.send("POST", INFER, GRPC, frame(request))
            await until(lambda: replica.engine.depth == 2)
            reply = await clients[2].grpc(INFER, request)
            assert reply.grpc_status == 8
            assert "bytes of requests are waiting" in reply.grpc_message


async def test_many_callers_get_their_own_answers(folder: Path) -> None:
    async with add_sub(folder) as (_, replica):

        async def caller(number: int) -> None:
            async with EdgeClient(replica.socket) as client:
                for turn in range(15):
                    rows = (number + turn) % 4
                    a = np.full((rows, 4), number * 100 + turn, np.float32)
                    b = np.full((rows, 4), 0.25, np.float32)
                    if turn % 2:
                        reply = await client.grpc(INFER, infer_request({"a": a, "b": b}))
                        total = outputs_of(reply.message)["total"].tolist()
                    else:
                        described = [
                            {"name": n, "datatype": "FP32", "shape": x.shape, "data": x.tolist()}
                            for n, x in (("a", a), ("b", b))
                        ]
                        reply = await client.rest(
                            "POST", "/v2/models/m/infer", orjson.dumps({"inputs": described})
                        )
                        flat = reply.json["outputs"][0]["data"]
                        total = np.reshape(flat, (rows, 4)).tolist()
                    assert total == (a + b).tolist()

        await asyncio.wait_for(asyncio.gather(*map(caller, range(24))), 3 * WAIT)


async def test_one_bad_request_among_many_fails_alone(folder: Path) -> None:
    model = load(models.gather(folder / "m.onnx", rows=32), CPU)
    async with serving(model, folder, max_queue_delay=0.02) as replica:

        async def caller(index: int) -> Reply:
            async with EdgeClient(replica.socket) as client:
                request = infer_request({"index": np.array([[index]], np.int64)})
                return await client.grpc(INFER, request)

        indices = [*range(12), 99, *range(12, 24)]
        replies = await asyncio.gather(*map(caller, indices))
        for index, reply in zip(indices, replies):
            if index == 99:
                assert reply.grpc_status == 13
                assert "indices" in reply.grpc_message
            else:
                assert outputs_of(reply.message)["value"].tolist() == [[index]]


async def test_an_output_that_json_cannot_hold_is_the_callers_choice(folder: Path) -> None:
    body = BODY.replace(b"0.5", b"3e38").replace(b"7.0", b"3e38")
    async with add_sub(folder) as (client, _):
        reply = await client.rest("POST", "/v2/models/m/infer", body)
        assert reply.status == 400
        assert "binary" in reply.error
        assert (await client.rest("POST", "/v2/models/m/infer", BODY)).status == 200
