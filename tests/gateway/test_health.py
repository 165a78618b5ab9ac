from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from tidegate.clock import MonotonicClock
from tidegate.edge.plan import PlannedCluster
from tidegate.gateway.health import EndpointHealth


class StillClock:
    """Stands still until it is told to go on."""

    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        return self.time


class Server:
    address = "10.0.0.1:8000"


class Cluster:
    pool = "m"
    rest = False
    servers = (Server(),)

    @staticmethod
    def place(server: Server) -> str:
        return server.address


CLUSTERS: Mapping[str, PlannedCluster] = {"c": Cluster()}  # type: ignore[dict-item]
HOST = {"address": {"socket_address": {"address": "10.0.0.1", "port_value": 8000}}}


def told() -> dict[str, list[dict[str, Any]]]:
    return {"c": [HOST]}


async def test_an_endpoint_that_went_and_comes_back_is_not_known_to_be_healthy() -> None:
    async def ask() -> Mapping[str, list[dict[str, Any]]]:
        return told()

    health = EndpointHealth(ask, MonotonicClock())
    health.keep({"m": {Server.address}})
    await health.look(CLUSTERS)
    assert health.is_healthy("m", Server.address)
    health.keep({"m": {Server.address, "10.0.0.2:8000"}})
    assert health.is_healthy("m", Server.address)
    health.keep({"m": {"10.0.0.2:8000"}})
    health.keep({"m": {Server.address}})
    assert health.of("m", Server.address) == "unknown"


async def test_an_answer_about_an_endpoint_that_has_gone_meanwhile_counts_for_nothing() -> None:
    asked, answer = asyncio.Event(), asyncio.Event()

    async def ask() -> Mapping[str, list[dict[str, Any]]]:
        asked.set()
        await answer.wait()
        return told()

    health = EndpointHealth(ask, MonotonicClock())
    health.keep({"m": {Server.address}})
    looking = asyncio.create_task(health.look(CLUSTERS))
    await asked.wait()
    health.keep({"m": set()})
    answer.set()
    await looking
    assert health.of("m", Server.address) == "unknown"


async def test_who_passes_no_check_anywhere() -> None:
    hosts = told()
    failing = {"health_status": {"failed_active_health_check": True}}

    async def ask() -> Mapping[str, list[dict[str, Any]]]:
        return hosts

    clock = StillClock()
    health = EndpointHealth(ask, clock)
    other = "10.0.0.2:8000"
    assert health.nowhere_well([Server.address, other]) == set()  # the edge was not asked
    await health.look(CLUSTERS)
    assert health.nowhere_well([Server.address, other]) == {other}
    hosts["c"] = [{**HOST, **failing}]
    clock.time += 60.0
    await health.look(CLUSTERS)
    assert health.nowhere_well([Server.address]) == {Server.address}
    hosts["c"] = [{**HOST, "health_status": {"failed_outlier_check": True}}]
    clock.time += 60.0
    await health.look(CLUSTERS)
    assert health.nowhere_well([Server.address]) == set()  # it broke off, and passes its checks


async def test_a_server_that_fails_over_grpc_alone_is_said_to() -> None:
    class Rest(Cluster):
        rest = True

    failing = {"health_status": {"failed_active_health_check": True}}

    async def ask() -> Mapping[str, list[dict[str, Any]]]:
        return {"c": [{**HOST, **failing}], "rest": [HOST]}

    health = EndpointHealth(ask, MonotonicClock())
    await health.look({**CLUSTERS, "rest": Rest()})  # type: ignore[dict-item]
    assert health.of("m", Server.address) == "unhealthy"
    assert health.only("m", Server.address) == "gRPC"
    assert health.nowhere_well([Server.address]) == set()
