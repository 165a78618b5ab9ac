"""A real gateway whose endpoints are found: what comes gets calls, what goes gets none."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.edge.fake_server import FakeServer
from tests.gateway.dns_server import DnsServer
from tests.gateway.harness import ServedGateway, Traffic, endpoints_of
from tests.gateway.kubernetes_server import ApiServer, slice_of
from tests.node.harness import START


def found_by(**place: object) -> dict[str, Any]:
    return {"models": {"m": {"endpoints": [place]}}}


def port_of(server: FakeServer) -> int:
    return int(server.address.rpartition(":")[2])


async def names(gateway: ServedGateway, *expected: str) -> None:
    """Wait until the model has these endpoints."""
    async with asyncio.timeout(START):
        while set(await gateway.endpoints()) != set(expected):  # noqa: ASYNC110 - over HTTP
            await asyncio.sleep(0.02)


async def problem(gateway: ServedGateway, words: str | None) -> None:
    """Wait until the only source has this problem, or none."""

    def holds(status: dict[str, Any]) -> bool:
        (source,) = status["sources"]
        told = source["problem"]
        return told is None if words is None else words in (told or "")

    await gateway.eventually(holds)


async def test_pods_come_and_go_without_a_failed_call() -> None:
    async with FakeServer("a") as a, FakeServer("b") as b, ApiServer() as cluster:
        cluster.put(slice_of("a", ["127.0.0.1"], ports=[("grpc", port_of(a))]))
        place = {"service": "m", "port": "grpc", "api_server": cluster.url}
        async with ServedGateway(found_by(kubernetes=place)) as gateway:
            await gateway.healthy()
            async with Traffic(gateway) as traffic:
                cluster.put(slice_of("b", ["127.0.0.1"], ports=[("grpc", port_of(b))]))
                await traffic.more(100, of="b")
                cluster.delete("a")
                await names(gateway, b.address)
                await traffic.more(100, of="b")
                asked = a.requests
                await traffic.more(100, of="b")
                assert a.requests == asked
                # Without the cluster, things stay as they are.
                await cluster.stop()
                await problem(gateway, "the last known endpoints stay")
                await traffic.more(100, of="b")
                cluster.delete("b")
                cluster.put(slice_of("a", ["127.0.0.1"], ports=[("grpc", port_of(a))]))
                await cluster.start()
                await traffic.more(100, of="a")
                await problem(gateway, None)
                await names(gateway, a.address)
            assert traffic.errors == []


async def test_a_service_of_dns_moves_without_a_failed_call() -> None:
    async with FakeServer("a") as a, FakeServer("b") as b, DnsServer() as dns:
        dns.set("here.test", "A", "127.0.0.1", ttl=1)
        dns.set("m.test", "SRV", f"5 1 {port_of(a)} here.test.", ttl=1)
        document = found_by(srv="m.test", nameservers=[dns.address])
        async with ServedGateway(document) as gateway:
            await gateway.healthy()
            async with Traffic(gateway) as traffic:
                both = [f"5 1 {port_of(a)} here.test.", f"5 3 {port_of(b)} here.test."]
                dns.set("m.test", "SRV", *both, ttl=1)
                await traffic.more(100, of="b")
                found = await gateway.endpoints()
                assert found[b.address]["weight"] == 3
                dns.set("m.test", "SRV", both[1], ttl=1)
                await names(gateway, b.address)
                dns.drop("m.test")
                await problem(gateway, "NXDOMAIN")
                await traffic.more(100, of="b")
                assert set(await gateway.endpoints()) == {b.address}
            assert traffic.errors == []


@pytest.mark.skipif(sys.platform == "darwin", reason="has no loopback address but the first")
async def test_a_machine_that_comes_back_under_another_address() -> None:
    async with FakeServer("a") as a, DnsServer() as dns, contextlib.AsyncExitStack() as stack:
        port = port_of(a)
        b = FakeServer("b", port, "127.0.0.2")
        await stack.enter_async_context(b)
        dns.set("gpu.test", "A", "127.0.0.1", "127.0.0.2", ttl=1)
        document = found_by(address=f"gpu.test:{port}", nameservers=[dns.address])
        async with ServedGateway(document) as gateway:
            await gateway.healthy()
            async with Traffic(gateway) as traffic:
                await traffic.more(50, of="b")
                await stack.aclose()
                await gateway.eventually(
                    lambda s: endpoints_of(s, "m")[b.address]["health"] != "healthy"
                )
                async with FakeServer("b", port, "127.0.0.3") as moved:
                    dns.set("gpu.test", "A", "127.0.0.1", "127.0.0.3", ttl=1)
                    await traffic.more(50, of="b")
                    await names(gateway, a.address, moved.address)
                    await traffic.more(50, of="b")
            assert traffic.errors == []


async def test_a_controller_that_begins_while_its_sources_are_away(tmp_path: Path) -> None:
    """It goes on with what the one before it knew."""
    path = tmp_path / "endpoints"
    async with FakeServer("a") as a:
        path.write_text(a.address)
        async with ServedGateway(found_by(file=str(path))) as gateway:
            await gateway.healthy()
            async with Traffic(gateway) as traffic:
                path.unlink()
                await problem(gateway, "there is no such file")
                gateway.kill_controller()
                assert gateway.process is not None
                await gateway.process.wait()
                await gateway.serve()
                await problem(gateway, "there is no such file")
                assert set(await gateway.endpoints()) == {a.address}
                await traffic.more(100)
            assert traffic.errors == []
