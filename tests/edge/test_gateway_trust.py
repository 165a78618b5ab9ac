"""Keys and limits of a gateway: however a call names a model, and whichever way it goes."""

from __future__ import annotations

import asyncio
import struct
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.edge.gateway import GatewayEdge, running_gateway
from tests.edge.harness import MIB, Load, Rest, message, string, until
from tests.edge.test_gateway_sizes import BEGUN
from tests.edge.test_public_port import ADMIN
from tidegate.edge.trust import ApiKey, ApiKeys, RateLimit, RateLimits
from tidegate.protocols import dl_inference

A, B = "a" * 32, "b" * 32
KEYS = ApiKeys((ApiKey("team-a", A), ApiKey("team-b", B)), "x-key")
NEVER = 1 / 600
"""Calls a second: none comes back during a test."""


@pytest.fixture
async def gateway(run_dir: Path) -> AsyncIterator[GatewayEdge]:
    limits = RateLimits(RateLimit(NEVER, 8), per_model=RateLimit(NEVER, 5))
    async with running_gateway(run_dir, api_keys=KEYS, limits=limits) as running:
        await running.controller()
        yield running


async def codes(gateway: GatewayEdge, count: int, request: bytes, **options: Any) -> Counter[str]:
    found: Counter[str] = Counter()
    for _ in range(count):
        try:
            await gateway.call(request, **options)
            found["OK"] += 1
        except grpc.aio.AioRpcError as error:
            found[error.code().name] += 1
    return found


async def test_a_models_calls_share_a_bucket_whichever_way_they_go(gateway: GatewayEdge) -> None:
    new = await gateway.pool("m/new", "new")
    copies = await gateway.pool("m/copies", "copies")
    await gateway.model("m", await gateway.server("a"), canary=(50.0, new), mirror=(100.0, copies))
    await gateway.model("n", await gateway.server("b"))
    gateway.tasks = {"7": "m"}
    await gateway.publish()
    ways = (
        gateway.call(message("m"), x_key=A),
        gateway.call(message("m", "2"), x_key=A),
        gateway.rest("POST", "/v2/models/m/infer", b"{}", x_key=A),
        gateway.rest("POST", "/v1/models/m:predict", b"{}", authorization=f"Bearer {A}"),
        gateway.call(string(1, string(1, "x-7")), method=dl_inference.PREDICT, x_key=B),
    )
    for way in ways:
        await way
    assert await codes(gateway, 3, message("m"), x_key=B) == {"RESOURCE_EXHAUSTED": 3}
    # What a model's limit refuses has taken a token of its key: 4 of its 8 are left.
    assert await codes(gateway, 6, message("n"), x_key=B) == {"OK": 4, "RESOURCE_EXHAUSTED": 2}
    words = (await gateway.failure(message("n"), x_key=B))[1]
    assert words.startswith("too many requests: the limit of this key")


async def test_keys_count_where_there_is_no_room_to_read_a_message_too(run_dir: Path) -> None:
    limits = RateLimits(RateLimit(NEVER, 4))
    async with running_gateway(
        run_dir, api_keys=KEYS, limits=limits, heap_size=128 * MIB
    ) as gateway:
        for name in "mn":
            await gateway.model(name, await gateway.server("a"))
        await gateway.publish()
        sender = Rest(gateway.port)
        await sender.send(BEGUN.replace(b"host: x", f"host: x\r\nx-key: {A}".encode()))

        async def reading() -> bool:
            stats = await gateway.envoy.admin.stats("http.clients.downstream_rq_active")
            return stats["http.clients.downstream_rq_active"] == 1

        await until(reading)
        for _ in range(4):
            answer = await gateway.call(message("m"), x_key=B, x_tidegate_aside_key="team-a")
            assert answer["headers"]["x-tidegate-key"] == "team-b"
        stats = await gateway.envoy.admin.stats("http.aside.downstream_rq_total")
        assert stats["http.aside.downstream_rq_total"] == 4
        for key, code in ((B, "RESOURCE_EXHAUSTED"), ("x" * 32, "UNAUTHENTICATED")):
            assert (await gateway.failure(message("m"), x_key=key))[0] == code
        await sender.close()


async def test_no_server_gets_a_key(gateway: GatewayEdge) -> None:
    await gateway.model(
        "m",
        await gateway.server("a"),
        mirror=(100.0, await gateway.pool("m/copies", "copies")),
    )
    await gateway.publish()
    answer = await gateway.call(message("m"), x_key=A, authorization=f"Bearer {B}")
    assert answer["headers"]["x-tidegate-key"] == "team-a"
    assert not {"x-key", "authorization"} & answer["headers"].keys()
    code, words = await gateway.failure(message("m"))
    assert (code, "x-key" in words) == ("UNAUTHENTICATED", True)
    for path in ("/v2/health/live", "/v2/health/ready"):
        assert (await gateway.rest("GET", path)).status == 200
    # Where a model is served is told to callers alone.
    assert (await gateway.rest("GET", "/v2/models/m/endpoints")).status == 401


async def test_nothing_of_the_admin_port_answers(gateway: GatewayEdge) -> None:
    gateway.change(api_keys=None)
    await gateway.model("m", await gateway.server("a"))
    await gateway.publish()
    for path in ADMIN:
        for method in ("GET", "POST", "PUT", "DELETE"):
            assert (await gateway.rest(method, path)).status == 404, path
    assert gateway.replicas["controller"].requests == 0


async def test_settings_of_trust_change_while_calls_run(run_dir: Path) -> None:
    """What changes the listener leads clients to new connections, and fails no call."""
    async with running_gateway(run_dir) as gateway:
        await gateway.model("m", await gateway.server("a"))
        await gateway.publish()
        plenty = RateLimit(1e6, 10**6)
        steps: list[dict[str, Any]] = [
            {"limits": RateLimits(per_model=plenty)},
            {"origins": ("https://app.example",)},
            {"api_keys": KEYS},
            {"limits": RateLimits(plenty, per_model=plenty)},
            {"api_keys": ApiKeys(KEYS.keys[:1], "x-key")},
            {"api_keys": None, "limits": RateLimits()},
        ]
        async with Load(gateway, width=8, headers={"x_key": A}) as load:
            for step in steps:
                gateway.change(**step)
                await gateway.publish()
                await load.more(200)
        assert load.errors == []


async def test_how_many_calls_a_connection_carries(gateway: GatewayEdge) -> None:
    """A client that only begins calls takes memory for each."""
    await gateway.model("m", await gateway.server("a"))
    await gateway.publish()
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\4" + bytes(5))
    head = await reader.readexactly(9)
    assert head[3] == 4, "SETTINGS (RFC 9113, section 6.5)"
    settings = await reader.readexactly(int.from_bytes(head[:3]))
    assert dict(struct.iter_unpack(">HI", settings))[3] == 2048
    writer.close()
