"""A gateway asks another server, once, and what is left of a deadline travels along."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from tests.edge.gateway import GatewayEdge, running_gateway
from tests.edge.harness import INFER, call, channel, message
from tests.ports import free_port
from tidegate.edge.pools import Server
from tidegate.protocols import seldon

REST = "/v2/models/m/infer"


@pytest.fixture
async def gateway(run_dir: Path) -> AsyncIterator[GatewayEdge]:
    async with running_gateway(run_dir) as running:
        yield running


def milliseconds(timeout: str) -> float:
    """What a header ``grpc-timeout`` says."""
    number, unit = re.fullmatch(r"([0-9]+)([HMSmun])", timeout).groups()  # type: ignore[union-attr]
    scale = {"H": 3_600_000, "M": 60_000, "S": 1000, "m": 1, "u": 1e-3, "n": 1e-6}
    return float(number) * scale[unit]


async def total(gateway: GatewayEdge) -> int:
    return sum(replica.requests for replica in gateway.replicas.values())


async def test_what_breaks_off_is_asked_of_another_server_once(gateway: GatewayEdge) -> None:
    servers = [await gateway.server(name) for name in "abc"]
    await gateway.model("m", *servers)
    await gateway.publish()
    for name in "abc":
        for _ in range(12):  # whichever is asked first
            assert (await gateway.call(x_do=f"only {name};close"))["replica"] != name
            answer = await gateway.rest("POST", REST, b"{}", x_do=f"only {name};close")
            assert answer.json["replica"] != name
    before = await total(gateway)
    code, words = await gateway.failure(x_do="close")
    assert (code, words) == (
        "UNAVAILABLE", "model m broke off before it answered; try again",
    )  # fmt: skip
    assert await total(gateway) == before + 2
    assert max(replica.requests for replica in gateway.replicas.values()) < before


async def test_without_retries_nothing_is_asked_again(gateway: GatewayEdge) -> None:
    await gateway.model("m", await gateway.server("a"), await gateway.server("b"), retries=0)
    await gateway.publish()
    assert (await gateway.failure(x_do="close"))[0] == "UNAVAILABLE"
    assert await total(gateway) == 1


async def test_a_lone_server_is_not_asked_again_for_what_it_broke_off(
    gateway: GatewayEdge,
) -> None:
    await gateway.model("m", await gateway.server("a"))
    await gateway.publish()
    assert (await gateway.failure(x_do="close"))[0] == "UNAVAILABLE"
    assert await total(gateway) == 1
    assert (await gateway.call())["replica"] == "a"


async def test_a_lone_canary_takes_no_retries_from_the_others(gateway: GatewayEdge) -> None:
    """Most canaries are one server. A call of theirs is not sent to it again, as usual."""
    servers = [await gateway.server(name) for name in "ab"]
    canary = await gateway.pool("m/canary", "c")
    for retries in (1, 0):
        await gateway.model("m", *servers, canary=(50, canary), retries=retries)
        await gateway.publish()
        asked: Counter[int] = Counter()
        for _ in range(40):
            counts = {name: each.requests for name, each in gateway.replicas.items()}
            assert (await gateway.failure(x_do="close", x_envoy_retry_on="5xx"))[0] == (
                "UNAVAILABLE"
            )
            more = {n: e.requests - counts[n] for n, e in gateway.replicas.items()}
            tries = sum(more.values())
            asked[tries] += 1
            assert tries == 1 if retries == 0 or more["c"] else more == {"a": 1, "b": 1, "c": 0}
        assert len(asked) == 1 + retries
    assert "x-envoy-retry-on" not in (await gateway.call())["headers"]


async def test_an_overflow_pool_takes_what_the_only_first_server_broke_off(
    gateway: GatewayEdge,
) -> None:
    await gateway.model("m", await gateway.server("a"), await gateway.server("b", priority=1))
    await gateway.publish()
    for _ in range(8):
        assert (await gateway.call(x_do="only a;close"))["replica"] == "b"
    assert gateway.replicas["a"].requests == 8


async def test_a_server_that_cannot_be_reached_costs_no_call(gateway: GatewayEdge) -> None:
    absent = Server(f"127.0.0.1:{free_port()}", name="absent")
    await gateway.model("m", await gateway.server("a"), absent)
    await gateway.publish()
    for _ in range(12):
        assert (await gateway.call())["replica"] == "a"
        assert (await gateway.rest("POST", REST, b"{}")).json["replica"] == "a"


async def test_what_a_server_answers_is_not_asked_again(gateway: GatewayEdge) -> None:
    await gateway.model("m", await gateway.server("a"), await gateway.server("b"))
    await gateway.publish()
    for code in (4, 8, 13, 14):
        before = await total(gateway)
        await gateway.failure(x_do=f"grpc {code} own words")
        assert await total(gateway) == before + 1
    before = await total(gateway)
    assert (await gateway.rest("POST", REST, b"{}", x_do="http 503")).status == 503
    assert await total(gateway) == before + 1


async def test_half_an_answer_is_not_asked_again(gateway: GatewayEdge) -> None:
    await gateway.model("m", await gateway.server("a"), await gateway.server("b"))
    await gateway.publish()
    code, _ = await gateway.failure(x_do="half")
    assert code in {"UNAVAILABLE", "INTERNAL"}
    with pytest.raises(ConnectionError):
        await gateway.rest("POST", REST, b"{}", x_do="half")
    assert await total(gateway) == 2


async def test_a_server_that_does_not_answer_in_its_time_gives_way(gateway: GatewayEdge) -> None:
    servers = [await gateway.server(name) for name in "ab"]
    await gateway.model("m", *servers, per_try_timeout=1.0)
    await gateway.publish()
    async with asyncio.timeout(60):
        for name in "ab":
            asked = gateway.replicas[name].requests
            while gateway.replicas[name].requests == asked:  # until it was asked first
                answer = await gateway.call(x_do=f"only {name};hold")
                assert answer["replica"] != name
        asked = gateway.replicas["a"].requests
        while gateway.replicas["a"].requests == asked:
            answer = await gateway.rest("POST", REST, b"{}", x_do="only a;hold")
            assert answer.json["replica"] == "b"


async def test_when_no_try_is_in_time_the_call_ends(gateway: GatewayEdge) -> None:
    servers = [await gateway.server(name) for name in "abcd"]
    await gateway.model("m", *servers, per_try_timeout=0.2)
    await gateway.publish()
    async with asyncio.timeout(30):
        code, words = await gateway.failure(x_do="sleep 30")
        reply = await gateway.rest("POST", REST, b"{}", x_do="sleep 30")
    wanted = "no answer of model m in the time that its caller, or the gateway, gave"
    assert (code, words) == ("DEADLINE_EXCEEDED", wanted)
    assert (reply.status, reply.json["error"]) == (504, wanted)
    assert await total(gateway) == 4


async def test_each_try_is_told_what_is_left_of_the_deadline(gateway: GatewayEdge) -> None:
    servers = [await gateway.server(name) for name in "ab"]
    await gateway.model("m", *servers, per_try_timeout=20.0)
    await gateway.publish()
    seen = await gateway.call(timeout=60)
    assert milliseconds(seen["headers"]["grpc-timeout"]) == 20_000  # no try has more
    seen = await gateway.call(timeout=15)
    assert 5000 < milliseconds(seen["headers"]["grpc-timeout"]) <= 15_100

    await gateway.model("m", *servers)
    await gateway.publish()
    seen = await gateway.call(timeout=30)
    first = milliseconds(seen["headers"]["grpc-timeout"])
    assert 20_000 < first <= 30_100
    asked = gateway.replicas["a"].requests
    while gateway.replicas["a"].requests == asked:  # until it was asked first
        seen = await gateway.call(timeout=30, x_do="only a;sleep 0.5;close")
    assert seen["replica"] == "b"
    assert 15_000 < milliseconds(seen["headers"]["grpc-timeout"]) <= 29_600  # 0.5 s are gone
    assert "grpc-timeout" not in (await gateway.call(timeout=None))["headers"]


async def test_a_deadline_ends_a_retry_as_well(gateway: GatewayEdge) -> None:
    await gateway.model("m", await gateway.server("a"), await gateway.server("b"))
    await gateway.publish()
    frame = b"\0" + len(message()).to_bytes(4, "big") + message()
    answer = await gateway.rest(
        "POST", INFER, frame,
        content_type="application/grpc", grpc_timeout="700m", x_do="sleep 0.4;close",
    )  # fmt: skip
    assert answer.headers["grpc-status"] == "4"  # 14 after two whole tries, which take 0.8 s


async def test_the_timeout_of_a_model_is_the_longest_there_is(gateway: GatewayEdge) -> None:
    await gateway.model("m", await gateway.server("a"), timeout=0.4)
    await gateway.publish()
    words_wanted = "no answer of model m in the time that its caller, or the gateway, gave"
    async with asyncio.timeout(30):
        for timeout in (None, 60):
            code, words = await gateway.failure(timeout=timeout, x_do="sleep 30")
            assert (code, words) == ("DEADLINE_EXCEEDED", words_wanted)
        for headers in ({}, {"grpc_timeout": "60S"}, {"grpc_timeout": "100m"}):
            answer = await gateway.rest("POST", REST, b"{}", x_do="sleep 30", **headers)
            assert (answer.status, answer.json["error"]) == (504, words_wanted)
    await gateway.model("m", await gateway.server("a"), timeout=20.0)
    await gateway.publish()
    for timeout in (60, None):
        seen = await gateway.call(timeout=timeout)
        assert milliseconds(seen["headers"]["grpc-timeout"]) <= 20_000


async def test_a_call_as_long_as_its_caller_allows_is_not_cut(gateway: GatewayEdge) -> None:
    await gateway.model("m", await gateway.server("a"))
    await gateway.publish()
    raw = (await gateway.envoy.admin.get("/config_dump?resource=dynamic_route_configs")).decode()
    assert '"timeout": "0s"' in raw
    assert '"max_grpc_timeout": "0s"' in raw
    assert '"grpc_timeout_header_max": "0s"' in raw
    assert '"idle_timeout": "0s"' in raw


async def test_feedback_does_not_reach_two_servers(gateway: GatewayEdge) -> None:
    servers = [await gateway.server(name, "seldon") for name in "ab"]
    await gateway.model("m", *servers)
    await gateway.publish()
    for path in ("/seldon.protos.Model/SendFeedback", "/seldon.protos.Seldon/SendFeedback"):
        before = await total(gateway)
        code, _ = await gateway.failure(b"", method=path, seldon="m", x_do="close")
        assert code == "UNAVAILABLE"
        assert await total(gateway) == before + 1
    for path in ("/seldon/ns/m/api/v1.0/feedback", "/send-feedback"):
        before = await total(gateway)
        answer = await gateway.rest("POST", path, b"{}", seldon="m", x_do="close")
        assert answer.status == 503
        assert await total(gateway) == before + 1
    before = await total(gateway)
    await gateway.failure(b"", method=seldon.PREDICT, seldon="m", x_do="close")
    assert await total(gateway) == before + 2


async def test_a_caller_that_cancels_frees_the_server(gateway: GatewayEdge) -> None:
    await gateway.model("m", await gateway.server("a"))
    await gateway.publish()
    async with asyncio.timeout(30), channel(gateway.port) as other:
        pending = asyncio.create_task(call(other, message(), x_do="sleep 30"))
        await gateway.replicas["a"].request_event.wait()
        pending.cancel()
        await gateway.replicas["a"].cancelled_event.wait()
        with pytest.raises((asyncio.CancelledError, grpc.aio.AioRpcError)):
            await pending


async def test_routes_follow_when_a_server_is_left_alone(gateway: GatewayEdge) -> None:
    servers = [await gateway.server(name) for name in "ab"]
    for present, tries in ((servers, 2), (servers[:1], 1), (servers, 2)):
        await gateway.model("m", *present)
        await gateway.publish()
        before = await total(gateway)
        assert (await gateway.failure(x_do="close"))[0] == "UNAVAILABLE"
        assert await total(gateway) == before + tries
