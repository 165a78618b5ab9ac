"""Parts of a model's calls: canary, copies, and calls that carry a header."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.edge.gateway import GatewayEdge, running_gateway
from tests.edge.harness import call, channel, message
from tidegate.edge import server_clusters
from tidegate.edge.pools import HeaderPool

REST = "/v2/models/m/infer"


@pytest.fixture
async def gateway(run_dir: Path) -> AsyncIterator[GatewayEdge]:
    async with running_gateway(run_dir) as running:
        await running.controller()
        yield running


async def answered(gateway: GatewayEdge, count: int) -> Counter[str]:
    """Who answered so many calls."""

    async def some(share: int) -> list[str]:
        async with channel(gateway.port) as one:
            return [(await call(one, message()))["replica"] for _ in range(share)]

    found = await asyncio.gather(*(some(count // 20) for _ in range(20)))
    return Counter(name for names in found for name in names)


async def wait_for(condition: Callable[[], bool], gateway: GatewayEdge) -> None:
    """Wait for what copies cause; every request is an event."""
    async with asyncio.timeout(30):
        while not condition():
            for replica in gateway.replicas.values():
                replica.request_event.clear()
            waits = [
                asyncio.create_task(replica.request_event.wait())
                for replica in gateway.replicas.values()
            ]
            if condition():
                break
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for each in waits:
                each.cancel()


async def test_a_canary_gets_its_share(gateway: GatewayEdge) -> None:
    main = await gateway.server("a")
    await gateway.model("m", main, canary=(10, await gateway.pool("m/canary", "b")))
    await gateway.publish()
    found = await answered(gateway, 2000)
    assert 140 <= found["b"] <= 260
    assert found["a"] + found["b"] == 2000
    for percent, name in ((0, "a"), (100, "b")):
        await gateway.model("m", main, canary=(percent, await gateway.pool("m/canary", "b")))
        await gateway.publish()
        assert set(await answered(gateway, 60)) == {name}


async def test_who_asks_for_a_version_gets_no_share_of_another(gateway: GatewayEdge) -> None:
    await gateway.model(
        "m",
        await gateway.server("a", versions=[1], labels=["stable"]),
        canary=(50, await gateway.pool("m/canary", "b", versions=[2], labels=["new"])),
    )
    await gateway.publish()
    for version, name in (("1", "a"), ("2", "b"), ("3", "controller")):
        for _ in range(10):
            assert (await gateway.call(message("m", version)))["replica"] == name
    for label, name in (("stable", "a"), ("new", "b"), ("old", "controller")):
        path = f"/v1/models/m/labels/{label}:predict"
        assert (await gateway.rest("POST", path, b"{}")).json["replica"] == name


async def test_copies_arrive_and_their_answers_do_not(gateway: GatewayEdge) -> None:
    copies = await gateway.pool("m/mirror", "copy")
    await gateway.model("m", await gateway.server("a"), mirror=(100, copies))
    await gateway.publish()
    assert (await gateway.call())["replica"] == "a"
    assert (await gateway.rest("POST", REST, b"{}")).json["replica"] == "a"
    await wait_for(lambda: gateway.replicas["copy"].requests == 2, gateway)
    for trouble in ("close", "half", "grpc 13 words", "sleep 30", "big 1000000"):
        answer = await gateway.call(x_do=f"only copy;{trouble}")
        assert answer["replica"] == "a", trouble
    gateway.replicas["copy"].kill()
    for _ in range(8):
        assert (await gateway.call())["replica"] == "a"
    assert gateway.replicas["a"].requests == 15


async def test_a_copy_that_is_never_answered_is_given_up(
    gateway: GatewayEdge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_clusters, "_LONGEST_COPY", 0.3)
    copies = await gateway.pool("m/mirror", "copy")
    await gateway.model("m", await gateway.server("a"), mirror=(100, copies))
    await gateway.publish()
    await gateway.call(timeout=None, x_do="only copy;sleep 30")
    async with asyncio.timeout(30):
        await gateway.replicas["copy"].cancelled_event.wait()


async def test_a_share_of_the_calls_is_copied(gateway: GatewayEdge) -> None:
    copies = await gateway.pool("m/mirror", "copy")
    canary = await gateway.pool("m/canary", "b")
    await gateway.model("m", await gateway.server("a"), canary=(10, canary), mirror=(25, copies))
    await gateway.publish()
    found = await answered(gateway, 2000)
    assert set(found) == {"a", "b"}
    await wait_for(lambda: gateway.replicas["copy"].requests >= 400, gateway)
    assert 400 <= gateway.replicas["copy"].requests <= 600


async def test_calls_with_a_header_go_elsewhere(gateway: GatewayEdge) -> None:
    pools = [await gateway.pool(f"m/header-{name}", name) for name in "bc"]
    old = await gateway.pool("m/header-d", "d", versions=[1])
    empty = await gateway.pool("m/header-e")
    await gateway.model(
        "m",
        await gateway.server("a"),
        canary=(100, await gateway.pool("m/canary", "canary")),
        headers=(
            HeaderPool("x-team", "blue", pools[0]),
            HeaderPool("x-team", "old", old),
            HeaderPool("x-team", "none", empty),
            HeaderPool("x-try", None, pools[1]),
        ),
    )
    await gateway.publish()
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({}, "canary"),
        ({"x_team": "blue"}, "b"),
        ({"x_team": "green"}, "canary"),
        ({"x_try": "anything"}, "c"),
        ({"x_team": "blue", "x_try": "1"}, "b"),
        ({"x_team": "old"}, "d"),
    )
    for headers, name in cases:
        assert (await gateway.call(**headers))["replica"] == name
        assert (await gateway.rest("POST", REST, b"{}", **headers)).json["replica"] == name
    assert (await gateway.call(message("m", "1"), x_team="old"))["replica"] == "d"
    code, words = await gateway.failure(message("m", "2"), x_team="old")
    assert (code, words) == ("NOT_FOUND", "model/m:2 is not served here")
    assert (await gateway.failure(x_team="none"))[0] == "UNAVAILABLE"
    assert (await gateway.call(message("m", "2"), x_team="blue"))["replica"] == "b"
