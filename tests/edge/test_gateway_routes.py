"""Which servers of a gateway get a call: by model, version, label and protocol."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.edge.gateway import GatewayEdge, running_gateway
from tests.edge.harness import MIB, message, string
from tidegate.protocols import dl_inference, open_inference
from tidegate.protocols.load_reports import ASK_HEADER, ASK_VALUE
from tidegate.protocols.routing import ONLY_HEADER


@pytest.fixture
async def gateway(run_dir: Path) -> AsyncIterator[GatewayEdge]:
    async with running_gateway(run_dir) as running:
        await running.controller()
        yield running


async def test_calls_go_to_the_servers_of_their_model(gateway: GatewayEdge) -> None:
    await gateway.model("m", await gateway.server("a"))
    await gateway.model("other", await gateway.server("b"))
    await gateway.publish()
    assert (await gateway.call(message("m")))["replica"] == "a"
    assert (await gateway.call(message("other")))["replica"] == "b"
    assert (await gateway.rest("GET", "/v2/models/other")).json["replica"] == "b"
    words = "model/x is not served here"
    assert await gateway.failure(message("x")) == ("NOT_FOUND", words)
    answer = await gateway.rest("GET", "/v2/models/x")
    assert (answer.status, answer.json) == (404, {"error": words})


async def test_a_version_goes_to_those_who_have_it(gateway: GatewayEdge) -> None:
    await gateway.model(
        "m",
        await gateway.server("a", versions=[1], labels=[]),
        await gateway.server("b", versions=[2], labels=["new"]),
    )
    await gateway.model("free", await gateway.server("c"))
    await gateway.publish()
    for version, name in (("1", "a"), ("2", "b"), ("3", "controller")):
        for _ in range(8):
            assert (await gateway.call(message("m", version)))["replica"] == name
        path = f"/v2/models/m/versions/{version}"
        assert (await gateway.rest("GET", path)).json["replica"] == name
    for label, name in (("new", "b"), ("old", "controller")):
        path = f"/v1/models/m/labels/{label}:predict"
        assert (await gateway.rest("POST", path)).json["replica"] == name
    both = {(await gateway.call(message("m")))["replica"] for _ in range(40)}
    assert both == {"a", "b"}
    assert (await gateway.call(message("free", "77")))["replica"] == "c"
    asked = await gateway.call(message("m", "3"))
    assert asked["headers"]["x-tidegate-cluster"] == "model/m:3"  # the controller says why


async def test_a_model_that_nobody_serves_now_is_unavailable(gateway: GatewayEdge) -> None:
    await gateway.model("m")
    await gateway.publish()
    words = "no endpoint of model m can answer now; try again"
    assert await gateway.failure() == ("UNAVAILABLE", words)
    answer = await gateway.rest("GET", "/v2/models/m")
    assert (answer.status, answer.json) == (503, {"error": words})


async def test_servers_of_another_make_get_their_own_protocol_alone(gateway: GatewayEdge) -> None:
    await gateway.model("m", await gateway.server("a", "open-inference", rest=False))
    await gateway.publish()
    assert (await gateway.call())["replica"] == "a"
    path = "/tensorflow.serving.PredictionService/Predict"
    code, words = await gateway.failure(string(1, string(1, "m")), method=path)
    assert code == "UNIMPLEMENTED"
    assert words == (
        f"the endpoints of model m speak open-inference over gRPC, and {path} is no call of that"
    )
    answer = await gateway.rest("GET", "/v2/models/m")
    assert answer.status == 501
    assert "/v2/models/m is no call of that" in answer.json["error"]


async def test_what_is_the_gateways_own_leaves_it_neither_way(gateway: GatewayEdge) -> None:
    await gateway.model("m", await gateway.server("a"))
    await gateway.publish()
    lies: dict[str, Any] = {
        "x_tidegate_cluster": "model/other",
        "x_tidegate_key": "root",
        "x_envoy_max_retries": "9",
        "x_envoy_retry_on": "5xx",
        "x_envoy_upstream_rq_timeout_ms": "1",
        "x_envoy_attempt_count": "7",
        "x_envoy_expected_rq_timeout_ms": "1",
        "x_envoy_original_path": "/x",
        "x_envoy_external_address": "10.0.0.1",
    }
    for seen in (
        await gateway.call(**lies),
        (await gateway.rest("POST", "/v2/models/m/infer", b"{}", **lies)).json,
        await gateway.call(string(1, string(1, "m")), method=dl_inference.PREDICT, **lies),
    ):
        assert seen["replica"] == "a"
        ours = ("x-envoy-", "x-tidegate-", "tidegate-")
        (asking,) = (name for name in seen["headers"] if name.startswith(ours))
        assert asking in (ASK_HEADER, ONLY_HEADER)


@pytest.mark.parametrize("told", [True, False])
async def test_servers_are_told_a_clients_address_if_that_is_wanted(
    run_dir: Path, told: bool
) -> None:
    async with running_gateway(run_dir, forwarded_for=told) as gateway:
        await gateway.model("m", await gateway.server("a"))
        await gateway.publish()
        seen = await gateway.call(x_forwarded_for="10.0.0.1")
        others, comma, address = seen["headers"]["x-forwarded-for"].partition(",")
        assert (others, bool(comma), bool(address)) == ("10.0.0.1", told, told)


async def test_servers_of_ours_are_asked_for_their_load(gateway: GatewayEdge) -> None:
    """Whatever the caller says; others are not."""
    for protocol, asked in (("tidegate", ASK_VALUE), ("open-inference", None)):
        server = await gateway.server(f"{protocol}-server", protocol)  # type: ignore[arg-type]
        await gateway.model("m", server)
        await gateway.publish()
        path = "/v2/models/m/infer"
        for headers in ({}, {ASK_HEADER: "no"}):
            answer = await gateway.rest("POST", path, b"{}", **headers)
            assert answer.json["headers"].get(ASK_HEADER) == asked


async def test_reports_of_load_end_at_the_gateway(gateway: GatewayEdge) -> None:
    for protocol, path in (("tidegate", "/v2/models/m/infer"), ("seldon", "/predict")):
        name = f"{protocol}-server"
        await gateway.model("m", await gateway.server(name, protocol))  # type: ignore[arg-type]
        await gateway.publish()
        answer = await gateway.rest("POST", path, b"{}", seldon="m", x_load="0.5")
        assert answer.json["replica"] == name
        names = {name for name in answer.headers if "load" in name or name.startswith("x-envoy")}
        assert names == set()


async def test_calls_of_the_only_model_go_unread_to_ours(gateway: GatewayEdge) -> None:
    copies = await gateway.pool("m/mirror", "copy")
    await gateway.model("m", await gateway.server("a"), mirror=(100, copies))
    await gateway.publish()
    seen = await gateway.call(message("other", "9"), tidegate_only="other")
    assert seen["replica"] == "a"  # who refuses other names and versions
    assert seen["headers"]["tidegate-only"] == "m"
    seen = await gateway.call(b"", method=open_inference.MODEL_STATISTICS)
    assert seen["replica"] == "controller"
    answer = await gateway.rest("POST", open_inference.MODEL_INFER, b"{}")
    assert (answer.status, answer.json["error"]) == (
        404, f"there is no POST {open_inference.MODEL_INFER} here",
    )  # fmt: skip
    assert (await gateway.rest("GET", "/v2/models/secret")).status == 404
    sent = string(1, string(1, "secret"))
    assert (await gateway.failure(sent, method=dl_inference.PREDICT))[0] == "NOT_FOUND"


async def test_others_get_no_call_for_a_model_that_the_gateway_does_not_offer(
    gateway: GatewayEdge,
) -> None:
    a = await gateway.server("a", "open-inference")
    b = await gateway.server("b", versions=[2])
    for servers in ((a,), (await gateway.server("ours"), a), (await gateway.server("ours"), b)):
        await gateway.model("m", *servers)
        await gateway.publish()
        assert (await gateway.failure(message("secret")))[0] == "NOT_FOUND"
    assert gateway.replicas["a"].requests == 0


async def test_a_gateway_without_models_answers(gateway: GatewayEdge) -> None:
    await gateway.publish()
    assert (await gateway.failure())[0] == "NOT_FOUND"
    assert (await gateway.rest("GET", "/v2/health/live")).json == {"live": True}
    assert (await gateway.rest("GET", "/models")).json["replica"] == "controller"


async def test_a_callers_id_of_a_request_stays(gateway: GatewayEdge) -> None:
    await gateway.model("m", await gateway.server("a"))
    await gateway.publish()
    answer = await gateway.rest("POST", "/v2/models/m/infer", b"{}", x_request_id="mine")
    assert answer.json["headers"]["x-request-id"] == "mine"
    assert answer.headers["x-request-id"] == "mine"
    # Without one, that of the node counts: it is a line in the node's log that it leads to.
    assert "x-request-id" not in (await gateway.call())["headers"]


@pytest.mark.parametrize("protocol", ["tidegate", "open-inference"])
@pytest.mark.parametrize("models", ["m", "mn"])
async def test_what_is_larger_than_a_message_may_be_reaches_no_server(
    run_dir: Path, protocol: Any, models: str
) -> None:
    async with running_gateway(run_dir, max_message_size=MIB) as gateway:
        for name in models:
            await gateway.model(name, await gateway.server("a", protocol))
        await gateway.publish()
        assert (await gateway.call(message("m", payload=MIB - 100)))["size"] > MIB - 100
        answer = await gateway.rest("POST", "/v2/models/m/infer", bytes(MIB))
        assert answer.json["size"] == MIB
        before = gateway.replicas["a"].requests
        words = f"the message is larger than the limit of {MIB} bytes"
        for size in (MIB + 100, 3 * MIB):
            found = await gateway.failure(message("m", payload=size))
            assert found == ("RESOURCE_EXHAUSTED", words)
            # Whoever still writes may see no more than that the connection is closed.
            with contextlib.suppress(ConnectionError):
                answer = await gateway.rest("POST", "/v2/models/m/infer", bytes(size))
                assert (answer.status, answer.json["error"]) == (413, words)
        assert gateway.replicas["a"].requests == before
        assert (await gateway.call())["replica"] == "a"
