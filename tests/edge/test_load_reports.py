"""What Envoy reports of servers, and what is made of it."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from envoy.service.load_stats.v3 import lrs_pb2

from tests.edge.gateway_harness import Gateway, processes
from tests.edge.harness import Load, until
from tidegate.edge.load_reports import EndpointLoad, LoadReport, read_report
from tidegate.edge.pools import Server
from tidegate.edge.process import EnvoyProcess
from tidegate.edge.retry_floors import LEAST, RetryFloors
from tidegate.protocols.load_reports import CALLERS


@pytest.fixture
async def gateway(run_dir: Path) -> AsyncIterator[Gateway]:
    async with Gateway(run_dir) as running:
        yield running


def report(in_flight: int) -> LoadReport:
    return LoadReport(0.25, {"c": {"a": EndpointLoad(0, 0, 0, in_flight)}})


def test_a_report_is_read() -> None:
    request = lrs_pb2.LoadStatsRequest()
    stats = request.cluster_stats.add(cluster_name="c")
    stats.load_report_interval.nanos = 250_000_000
    endpoint = stats.upstream_locality_stats.add().upstream_endpoint_stats.add(
        total_successful_requests=3, total_error_requests=2, total_issued_requests=6
    )
    endpoint.total_requests_in_progress = 1
    endpoint.address.socket_address.address = "fd00::1"
    endpoint.address.socket_address.port_value = 80
    for name, value in (("cpu_utilization", 0.9), ("application_utilization", 1.0)):
        endpoint.load_metric_stats.add(
            metric_name=name, num_requests_finished_with_metric=2, total_metric_value=value
        )
    request.cluster_stats.add(cluster_name="idle")
    assert read_report(request) == LoadReport(
        0.25, {"c": {"[fd00::1]:80": EndpointLoad(3, 2, 6, 1, 0.5)}}
    )


@pytest.mark.parametrize(
    ("callers", "expected"),
    [(1.0, (4, 1)), (99.0, (5, 0)), (-7.0, (3, 2)), (math.nan, (3, 2)), (math.inf, (3, 2))],
)
def test_numbers_that_no_server_should_send_change_nothing(
    callers: float, expected: tuple[int, int]
) -> None:
    request = lrs_pb2.LoadStatsRequest()
    stats = request.cluster_stats.add(cluster_name="c")
    endpoint = stats.upstream_locality_stats.add().upstream_endpoint_stats.add(
        total_successful_requests=3, total_error_requests=2, total_issued_requests=5
    )
    for name in (CALLERS, "application_utilization"):
        endpoint.load_metric_stats.add(
            metric_name=name, num_requests_finished_with_metric=1, total_metric_value=callers
        )
    (load,) = read_report(request).clusters["c"].values()
    assert (load.succeeded, load.failed) == expected
    assert load.utilization == (callers if math.isfinite(callers) else None)


def test_the_least_of_retries_rises_at_once_and_falls_late() -> None:
    floors = RetryFloors()
    assert not floors.observe(report(LEAST // 3))
    assert floors.observe(report(100))
    assert 300 <= floors.floors["c"] <= 400
    assert not floors.observe(report(110))
    changes = [floors.observe(LoadReport(0.25, {})) for _ in range(200)]
    assert not any(changes[:38])
    assert floors.floors == {}


async def test_servers_tell_how_busy_they_are_and_clients_do_not_see_it(gateway: Gateway) -> None:
    await gateway.serve_from("a")
    await gateway.warm()
    fake = gateway.servers["a"]
    answer = await gateway.rest("POST", "/v2/models/m/infer", b"{}", x_load="0.75")
    assert answer.status == 200
    assert "endpoint-load-metrics" not in answer.headers
    await gateway.reported(lambda: fake.address in gateway.total())
    assert gateway.total()[fake.address].utilization == pytest.approx(0.75)


async def test_what_is_found_elsewhere_has_the_servers_address(gateway: Gateway) -> None:
    grpc, rest = await gateway.server("grpc"), await gateway.server("rest")
    await gateway.route(Server(grpc.address, "open-inference", rest.address))
    cluster = "pool/m|open-inference|rest"

    async def reported() -> bool:
        answer = await gateway.rest("POST", "/v2/models/m/infer", b"{}")
        assert answer.json["replica"] == "rest"
        return grpc.address in gateway.total(cluster)

    await until(reported)
    assert set(gateway.total(cluster)) == {grpc.address}


async def test_a_hot_restart_fails_no_call_and_the_new_process_reports(gateway: Gateway) -> None:
    async with processes("ab") as servers:
        await gateway.route(*(Server(each.address) for each in servers))
        async with Load(gateway, width=8) as load:
            gateway.change(drain_timeout=1.0, heap_size=2**30 + 2**20)
            old = gateway.envoy
            gateway.envoy = await old.hot_restart(gateway.settings)
            await load.more(200)
            await old.wait()
            gateway.reports.clear()
            await load.more(200)
            await gateway.reported(lambda: len(gateway.total()) == 2)
        assert load.errors == []


async def test_a_controller_that_comes_back_adopts_the_edge(gateway: Gateway) -> None:
    """It is silent until it knows the servers, and no cluster is built anew then."""
    async with processes("ab") as servers:
        await gateway.route(*(Server(each.address) for each in servers))
        async with Load(gateway, width=8) as load:
            await gateway.control.__aexit__(None, None, None)
            gateway.control = gateway.new_control()
            await gateway.control.__aenter__()
            adopted = EnvoyProcess.adopt(gateway.envoy.record())
            assert adopted is not None
            await until(lambda: connected(gateway))
            await load.more(100)
            await gateway.publish()
            gateway.reports.clear()
            await load.more(100)
            await gateway.reported(lambda: len(gateway.total()) == 2)
        assert load.errors == []
        stats = await gateway.envoy.admin.stats("^cluster_manager.cluster_modified$")
        assert stats["cluster_manager.cluster_modified"] == 0


async def connected(gateway: Gateway) -> bool:
    return gateway.control.connected
