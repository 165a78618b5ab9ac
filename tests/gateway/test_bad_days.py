"""What can go wrong with the servers of a gateway: each gets a clear status, and nothing hangs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import yaml

from tests.edge.fake_server import FakeServer
from tests.edge.gateway_harness import ServerProcess, processes
from tests.edge.harness import message
from tests.gateway.harness import ServedGateway, Traffic, endpoints_of
from tests.ports import free_port

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def serving(*endpoints: Any, **more: Any) -> dict[str, Any]:
    return {"models": {"m": {"endpoints": list(endpoints), **more}}}


@contextlib.asynccontextmanager
async def listening(handler: Handler) -> AsyncIterator[str]:
    """A server that does with each connection what ``handler`` does; yields its address."""
    server = await asyncio.start_server(handler, "127.0.0.1")
    async with server:
        host, port = server.sockets[0].getsockname()
        yield f"{host}:{port}"


async def never_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while await reader.read(2**16):
        pass
    writer.close()


async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while await reader.read(2**16):
            writer.write(b"\x07garbage, and no HTTP\r\n" * 20)
            await writer.drain()
    writer.close()


async def plain_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """HTTP/1.1 and nothing else, as a web server on the wrong port."""
    with contextlib.suppress(OSError):
        while await reader.read(2**16):
            writer.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
            await writer.drain()
    writer.close()


async def break_off(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1)
    writer.transport.abort()


BAD = {
    "never answers": never_answer,
    "garbage": babble,
    "HTTP/1.1": plain_http,
    "resets": break_off,
}


@pytest.mark.parametrize("handler", BAD.values(), ids=list(BAD))
async def test_a_bad_server_gets_no_calls_and_status_says_so(handler: Handler) -> None:
    async with (
        listening(handler) as bad,
        FakeServer("a") as good,
        ServedGateway(serving(good.address, bad)) as gateway,
    ):
        await gateway.eventually(
            lambda s: endpoints_of(s, "m")[good.address]["health"] == "healthy"
        )
        for _ in range(20):
            assert (await gateway.ask())["replica"] == "a"
        found = (await gateway.endpoints())[bad]
        assert found["health"] in ("unchecked", "unhealthy")
        assert found["succeeded"] == 0


@pytest.mark.parametrize("handler", BAD.values(), ids=list(BAD))
async def test_where_all_are_bad_callers_are_told_at_once(handler: Handler) -> None:
    async with listening(handler) as bad, ServedGateway(serving(bad)) as gateway:
        async with asyncio.timeout(20):
            code, words = await gateway.refusal(timeout=60)
        assert code == "UNAVAILABLE"
        assert "m" in words
        status, _ = await gateway.get("/v2/models/m")
        assert status == 503


async def test_nobody_listens_and_then_somebody_does() -> None:
    port = free_port()
    async with ServedGateway(serving(f"127.0.0.1:{port}")) as gateway:
        assert (await gateway.refusal())[0] == "UNAVAILABLE"
        async with FakeServer("late", port) as late:
            await gateway.healthy()
            assert (await gateway.ask())["replica"] == "late"
            assert late.checks >= 1


async def test_a_server_that_breaks_off_in_the_middle_of_an_answer() -> None:
    async with (
        FakeServer("a") as a,
        FakeServer("b") as b,
        ServedGateway(serving(a.address, b.address)) as gateway,
    ):
        await gateway.healthy()
        code, words = await gateway.refusal(x_do="half")
        assert code in ("UNAVAILABLE", "INTERNAL"), words
        assert (await gateway.ask())["replica"] in "ab"


async def test_what_one_server_refuses_to_do_is_never_asked_of_another() -> None:
    async with (
        FakeServer("a") as a,
        FakeServer("b") as b,
        ServedGateway(serving(a.address, b.address)) as gateway,
    ):
        await gateway.healthy()
        for code in (3, 5, 8, 14):
            before = a.requests + b.requests
            await gateway.refusal(x_do=f"grpc {code} own words")
            assert a.requests + b.requests == before + 1


async def test_mistakes_of_callers_demote_nobody() -> None:
    async with (
        FakeServer("a") as a,
        FakeServer("b") as b,
        ServedGateway(serving(a.address, b.address)) as gateway,
    ):
        await gateway.healthy()
        async with Traffic(gateway, x_do="only a;grpc 3 wrong") as traffic:
            # Envoy's first reports leave out the first calls.
            await gateway.eventually(
                lambda s: (
                    endpoints_of(s, "m")[a.address]["succeeded"] > 200
                    and endpoints_of(s, "m")[b.address]["succeeded"] > 200
                )
            )
        assert {error.partition(":")[0] for error in traffic.errors} == {"INVALID_ARGUMENT"}
        for endpoint in (await gateway.endpoints()).values():
            assert endpoint["state"] == "serving"
            assert endpoint["share"] > 0.3


async def test_a_server_that_fails_all_calls_is_ejected_probed_and_taken_back() -> None:
    async with (
        FakeServer("a") as a,
        FakeServer("b") as b,
        FakeServer("c") as c,
        ServedGateway(serving(a.address, b.address, c.address)) as gateway,
    ):
        await gateway.healthy()
        async with Traffic(gateway, x_do="only a;grpc 14 sick") as traffic:
            status = await gateway.eventually(
                lambda s: endpoints_of(s, "m")[a.address]["state"] == "ejected"
            )
            assert "failed" in endpoints_of(status, "m")[a.address]["reason"]
            assert len(traffic.errors) > 0
        async with Traffic(gateway) as traffic:
            await gateway.eventually(
                lambda s: (
                    endpoints_of(s, "m")[a.address]["state"] == "serving"
                    and endpoints_of(s, "m")[a.address]["share"] > 0.25
                )
            )
            await traffic.more(50, of="a")
        assert traffic.errors == []


async def give_up(gateway: ServedGateway, told: str, after: float) -> None:
    """Call over REST, and go away when nothing is answered in the time."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    head = f"POST /v2/models/m/infer HTTP/1.1\r\nhost: m\r\nx-do: {told}\r\n"
    writer.write(f"{head}content-length: 2\r\n\r\n{{}}".encode())
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(reader.read(1), after)
    writer.close()


@pytest.mark.parametrize("protocol", ["tidegate", "open-inference"])
async def test_a_server_whose_worker_hangs_is_ejected_though_its_checks_pass(
    protocol: str,
) -> None:
    """Callers go away before anybody sees a failure, and few calls wait at a time."""
    async with FakeServer("a") as a, FakeServer("b") as b, FakeServer("c") as c:
        endpoints = [
            {"address": s.address, "rest": int(s.address.split(":")[1]), "protocol": protocol}
            for s in (a, b, c)
        ]
        async with ServedGateway(serving(*endpoints)) as gateway:
            await gateway.healthy()
            stuck = asyncio.Event()

            async def call_until_stuck() -> None:
                while not stuck.is_set():
                    await give_up(gateway, "only a;sleep 1000", 0.2)

            callers = [asyncio.create_task(call_until_stuck()) for _ in range(2)]
            status = await gateway.eventually(
                lambda s: endpoints_of(s, "m")[a.address]["state"] == "ejected"
            )
            stuck.set()
            await asyncio.gather(*callers)
            assert endpoints_of(status, "m")[a.address]["cancelled"]
            async with Traffic(gateway) as traffic:
                await gateway.eventually(
                    lambda s: endpoints_of(s, "m")[a.address]["state"] == "serving"
                )
                await traffic.more(50, of="a")
            assert traffic.errors == []


async def test_callers_who_wait_for_nobody_demote_nobody() -> None:
    async with (
        FakeServer("a") as a,
        FakeServer("b") as b,
        ServedGateway(serving(a.address, b.address)) as gateway,
    ):
        await gateway.healthy()
        async with Traffic(gateway, width=4) as traffic:
            while (await gateway.endpoints())[a.address]["cancelled"] < 50:
                await asyncio.gather(*(give_up(gateway, "sleep 1000", 0.01) for _ in range(8)))
                found = (await gateway.endpoints()).values()
                assert {e["state"] for e in found} <= {"new", "serving"}
        assert traffic.errors == []


async def test_a_frozen_server_is_left_alone_and_taken_back() -> None:
    async with processes("abc") as (a, b, c), ServedGateway(three(a, b, c)) as gateway:
        await gateway.healthy()
        async with Traffic(gateway) as traffic:
            a.freeze()
            await traffic.more(300)
            await gateway.eventually(
                lambda s: (
                    endpoints_of(s, "m")[a.address]["health"] != "healthy"
                    or endpoints_of(s, "m")[a.address]["state"] == "ejected"
                )
            )
            mark = len(traffic.answers)
            await traffic.more(300)
            assert "a" not in traffic.since(mark)
            a.thaw()
            await traffic.more(50, of="a")
        assert traffic.errors == []


def three(*servers: ServerProcess) -> dict[str, Any]:
    return serving(*(server.address for server in servers))


async def test_two_nodes_with_different_versions() -> None:
    async with (
        FakeServer("old") as old,
        FakeServer("new") as new,
        ServedGateway(
            serving(
                {"address": old.address, "versions": [1, 2]},
                {"address": new.address, "versions": [2, 3]},
            )
        ) as gateway,
    ):
        await gateway.healthy()
        for version, who in (
            ("1", {"old"}),
            ("2", {"old", "new"}),
            ("3", {"new"}),
            ("", {"old", "new"}),
        ):
            found = {(await gateway.ask(message("m", version)))["replica"] for _ in range(20)}
            assert found == who
        code, words = await gateway.refusal(message("m", "4"))
        assert code == "NOT_FOUND"
        assert "version 4" in words
        assert "1, 2, 3" in words
        assert (await gateway.get("/v2/models/m/versions/4"))[0] == 404


async def test_a_server_that_comes_back_under_another_address(tmp_path: Any) -> None:
    file = tmp_path / "endpoints.yaml"
    async with FakeServer("a") as a, FakeServer("b") as b:
        file.write_text(yaml.safe_dump([a.address]))
        async with ServedGateway(serving({"file": str(file)})) as gateway:
            await gateway.healthy()
            async with Traffic(gateway) as traffic:
                file.write_text(yaml.safe_dump([b.address]))
                await traffic.more(50, of="b")
                status = await gateway.eventually(
                    lambda s: endpoints_of(s, "m").keys() == {b.address}
                )
                file.write_text("- nowhere\n")
                status = await gateway.eventually(lambda s: s["sources"][0]["problem"])
                assert "nowhere" in status["sources"][0]["problem"]
                assert endpoints_of(status, "m").keys() == {b.address}
                file.unlink()
                await traffic.more(50, of="b")
            assert traffic.errors == []


async def test_a_server_of_another_protocol_than_declared() -> None:
    async with (
        FakeServer("a") as a,
        ServedGateway(serving({"address": a.address, "protocol": "seldon"})) as gateway,
    ):
        await gateway.eventually(lambda s: endpoints_of(s, "m"))
        code, words = await gateway.refusal()
        assert code in ("UNIMPLEMENTED", "UNAVAILABLE")
        assert "seldon" in words or "m" in words


async def test_a_thousand_endpoints() -> None:
    async with FakeServer("a", host="0.0.0.0") as a:
        port = a.address.rpartition(":")[2]
        addresses = [f"127.0.{i // 250}.{i % 250 + 1}:{port}" for i in range(1000)]
        async with ServedGateway(serving(*addresses)) as gateway:
            await gateway.healthy()
            async with Traffic(gateway) as traffic:
                await traffic.more(100)
                await gateway.edit(serving(*addresses[:500]))
                await traffic.more(100)
            assert traffic.errors == []
            assert len(await gateway.endpoints()) == 500


async def test_an_overflow_pool_takes_over_from_servers_that_all_answer_with_errors() -> None:
    """Their health checks pass, and as many would be a panic without an overflow pool."""
    async with (
        FakeServer("sick") as a,
        FakeServer("sick") as b,
        FakeServer("sick") as c,
        FakeServer("well") as well,
    ):
        places = [a.address, b.address, c.address, {"address": well.address, "priority": 1}]
        async with ServedGateway({"models": {"m": {"endpoints": places}}}) as gateway:
            await gateway.healthy()
            async with Traffic(gateway, width=4, x_do="only sick;grpc 14 broken") as traffic:
                await traffic.more(200, of="well")
                errors = len(traffic.errors)
                await traffic.more(500, of="well")
                assert len(traffic.errors) - errors < 100  # those that probed
            async with Traffic(gateway, width=4) as traffic:
                await traffic.more(200)
                while "well" in traffic.answers[-200:]:
                    await traffic.more(200)
                assert traffic.errors == []
