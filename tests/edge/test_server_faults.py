"""Servers of a gateway that die, freeze, never answer and come back, under load."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from tests.edge.fake_server import FakeServer
from tests.edge.gateway_harness import Gateway, ServerProcess, mute_server, processes
from tests.edge.harness import Load, message, until
from tidegate.edge.load_reports import EndpointLoad
from tidegate.edge.pools import Server
from tidegate.edge.retry_floors import LEAST

NOTHING = EndpointLoad(0, 0, 0, 0)
FEW = LEAST - 16
"""Calls in flight, the others of ``Load`` beside them, all of which may be on the server that dies
and be tried elsewhere, though no report has told yet that they are so many."""


@pytest.fixture
async def gateway(run_dir: Path) -> AsyncIterator[Gateway]:
    async with Gateway(run_dir) as running:
        yield running


async def test_a_killed_server_fails_no_call(gateway: Gateway) -> None:
    async with processes("abc") as servers:
        await gateway.route(*(Server(each.address) for each in servers))
        async with Load(gateway, width=FEW) as load:
            for victim in servers:
                await victim.kill()
                await load.more(500)
                port = int(victim.address.rpartition(":")[2])
                back = await ServerProcess.start(victim.name, port)
                servers[servers.index(victim)] = back
                await until(lambda: answered_by(gateway, back.name))  # noqa: B023
        assert load.errors == []


async def answered_by(gateway: Gateway, name: str) -> bool:
    return bool((await gateway.call())["replica"] == name)


async def test_a_frozen_server_fails_no_call(gateway: Gateway) -> None:
    """Its calls are reset when it answers no ping, and go elsewhere; then it gets none."""
    async with processes("abc") as servers:
        await gateway.route(*(Server(each.address) for each in servers))
        async with Load(gateway, width=FEW) as load:
            servers[0].freeze()
            await until(lambda: unhealthy(gateway, servers[0].address))
            await load.more(500)
            servers[0].thaw()
            await until(lambda: answered_by(gateway, "a"))
        assert load.errors == []


async def unhealthy(gateway: Gateway, address: str) -> bool:
    hosts = (await gateway.envoy.admin.clusters())["pool/m"]
    for host in hosts:
        place = host["address"]["socket_address"]
        if f"{place['address']}:{place['port_value']}" == address:
            return bool(host["health_status"].get("failed_active_health_check"))
    return False


async def test_many_calls_in_flight_on_a_server_that_dies_are_all_tried_elsewhere(
    gateway: Gateway,
) -> None:
    """Far more than the share of calls in flight that may be retries."""
    async with processes("abc") as servers:
        await gateway.route(*(Server(each.address) for each in servers))
        await gateway.warm()
        # The most in flight on one server, of the reports of the last ten seconds, is what counts.
        calls = [asyncio.create_task(gateway.call(x_do="hold")) for _ in range(600)]

        def under_way() -> bool:
            return all(gateway.total().get(s.address, NOTHING).in_flight > 100 for s in servers)

        await gateway.reported(under_way)
        await servers[0].kill()
        for each in servers[1:]:
            each.release()
        answers = await asyncio.gather(*calls)
        assert {each["replica"] for each in answers} == {"b", "c"}


async def test_a_server_gets_calls_when_its_model_is_ready_and_not_before(
    gateway: Gateway,
) -> None:
    new = await gateway.server("new")
    new.ready = False
    await gateway.serve_from("a", "new")
    for _ in range(3):
        new.check_event.clear()
        await new.check_event.wait()
        assert set(await gateway.shares(20)) == {"a"}
    new.ready = True
    await until(lambda: answered_by(gateway, "new"))
    new.ready = False
    await until(lambda: unhealthy(gateway, new.address))
    assert set(await gateway.shares(20)) == {"a"}


async def test_what_accepts_and_never_answers_gets_no_calls(gateway: Gateway) -> None:
    async with mute_server() as mute:
        a = await gateway.server("a")
        await gateway.route(Server(a.address), Server(mute))
        assert await gateway.shares(50) == {"a": 50}
        await gateway.route(Server(mute), model="n")
        code, words = await gateway.failure(message("n"))
        assert code == "UNAVAILABLE"
        assert "model n" in words


async def test_servers_of_a_lower_priority_help_out(gateway: Gateway) -> None:
    a, b = await gateway.server("a"), await gateway.server("b")
    await gateway.route(Server(a.address, priority=3), Server(b.address, priority=7))
    await until(lambda: answered_by_one(gateway, "a"))
    a.ready = False
    await until(lambda: answered_by_one(gateway, "b"))
    a.ready = True
    await until(lambda: answered_by_one(gateway, "a"))


async def answered_by_one(gateway: Gateway, name: str) -> bool:
    return set(await gateway.shares(20)) == {name}


async def test_a_server_that_is_taken_out_ends_what_it_has(gateway: Gateway) -> None:
    await gateway.serve_from("a", "b")
    running = [asyncio.ensure_future(gateway.call(x_do="hold")) for _ in range(20)]
    a, b = (gateway.servers[name] for name in "ab")
    await until(lambda: have_begun(a, b, 20))
    await gateway.serve_from("b")
    begun = a.requests
    assert await gateway.shares(50) == {"b": 50}
    for server in (a, b):
        server.release.set()
    assert {(await each)["replica"] for each in running} == {"a", "b"}
    assert a.requests == begun


async def have_begun(a: FakeServer, b: FakeServer, count: int) -> bool:
    return a.requests + b.requests == count


async def test_no_server_gets_more_at_a_time_than_it_may_have(run_dir: Path) -> None:
    async with Gateway(run_dir, threads=2) as gateway:
        await gateway.serve_from("a", "b", max_in_flight=4)
        most = {"a": 0, "b": 0}

        async def watch() -> None:
            while True:
                for name, server in gateway.servers.items():
                    most[name] = max(most[name], len(server.tasks))
                await asyncio.sleep(0.01)

        watching = asyncio.create_task(watch())

        async def full() -> bool:
            return min(most.values()) >= 2 and any(each.done() for each in calls)

        async with Load(gateway, width=1):
            calls = [asyncio.ensure_future(gateway.call(x_do="hold")) for _ in range(30)]
            await until(full)
            for server in gateway.servers.values():
                server.release.set()
            results = await asyncio.gather(*calls, return_exceptions=True)
        watching.cancel()
        assert all(2 <= count <= 4 for count in most.values())
        refused = [each for each in results if isinstance(each, grpc.aio.AioRpcError)]
        assert 0 < len(refused) < 26
        assert {each.code() for each in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        words = "the endpoints of model m have all the calls that they may have; try again"
        assert {each.details() for each in refused} == {words}


async def test_a_thousand_servers(gateway: Gateway) -> None:
    fake = await gateway.server("a", host="0.0.0.0")
    port = fake.address.rpartition(":")[2]
    servers = [Server(f"127.1.{n // 250}.{n % 250 + 1}:{port}") for n in range(1000)]
    await gateway.route(*servers)
    await until(gateway.answers)
    await gateway.warm()
    for _ in range(300):
        await gateway.call()
    await gateway.reported(lambda: len(gateway.total()) > 100)
    gateway.reports.clear()
    await gateway.route(*(replace(each, weight=7) for each in servers[:500]))
    assert (await gateway.call())["replica"] == "a"
