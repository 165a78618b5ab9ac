"""What a client reads when there is no replica's answer: every code is the right one."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import unquote

import grpc
import pytest

from tests.edge.harness import INFER, Edge, Rest, call, channel, message
from tidegate.edge.local_replies import local_reply_config
from tidegate.edge.settings import EdgeSettings
from tidegate.protocols.statuses import GrpcCode

REST = "/v2/models/m/infer"


@pytest.fixture(autouse=True, params=["read", "unread"])
def routing(request: pytest.FixtureRequest) -> None:
    """Every reply is the same where the model's calls go unread."""
    if "edge" in request.fixturenames and request.param == "unread":
        request.getfixturevalue("edge").sole = "m"


async def both(edge: Edge, **metadata: Any) -> tuple[str, str, int, str]:
    """The same failure over gRPC and REST: code, words, status, words."""
    timeout = 0.3 if "grpc_timeout" in metadata else 20
    rest_headers = dict(metadata)
    metadata.pop("grpc_timeout", None)
    code, words = await edge.failure(timeout=timeout, **metadata)
    answer = await edge.rest("POST", REST, b"{}", **rest_headers)
    assert answer.headers["content-type"] == "application/json"
    assert "grpc-status" not in answer.headers
    return code, words, answer.status, answer.json["error"]


async def test_unknown_model(edge: Edge) -> None:
    await edge.serve(other="a")
    words = "model/m is not served here"
    assert await both(edge) == ("NOT_FOUND", words, 404, words)
    code, words = await edge.failure(message("m", "4"))
    assert (code, words) == ("NOT_FOUND", "model/m:4 is not served here")


async def test_all_replicas_down(edge: Edge) -> None:
    await edge.serve(m="a b")
    for replica in edge.replicas.values():
        replica.kill()
    code, words, status, rest_words = await both(edge)
    assert (code, status) == ("UNAVAILABLE", 503)
    assert "model/m" in words
    assert "model/m" in rest_words


async def test_a_replica_that_breaks_off_before_its_answer(edge: Edge) -> None:
    await edge.serve(m="a b")
    code, words, status, rest_words = await both(edge, x_do="close")
    assert (code, status) == ("UNAVAILABLE", 503)
    assert words == rest_words == "model/m broke off before it answered; try again"
    assert sum(r.requests for r in edge.replicas.values()) == 4  # each was tried twice


async def test_a_replica_that_breaks_off_within_its_answer(edge: Edge) -> None:
    await edge.serve(m="a b")
    code, _ = await edge.failure(x_do="half")
    assert code in {"UNAVAILABLE", "INTERNAL"}
    with pytest.raises(ConnectionError):
        await edge.rest("POST", REST, b"{}", x_do="half")
    assert sum(r.requests for r in edge.replicas.values()) == 2  # never tried twice


async def test_no_answer_in_time(edge: Edge) -> None:
    await edge.serve(m="a")
    async with asyncio.timeout(30):
        code, _, status, words = await both(edge, x_do="sleep 60", grpc_timeout="300m")
    assert (code, status) == ("DEADLINE_EXCEEDED", 504)
    assert words == ("no answer of model/m in the time that the caller gave (grpc-timeout: 300m)")
    async with asyncio.timeout(30):  # the replica learns of both
        while edge.replicas["a"].cancelled < 2:
            edge.replicas["a"].cancelled_event.clear()
            await edge.replicas["a"].cancelled_event.wait()


async def test_the_deadline_is_envoys_to_keep(edge: Edge) -> None:
    """A client that does not look at the clock itself gets DEADLINE_EXCEEDED too."""
    await edge.serve(m="a")
    frame = b"\0" + len(message()).to_bytes(4, "big") + message()
    answer = await edge.rest(
        "POST", INFER, frame,
        content_type="application/grpc", grpc_timeout="200m", x_do="sleep 30",
    )  # fmt: skip
    assert answer.headers["grpc-status"] == "4"
    assert "model/m" in unquote(answer.headers["grpc-message"])
    assert answer.headers["content-type"] == "application/grpc"


async def test_an_inference_longer_than_fifteen_seconds_is_not_cut(edge: Edge) -> None:
    """Envoy's default route timeout is 15 s; the configuration says none."""
    await edge.serve(m="a")
    raw = (await edge.envoy.admin.get("/config_dump?resource=dynamic_route_configs")).decode()
    assert '"timeout": "0s"' in raw
    assert '"grpc_timeout_header_max": "0s"' in raw
    assert '"idle_timeout": "0s"' in raw


async def test_a_client_that_cancels_frees_the_replica(edge: Edge) -> None:
    await edge.serve(m="a")
    pending = asyncio.create_task(edge.call(x_do="sleep 30"))
    async with asyncio.timeout(30):
        await edge.replicas["a"].request_event.wait()
        pending.cancel()
        await edge.replicas["a"].cancelled_event.wait()
        client = Rest(edge.port)
        edge.replicas["a"].request_event.clear()
        edge.replicas["a"].cancelled_event.clear()
        await client.send(b"GET /v2/models/m HTTP/1.1\r\nhost: x\r\nx-do: sleep 30\r\n\r\n")
        await edge.replicas["a"].request_event.wait()
        await client.close()
        await edge.replicas["a"].cancelled_event.wait()


@pytest.mark.parametrize("code", [1, 2, 3, 5, 7, 8, 9, 12, 13, 14, 16])
async def test_a_replicas_own_error_passes_untouched(edge: Edge, code: int) -> None:
    await edge.serve(m="a")
    got, words = await edge.failure(x_do=f"grpc {code} wrong shape %C3%A9 %25")
    assert (got, words) == (GrpcCode(code).name, "wrong shape é %")
    assert edge.replicas["a"].requests == 1


@pytest.mark.parametrize("status", [400, 404, 413, 422, 429, 499, 500, 501, 503, 504])
async def test_a_replicas_own_status_passes_untouched(edge: Edge, status: int) -> None:
    await edge.serve(m="a")
    answer = await edge.rest("POST", REST, b"{}", x_do=f"http {status}")
    assert (answer.status, answer.json) == (status, {"error": "own words"})
    assert edge.replicas["a"].requests == 1


async def test_what_a_message_quotes_cannot_break_the_message(edge: Edge) -> None:
    await edge.serve(m="a")
    answer = await edge.rest("GET", '/"x"\\%0d%0a{}')
    assert answer.status in {400, 404}
    assert isinstance(answer.json["error"], str)
    code, words = await edge.failure(b"", method="/a%0d%0a.B/C")
    assert code == "UNIMPLEMENTED"
    assert "/a%0d%0a.B/C" in words


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /v2 HTTP/1.1\r\n\r\n", 400),
        (b"GET /v2%2fmodels HTTP/1.1\r\nhost: x\r\n\r\n", 400),
        (b"GET /v2 HTTP/1.1\r\nhost: x\r\nx: " + b"y" * 70_000 + b"\r\n\r\n", 431),
    ],
    ids=["no host", "escaped slash", "large headers"],
)
async def test_bad_http_is_answered(edge: Edge, request_bytes: bytes, status: int) -> None:
    await edge.serve(m="a")
    client = Rest(edge.port)
    await client.send(request_bytes)
    answer = await client.receive()
    assert answer.status == status
    assert "head" in answer.json["error"]
    await client.close()


async def test_large_headers_over_grpc_end_the_connection(edge: Edge) -> None:
    """Envoy closes a connection whose headers pass all bounds; others do not notice."""
    await edge.serve(m="a")
    async with channel(edge.port) as other:
        await call(other, message())
        code, _ = await edge.failure(x_big="y" * 70_000)
        assert code == "UNAVAILABLE"
        await call(other, message())


async def test_bidirectional_error_codes_over_one_connection(edge: Edge) -> None:
    """Failures do not disturb their neighbours on the connection."""
    await edge.serve(m="a")

    async def one(index: int) -> str:
        method = INFER if index % 2 else "/no.Such/Method"
        try:
            await call(edge.channel, message(), method=method)
        except grpc.aio.AioRpcError as error:
            return str(error.code().name)
        return "OK"

    got = await asyncio.gather(*(one(index) for index in range(40)))
    assert got == ["UNIMPLEMENTED", "OK"] * 20


def test_no_reply_of_envoys_is_unknown_or_ok() -> None:
    settings = EdgeSettings("127.0.0.1", 8000, "/c")
    for mapper in local_reply_config(settings, ()).mappers:
        for option in mapper.headers_to_add:
            if option.header.key == "www-authenticate":
                continue
            assert int(option.header.value) not in {GrpcCode.OK, GrpcCode.UNKNOWN}
