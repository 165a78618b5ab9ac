"""A gateway's edge carries calls to servers on other machines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.edge.gateway_harness import Gateway, mute_server
from tests.edge.harness import Load, until
from tidegate.edge.pools import Server


@pytest.fixture
async def gateway(run_dir: Path) -> AsyncIterator[Gateway]:
    async with Gateway(run_dir) as running:
        yield running


async def test_calls_reach_servers_over_tcp(gateway: Gateway) -> None:
    await gateway.serve_from("a", "b", "c")
    assert set(await gateway.shares(60)) == {"a", "b", "c"}
    answer = await gateway.rest("POST", "/v2/models/m/infer", b"{}")
    assert answer.status == 200
    assert answer.json["replica"] in "abc"


async def test_a_server_may_have_an_ipv6_address(gateway: Gateway) -> None:
    fake = await gateway.server("six", host="[::1]")
    await gateway.route(Server(fake.address))
    await gateway.warm()
    await gateway.call()
    await gateway.reported(lambda: bool(gateway.total()))
    assert set(gateway.total()) == {fake.address}


async def test_weights_share_out_the_calls(gateway: Gateway) -> None:
    await gateway.serve_from("a=100", "b=300")
    assert 280 <= (await gateway.shares(400))["b"] <= 320
    await gateway.serve_from("a=300", "b=100")
    assert 280 <= (await gateway.shares(400))["a"] <= 320


async def test_weights_share_out_calls_that_overlap(gateway: Gateway) -> None:
    """Less far apart: whoever has more in flight gets less, until the controller sees to that."""
    await gateway.serve_from("a=100", "b=300")
    async with Load(gateway, width=32) as load:
        await load.more(2000)
    assert load.errors == []
    b, all_of_them = (
        gateway.servers["b"].requests,
        sum(server.requests for server in gateway.servers.values()),
    )
    assert 0.62 <= b / all_of_them <= 0.78


async def test_an_ejected_server_gets_nothing_and_ends_what_it_has(gateway: Gateway) -> None:
    await gateway.serve_from("a")
    running = asyncio.ensure_future(gateway.call(x_do="sleep 1"))
    await gateway.servers["a"].request_event.wait()
    a = Server(gateway.servers["a"].address, ejected=True)
    b = await gateway.server("b")
    await gateway.route(a, Server(b.address))
    await b.check_event.wait()
    await until(lambda: gateway.answers())
    assert set(await gateway.shares(50)) == {"b"}
    assert (await running)["replica"] == "a"
    await gateway.route(replace(a, ejected=False, weight=1), Server(b.address, weight=99))
    assert 1 <= (await gateway.shares(300))["a"] <= 6


async def test_a_last_resort_gets_calls_when_the_overflow_is_not_ready(gateway: Gateway) -> None:
    a, b = await gateway.server("a"), await gateway.server("b")
    first = Server(a.address, ejected=True, last_resort=True)
    await gateway.route(first, Server(b.address, priority=1))
    await until(lambda: gateway.answers())
    assert set(await gateway.shares(50)) == {"b"}
    b.ready = False
    await until(lambda: gateway.is_answered_by("a"))
    assert set(await gateway.shares(50)) == {"a"}
    b.ready = True
    await until(lambda: gateway.is_answered_by("b"))
    assert set(await gateway.shares(50)) == {"b"}


async def test_what_becomes_of_calls_is_reported(gateway: Gateway) -> None:
    await gateway.serve_from("a", retries=0)
    await gateway.warm()
    for _ in range(3):
        await gateway.call()
    await gateway.failure(x_do="grpc 3 bad")
    await gateway.failure(x_do="grpc 8 full")
    for code in (14, 4, 13):
        await gateway.failure(x_do=f"grpc {code} words")
    await gateway.failure(x_do="close")
    await gateway.rest("POST", "/v2/models/m/infer", b"{}", x_do="http 400")
    await gateway.rest("POST", "/v2/models/m/infer", b"{}", x_do="http 503")
    address = gateway.servers["a"].address
    await gateway.reported(
        lambda: gateway.total().get(address) is not None and gateway.total()[address].issued >= 11
    )
    load = gateway.total()[address]
    assert (load.succeeded, load.failed, load.in_flight) == (6, 5, 0)
    assert 0.1 < gateway.reports[-1].elapsed < 5


async def test_a_model_whose_servers_change_their_kind_is_served_all_the_while(
    gateway: Gateway,
) -> None:
    """Its calls go to clusters of other names, which are warm when their servers were asked."""
    async with mute_server() as mute:
        await gateway.serve_from("a", "b")
        a, b = (Server(gateway.servers[name].address) for name in "ab")
        async with Load(gateway, width=8) as load:
            for _ in range(2):
                foreign = replace(b, protocol="open-inference", rest=b.address)
                await gateway.route(a, foreign, Server(mute))
                await load.more(100)
                await gateway.route(a, replace(b, versions=frozenset({1})), Server(mute))
                await load.more(100)
        assert load.errors == []


async def test_servers_that_are_all_replaced_are_asked_until_the_new_ones_are_ready(
    gateway: Gateway,
) -> None:
    await gateway.serve_from("a", "b")
    async with Load(gateway, width=8) as load:
        for names in ("cd", "ef", "ab"):
            await gateway.serve_from(*names)
            await load.more(200)
            await until(lambda: answered_only_by(gateway, names))  # noqa: B023
    assert load.errors == []


async def answered_only_by(gateway: Gateway, names: str) -> bool:
    return set(await gateway.shares(20)) <= set(names)


async def test_what_only_routes_depend_on_builds_no_cluster_anew(gateway: Gateway) -> None:
    await gateway.serve_from("a", "b")
    a, b = (Server(gateway.servers[name].address) for name in "ab")
    await gateway.route(a, replace(b, weight=7), timeout=5.0, retries=0)
    await gateway.route(a, replace(b, weight=9))
    await gateway.call()
    stats = await gateway.envoy.admin.stats("^cluster_manager.cluster_modified$")
    assert stats["cluster_manager.cluster_modified"] == 0
    await gateway.route(a, b, max_in_flight=7)
    await gateway.call()
    stats = await gateway.envoy.admin.stats("^cluster_manager.cluster_modified$")
    assert stats["cluster_manager.cluster_modified"] == 1
