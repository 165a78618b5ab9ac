"""What Envoy is told of servers is the message that it should be."""

from __future__ import annotations

import pytest
from envoy.config.core.v3 import health_check_pb2
from envoy.config.endpoint.v3 import endpoint_pb2

from tidegate.edge.ads import ENDPOINTS
from tidegate.edge.assignments import assignment, socket_address
from tidegate.edge.plan import PlannedCluster
from tidegate.edge.pools import Server, Servers, TrafficPolicy


def told(*servers: Server, rest: bool = False) -> endpoint_pb2.ClusterLoadAssignment:
    planned = PlannedCluster("pool/m", "m", "m", Servers(servers), rest, TrafficPolicy())
    resource = assignment(planned)
    assert resource.type_url == ENDPOINTS
    found = endpoint_pb2.ClusterLoadAssignment()
    assert resource.Unpack(found)
    assert found.cluster_name == "pool/m"
    return found


def test_servers_stand_by_priority_without_a_gap() -> None:
    servers = [
        Server(f"10.0.{i // 200}.{1 + i % 200}:8000", weight=1 + 1000 * i, priority=3 * (i % 2))
        for i in range(300)
    ]
    first, second = told(*servers).endpoints
    assert (first.priority, second.priority) == (0, 1)
    for locality, expected in ((first, servers[::2]), (second, servers[1::2])):
        for endpoint, server in zip(locality.lb_endpoints, expected, strict=True):
            place = endpoint.endpoint.address.socket_address
            assert f"{place.address}:{place.port_value}" == server.address
            assert endpoint.load_balancing_weight.value == server.weight
            assert endpoint.health_status == health_check_pb2.UNKNOWN


def test_an_ejected_one_and_one_with_tls_are_marked() -> None:
    ejected = Server("10.0.0.1:8000", ejected=True, name="gpu-1.test:8000")
    secure = Server("[fd00::1]:8000", secure=True)
    (locality,) = told(ejected, secure).endpoints
    first, second = locality.lb_endpoints
    assert first.health_status == health_check_pb2.UNHEALTHY
    assert not first.HasField("metadata")
    assert first.endpoint.hostname == first.endpoint.health_check_config.hostname == "gpu-1.test"
    assert second.metadata.filter_metadata["envoy.transport_socket_match"]["tls"] is True
    assert second.endpoint.address.socket_address.address == "fd00::1"


def test_calls_and_checks_go_where_rest_is_answered() -> None:
    server = Server("10.0.0.1:8500", "tensorflow-serving", rest="10.0.0.1:8501")
    (locality,) = told(server, rest=True).endpoints
    (endpoint,) = locality.lb_endpoints
    assert endpoint.endpoint.address == socket_address("10.0.0.1:8501")
    assert not endpoint.endpoint.health_check_config.HasField("address")


@pytest.mark.parametrize("place", ["gpu.test:8000", "10.0.0.1", ""])
def test_a_name_is_no_place(place: str) -> None:
    with pytest.raises(ValueError):
        socket_address(place)
