"""``tidegate gateway`` as a process, with servers of its own: its file, its state, its life."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from tests import models as models_of_tests
from tests.edge.fake_server import FakeServer
from tests.edge.gateway_harness import processes
from tests.edge.harness import call, channel, message
from tests.gateway.harness import ServedGateway, Traffic, endpoints_of
from tests.node.harness import ServedNode, fetch


@contextlib.asynccontextmanager
async def servers(*names: str) -> AsyncIterator[list[FakeServer]]:
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(FakeServer(name)) for name in names]


def says(words: str, status: dict[str, Any]) -> bool:
    return words in str(status["problem"])


def models(**endpoints: list[Any]) -> dict[str, Any]:
    return {"models": {name: {"endpoints": found} for name, found in endpoints.items()}}


async def test_calls_are_shared_and_explained() -> None:
    async with (
        servers("a", "b") as (a, b),
        ServedGateway(models(m=[a.address, {"address": b.address, "weight": 300}])) as gateway,
    ):
        await gateway.healthy()
        answers = [(await gateway.ask())["replica"] for _ in range(40)]
        assert 5 <= answers.count("a") <= 15
        found = await gateway.endpoints()
        assert found[a.address]["share"] == pytest.approx(0.25, abs=0.1)
        assert found[b.address]["weight"] == 300
        async with Traffic(gateway):
            status = await gateway.eventually(
                lambda s: sum(e["succeeded"] for e in endpoints_of(s, "m").values()) > 20
            )
        assert status["ready"]
        assert status["problem"] is None
        (model,) = await gateway.admin("/debug/balancing")
        for endpoint in model["pools"][0]["endpoints"]:
            assert endpoint["verdict"]["reason"]
        url = f"http://127.0.0.1:{gateway.admin_port}/metrics"
        page = (await asyncio.to_thread(fetch, url))[1].decode()
        families = {f.name: f for f in text_string_to_metric_families(page)}
        shares = {
            s.labels["endpoint"]: s.value
            for s in families["tidegate_endpoint_share_ratio"].samples
        }
        assert sum(shares.values()) == pytest.approx(1.0)
        calls = families["tidegate_endpoint_calls"].samples
        assert sum(s.value for s in calls if s.labels["endpoint"] == a.address) > 0
        states = families["tidegate_endpoints"].samples
        assert sum(s.value for s in states) == 2
        assert families["tidegate_edge_up"].samples[0].value == 1


async def test_an_edit_counts_as_a_whole_and_a_bad_one_not_at_all() -> None:
    async with servers("a", "b") as (a, b), ServedGateway(models(m=[a.address])) as gateway:
        await gateway.healthy()
        async with Traffic(gateway) as traffic:
            await gateway.edit(models(m=[b.address], n=[a.address]))
            await traffic.more(50, of="b")
            assert (await gateway.ask(message("n")))["replica"] == "a"
            # The old one stays until the new one is known to be well.
            await gateway.eventually(lambda s: endpoints_of(s, "m").keys() == {b.address})
            for text, words in (
                ("models: {m: {endpoints: [nowhere]}}", "'nowhere' has no port"),
                (
                    "models:\n  m:\n    endpoits: []",
                    "line 3: models.m.endpoits: unknown key; did you",
                ),
                ("models: [", "not valid YAML"),
                ("\x00\xff", "not valid YAML"),
                ("tls: {certificate: no.pem, key: no.pem}", "no.pem"),
            ):
                gateway.write(text)
                status = await gateway.eventually(partial(says, words))
                assert endpoints_of(status, "m").keys() == {b.address}
            gateway.repository.unlink()
            await gateway.eventually(lambda s: "there is no such file" in str(s["problem"]))
            await gateway.edit(models(m=[a.address, b.address]))
            assert (await gateway.status())["problem"] is None
            await traffic.more(20, of="a")
        assert traffic.errors == []


@pytest.mark.parametrize("text", ["", "\n", "# to do\n", "{}"])
async def test_a_file_that_is_cut_off_takes_no_model_away(text: str) -> None:
    """A full disk leaves an empty file, and so does a script that fails before it has written."""
    async with servers("a") as (a,), ServedGateway(models(m=[a.address])) as gateway:
        await gateway.healthy()
        gateway.write(text)
        await gateway.eventually(partial(says, "says nothing; write 'models: {}'"))
        assert (await gateway.ask())["replica"] == "a"
        await gateway.edit({"models": {}})
        assert (await gateway.status())["problem"] is None


async def test_calls_with_headers_meet_nobody_else_when_their_order_changes() -> None:
    async with servers("a", "b", "c") as (a, b, c):
        routes = [
            {"header": "x-team", "value": name, "endpoints": [each.address]}
            for name, each in (("a", a), ("b", b), ("c", c))
        ]
        said: dict[str, Any] = {"models": {"m": {"endpoints": [a.address], "headers": routes}}}
        async with ServedGateway(said) as gateway:
            await gateway.healthy()
            async with channel(gateway.port) as connection:

                async def who(team: str) -> str:
                    return str((await call(connection, message(), x_team=team))["replica"])

                async def ask_on() -> None:
                    while True:
                        assert await who("a") == "a"
                        assert await who("b") == "b"

                asking = asyncio.create_task(ask_on())
                for _ in range(4):
                    routes.reverse()
                    await gateway.edit(said)
                    await gateway.healthy()
                asking.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await asking


async def test_settings_of_the_start_are_said_to_wait() -> None:
    async with servers("a") as (a,), ServedGateway(models(m=[a.address])) as gateway:
        await gateway.edit(
            {**models(m=[a.address], n=[a.address]), "admin_port": 1, "log_files": 9}
        )
        await gateway.until(lambda: "log_files: changed" in gateway.output)
        assert (await gateway.status())["admin_port"] == gateway.admin_port


async def test_unknown_models_and_models_without_endpoints_are_told_apart() -> None:
    async with servers("a") as (a,), ServedGateway(models(m=[a.address], empty=[])) as gateway:
        await gateway.healthy()
        code, words = await gateway.refusal(message("other"))
        assert code == "NOT_FOUND"
        assert "other" in words
        code, words = await gateway.refusal(message("empty"))
        assert code == "UNAVAILABLE"
        assert "no endpoint" in words
        status, body = await gateway.get("/v2/models/other")
        assert status == 404
        assert "other" in json.loads(body)["error"]
        assert (await gateway.get("/v2/models/empty"))[0] == 503


async def test_server_calls_are_answered_by_the_gateway() -> None:
    async with servers("a") as (a,), ServedGateway(models(m=[a.address], empty=[])) as gateway:
        await gateway.healthy()
        status, body = await gateway.get("/v2")
        assert (status, json.loads(body)["name"]) == (200, "tidegate")
        status, body = await gateway.post("/v2/repository/index", b"{}")
        found = {entry["name"]: entry["state"] for entry in json.loads(body)}
        assert found == {"m": "READY", "empty": "UNAVAILABLE"}
        status, body = await gateway.get("/v2/models/m/endpoints")
        (endpoint,) = json.loads(body)["endpoints"]
        assert (endpoint["address"], endpoint["protocol"]) == (a.address, "tidegate")
        assert json.loads(body)["ttl_ms"] == 5000
        assert (await gateway.get("/v2/models/other/endpoints"))[0] == 404
        assert (await gateway.get("/status"))[0] == 404  # of the admin port alone
        listed = json.loads((await gateway.get("/models"))[1])
        assert {each["model"]: each["state"] for each in listed} == {
            "m": "ready",
            "empty": "not ready",
        }


async def health_of(gateway: ServedGateway, service: str) -> int:
    async with channel(gateway.port) as connection:
        check = health_pb2_grpc.HealthStub(connection).Check
        answer = await check(health_pb2.HealthCheckRequest(service=service))
    return int(answer.status)


async def test_what_nobody_answers_is_not_called_ready() -> None:
    async with servers("a", "b") as (a, b), ServedGateway(models(m=[a.address, b.address])) as gw:
        await gw.healthy()
        b.ready = False
        await gw.eventually(lambda s: endpoints_of(s, "m")[b.address]["health"] == "unhealthy")
        found = await gw.endpoints()
        assert [found[each.address]["share"] for each in (a, b)] == [1.0, 0.0]
        assert "health checks" in found[b.address]["reason"]
        assert await health_of(gw, "m") == health_pb2.HealthCheckResponse.SERVING
        a.ready = False
        await gw.eventually(lambda s: endpoints_of(s, "m")[a.address]["health"] == "unhealthy")
        assert await health_of(gw, "m") == health_pb2.HealthCheckResponse.NOT_SERVING
        _, body = await gw.post("/v2/repository/index", b"{}")
        assert json.loads(body)[0]["state"] == "UNAVAILABLE"


async def test_a_killed_controller_is_replaced_without_a_failed_call() -> None:
    async with (
        servers("a", "b") as (a, b),
        ServedGateway(models(m=[a.address, b.address])) as gateway,
    ):
        await gateway.healthy()
        async with Traffic(gateway) as traffic:
            edge = (await gateway.status())["edge"]["pid"]
            gateway.kill_controller()
            assert gateway.process is not None
            await gateway.process.wait()
            await traffic.more(100)
            await gateway.serve()
            await traffic.more(100)
            assert "adopted the running edge" in gateway.output
            assert (await gateway.status())["edge"]["pid"] == edge
            await gateway.edit(models(m=[b.address]))
            await traffic.more(100, of="b")
        assert traffic.errors == []


async def test_a_stop_drains_and_leaves_nothing() -> None:
    async with servers("a") as (a,), ServedGateway(models(m=[a.address])) as gateway:
        await gateway.healthy()
        slow = asyncio.create_task(gateway.ask(x_do="sleep 1"))
        await a.request_event.wait()
        assert await gateway.stop() == 0
        assert (await slow)["replica"] == "a"
        assert gateway.processes() == []


async def test_a_node_joins_and_leaves(tmp_path: Path) -> None:
    (tmp_path / "linear/1").mkdir(parents=True)
    models_of_tests.scale(tmp_path / "linear/1/model.onnx", 2.0)
    async with (
        ServedNode(tmp_path) as node,
        ServedGateway({"registration": {}}) as gateway,
    ):
        assert (await gateway.refusal(message("linear")))[0] == "NOT_FOUND"
        said = {
            "address": node.target,
            "models": [{"name": "linear", "versions": [1], "ready": True}],
        }
        url = f"http://127.0.0.1:{gateway.admin_port}/nodes/{node.target}"
        answer = await asyncio.to_thread(fetch_put, url, said)
        assert answer["lease_ms"] >= 1000
        await gateway.healthy("linear")
        status, body = await gateway.get("/v2/models/linear/versions/1")
        assert (status, json.loads(body)["name"]) == (200, "linear")
        assert (await gateway.get("/v2/models/linear/versions/7"))[0] == 404
        (listed,) = (await gateway.status())["nodes"]
        assert listed["name"] == node.target
        await asyncio.to_thread(fetch_put, url, None)
        assert (await gateway.get("/v2/models/linear"))[0] == 404


def fetch_put(url: str, document: object) -> Any:
    """``PUT`` a document, or ``DELETE`` where there is none."""
    import urllib.request

    data = None if document is None else json.dumps(document).encode()
    request = urllib.request.Request(url, data=data, method="PUT" if data else "DELETE")
    with urllib.request.urlopen(request, timeout=30) as response:
        body = response.read()
    return json.loads(body) if body else None


async def test_a_nodefile_is_followed(tmp_path: Path) -> None:
    file = tmp_path / "nodefile.txt"
    async with servers("a", "b") as (a, b):
        file.write_text(f"# tasks\n69=2000,{a.address}\n")
        async with ServedGateway({"nodefile": str(file)}) as gateway:
            await gateway.healthy("task-69")
            assert (await gateway.ask(message("task-69")))["replica"] == "a"
            file.write_text(f"69=2000,{b.address}\n")
            await gateway.eventually(lambda s: b.address in endpoints_of(s, "task-69"))
            file.write_text("69=soon,x\n")
            await gateway.eventually(lambda s: "soon" in str(s["sources"]))
            assert (await gateway.endpoints("task-69")).keys() == {b.address}
            file.unlink()
            await gateway.eventually(lambda s: "no such file" in str(s["sources"]))
            assert (await gateway.endpoints("task-69")).keys() == {b.address}
            gateway.kill_controller()
            assert gateway.process is not None
            await gateway.process.wait()
            await gateway.serve()
            await gateway.eventually(lambda s: "no such file" in str(s["sources"]))
            assert (await gateway.ask(message("task-69")))["replica"] == "b"
            await gateway.edit(models(m=[a.address]))
            status = await gateway.status()
            assert not status["sources"]  # nobody asks for the file any more
            assert [model["name"] for model in status["models"]] == ["m"]


async def test_what_a_killed_server_had_under_way_is_asked_of_another() -> None:
    async with (
        processes("ab") as (a, b),
        ServedGateway(models(m=[a.address, b.address])) as gateway,
    ):
        await gateway.healthy()
        async with Traffic(gateway, width=64, x_do="sleep 0.02") as traffic:
            await traffic.more(200)
            await a.kill()
            await traffic.more(500, of="b")
            status = await gateway.eventually(
                lambda s: (
                    endpoints_of(s, "m")[a.address]["health"] != "healthy"
                    or endpoints_of(s, "m")[a.address]["state"] == "ejected"
                )
            )
            assert status["ready"]
        assert traffic.errors == []
