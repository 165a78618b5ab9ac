"""How servers of every make are asked whether they are ready."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.edge.gateway_harness import Gateway
from tests.edge.harness import until
from tidegate.edge.health_checks import Crowd, health_check
from tidegate.edge.plan import Plan
from tidegate.edge.pools import (
    GatewayTopology,
    Pool,
    Protocol,
    RoutedModel,
    Server,
    Servers,
    TrafficPolicy,
)
from tidegate.protocols.open_inference import MODEL_READY
from tidegate.protocols.open_inference.messages import ModelReadyRequest, ModelReadyResponse
from tidegate.protocols.tensorflow_serving import GET_MODEL_STATUS, PREDICT
from tidegate.protocols.tensorflow_serving.messages import (
    GetModelStatusRequest,
    GetModelStatusResponse,
)

AVAILABLE, LOADING = 30, 20
_PREDICT = b"\x0a\x03\x0a\x01m"
"""A PredictRequest for the model ``m``."""


@pytest.fixture
async def gateway(run_dir: Path) -> AsyncIterator[Gateway]:
    async with Gateway(run_dir) as running:
        yield running


class Stranger(grpc.GenericRpcHandler):  # type: ignore[misc]
    """A server of another make, on the gRPC library; it forgives no pings."""

    def __init__(self) -> None:
        self.ready = False
        self.asked: list[str] = []

    def service(self, details: Any) -> Any:
        async def answer(request: bytes, context: Any) -> bytes:
            if details.method == MODEL_READY:
                self.asked.append(ModelReadyRequest.FromString(request).name)
                return bytes(ModelReadyResponse(ready=self.ready).SerializeToString())
            if details.method == GET_MODEL_STATUS:
                self.asked.append(GetModelStatusRequest.FromString(request).model_spec.name)
                response = GetModelStatusResponse()
                response.model_version_status.add(
                    version=1, state=AVAILABLE if self.ready else LOADING
                )
                return bytes(response.SerializeToString())
            return b"answer"

        return grpc.unary_unary_rpc_method_handler(answer)


@pytest.mark.parametrize("protocol", ["open-inference", "tensorflow-serving"])
async def test_a_grpc_server_is_asked_in_its_own_protocol(
    gateway: Gateway, protocol: Protocol
) -> None:
    stranger = Stranger()
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((stranger,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    serving = protocol == "tensorflow-serving"
    options: dict[str, Any] = {"request": _PREDICT, "method": PREDICT} if serving else {}

    async def answers() -> bool:
        try:
            return bool(await gateway.call(**options) == b"answer")
        except grpc.aio.AioRpcError as error:
            codes.add(error.code())
            return False

    async def refuses() -> bool:
        return not await answers()

    codes: set[grpc.StatusCode] = set()
    try:
        await gateway.route(Server(f"127.0.0.1:{port}", protocol))
        assert await refuses()
        stranger.ready = True
        await until(answers)
        stranger.ready = False
        await until(refuses)
        assert set(stranger.asked) == {"m"}
        assert codes == {grpc.StatusCode.UNAVAILABLE}
    finally:
        await server.stop(None)


def checks(*servers: Server, **traffic: Any) -> dict[str, Any]:
    """The check of each cluster of a model with these servers."""
    model = RoutedModel("m", Pool("m", Servers(servers)), TrafficPolicy(**traffic))
    plan = Plan(GatewayTopology({"m": model}, True, b"{}"))
    return {n: health_check(c, Crowd(3, 3)) for n, c in plan.clusters.items()}


def test_each_version_is_asked_for() -> None:
    found = checks(
        Server("10.0.0.1:80", versions=frozenset({1})),
        Server("10.0.0.2:80", versions=frozenset({1, 2})),
    )
    paths = {name: check.http_health_check.path for name, check in found.items()}
    assert paths["pool/m"] == "/v2/models/m/ready"
    assert paths["pool/m:2"] == "/v2/models/m/versions/2/ready"


def test_a_seldon_server_is_connected_to() -> None:
    found = checks(Server("10.0.0.1:80", "seldon", "10.0.0.1:81"))
    assert {c.WhichOneof("health_checker") for c in found.values()} == {"tcp_health_check"}


def test_a_task_of_a_nodefile_is_no_model_that_servers_could_be_asked_for() -> None:
    (ours,) = checks(Server("10.0.0.1:80"), known=False).values()
    assert ours.http_health_check.path == "/v2/health/ready"
    for protocol in ("tensorflow-serving", "open-inference"):
        found = checks(Server("10.0.0.1:80", protocol, "10.0.0.1:81"), known=False)
        assert {c.WhichOneof("health_checker") for c in found.values()} == {"tcp_health_check"}


def test_a_path_of_ones_own_is_asked_over_rest() -> None:
    found = checks(
        Server("10.0.0.1:80", "seldon", "10.0.0.1:81"), health_path="/ping", health_interval=3.0
    )
    assert {c.http_health_check.path for c in found.values()} == {"/ping"}
    assert {c.interval.seconds for c in found.values()} == {3}


def test_thousands_of_servers_are_asked_less_often() -> None:
    assert Crowd(100, 100).spread == 0
    model = RoutedModel("m", Pool("m", Servers((Server("10.0.0.1:80"),))))
    (cluster,) = Plan(GatewayTopology({"m": model}, True, b"{}")).clusters.values()
    for servers in (10, 600, 20_000):
        crowd = Crowd(servers, servers)
        assert servers / crowd.interval(cluster) <= 1000
    assert Crowd(20_000, 20_000).spread > 0.5
