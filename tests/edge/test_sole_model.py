"""The only model of a node: calls over gRPC go to it unread."""

from __future__ import annotations

import asyncio
from urllib.parse import quote

import grpc
import pytest

from tests.edge.fake_replica import FakeReplica
from tests.edge.harness import INFER, Edge, Load, Rest, message, string, until
from tidegate.edge.topology import Endpoint, Topology
from tidegate.protocols import open_inference


@pytest.fixture
async def sole(edge: Edge) -> Edge:
    edge.sole = "m"
    await edge.serve(m="a", m__1="a")
    return edge


@pytest.mark.parametrize(
    "request_bytes",
    [message("m"), message("other", "7"), message("../m"), string(7, bytes(200_000)), b""],
    ids=["its name", "another", "no name at all", "large", "empty"],
)
async def test_every_message_is_the_models_to_judge(sole: Edge, request_bytes: bytes) -> None:
    for method in (INFER, open_inference.MODEL_READY, open_inference.MODEL_METADATA):
        answer = await sole.call(request_bytes, method=method, x_tidegate_cluster="model/lie")
        assert (answer["replica"], answer["size"]) == ("a", len(request_bytes) + 5)
        assert "x-tidegate-cluster" not in answer["headers"]


async def test_a_compressed_message_needs_no_header(sole: Edge) -> None:
    request = message("m") + string(7, bytes(1000))
    answer = await sole.call(request, compression=grpc.Compression.Gzip)
    assert answer["replica"] == "a"
    assert answer["headers"]["grpc-encoding"] == "gzip"


async def test_everything_else_goes_as_ever(sole: Edge) -> None:
    assert (await sole.rest("GET", "/v2/models/m")).json["replica"] == "a"
    assert (await sole.rest("GET", "/v2/models/other")).status == 404
    assert (await sole.rest("POST", INFER, b"{}")).status == 404  # not gRPC
    assert (await sole.failure(method="/a.B/C"))[0] == "UNIMPLEMENTED"
    stream = sole.channel.stream_stream("/a.B/C")(timeout=30)
    assert await stream.code() == grpc.StatusCode.UNIMPLEMENTED


async def begin(edge: Edge) -> tuple[Rest, bytes]:
    """Send the first bytes of a call; return the rest."""
    frame = b"\0" + len(message()).to_bytes(4, "big") + message()
    head = (
        f"POST {INFER} HTTP/1.1\r\nhost: x\r\ncontent-type: application/grpc\r\n"
        f"content-length: {len(frame)}\r\n\r\n"
    )
    client = Rest(edge.port)
    await client.send(head.encode() + frame[:7])
    return client, frame[7:]


async def test_the_replica_dies_while_the_message_is_coming(edge: Edge) -> None:
    edge.sole = "m"
    await edge.serve(m="a b")
    a, b = edge.replicas["a"], edge.replicas["b"]

    async def received_by_one() -> bool:
        return a.receiving or b.receiving

    for _ in range(10):
        client, rest = await begin(edge)
        await until(received_by_one)
        first, other = (a, b) if a.receiving else (b, a)
        first.break_off()

        async def received_by_the_other(other: FakeReplica = other) -> bool:
            return other.receiving

        await until(received_by_the_other)
        await client.send(rest)
        answer = await client.receive()
        assert (answer.status, b'"size": ' in answer.body) == (200, True)
        await client.close()
    assert a.requests + b.requests == 10


async def test_a_message_that_stalls_is_not_waited_for(edge: Edge) -> None:
    edge.sole = "m"
    await edge.replica("a", idle_timeout=0.2)
    await edge.serve(m="a")
    client, _ = await begin(edge)
    async with asyncio.timeout(30):
        answer = await client.receive()
    assert answer.headers["grpc-status"] == "4"
    assert "nothing%20was%20received" in quote(answer.headers["grpc-message"])
    assert (await edge.call())["replica"] == "a"
    assert edge.replicas["a"].requests == 1
    await client.close()


async def test_a_second_model_comes_and_goes_under_load(sole: Edge) -> None:
    async with Load(sole) as load:
        for _ in range(5):
            await sole.replica("b")
            sole.sole = None
            await sole.serve(m="a", other="b")
            assert (await sole.call(message("other")))["replica"] == "b"
            await load.more(100)
            sole.sole = "m"
            await sole.serve(m="a")
            assert (await sole.call(message("other")))["replica"] == "a"
            await load.more(100)
    assert load.errors == []


async def test_a_dead_replicas_calls_go_to_the_other(edge: Edge) -> None:
    edge.sole = "m"
    await edge.serve(m="a b")
    async with Load(edge) as load:
        edge.replicas["a"].kill()
        await load.more(500)

        async def back() -> bool:
            return edge.replicas["a"].requests > before

        await edge.replica("a")
        before = edge.replicas["a"].requests
        await until(back)
    assert load.errors == []


def test_the_sole_model_is_one_of_the_clusters() -> None:
    with pytest.raises(ValueError, match="'x' cannot be the sole model"):
        Topology({"m": (Endpoint("/tmp/x"),)}, True, b"{}", "x")
