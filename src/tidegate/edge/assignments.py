"""The servers of a cluster as Envoy is told of them (EDS).

There are thousands, some of whose weights change several times a second. So what changes of one,
its weight and the verdict on it, is encoded apart from what stays: encoded fields that follow
each other are a message.

Source: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Iterable

from envoy.config.core.v3 import address_pb2, health_check_pb2
from envoy.config.endpoint.v3 import endpoint_components_pb2, endpoint_pb2
from google.protobuf import any_pb2, wrappers_pb2

from tidegate.edge.ads import ENDPOINTS
from tidegate.edge.health_checks import asks_rest
from tidegate.edge.plan import PlannedCluster
from tidegate.edge.pools import Server
from tidegate.edge.tls import certificate_name
from tidegate.protocols.varints import write_length

SECURE = "tls"
"""Marks the endpoints that speak TLS, where others do not."""

_KNOWN = 2**15
"""Servers whose encoded parts are remembered."""
_length = functools.lru_cache(maxsize=_KNOWN)(write_length)
_Assignment = endpoint_pb2.ClusterLoadAssignment
_Locality = endpoint_components_pb2.LocalityLbEndpoints
_LbEndpoint = endpoint_components_pb2.LbEndpoint


def assignment(planned: PlannedCluster) -> any_pb2.Any:
    """Return the servers of a cluster by priority, with their weights and the verdicts on them.

    It is a ``ClusterLoadAssignment``. Calls that are under way on a server that is ejected go on.
    """
    checks_rest = asks_rest(planned)
    by_priority: dict[int, list[bytes]] = {}
    for server in planned.servers:
        place = server.address if not planned.rest else planned.place(server)
        check_at = server.rest if checks_rest and server.rest != place else None
        endpoint = _where(place, check_at, server.name)
        state = _state(server.weight, _health(server), server.secure)
        by_priority.setdefault(server.priority, []).append(endpoint + state)
    # Envoy wants priorities without a gap.
    localities = [
        _fields(_Locality.LB_ENDPOINTS_FIELD_NUMBER, by_priority[priority])
        + _Locality(priority=number).SerializeToString()
        for number, priority in enumerate(sorted(by_priority))
    ]
    value = _Assignment(cluster_name=planned.name).SerializeToString()
    value += _fields(_Assignment.ENDPOINTS_FIELD_NUMBER, localities)
    return any_pb2.Any(type_url=ENDPOINTS, value=value)


def socket_address(place: str) -> address_pb2.Address:
    """Return Envoy's form of a numeric ``HOST:PORT``.

    Raises:
        ValueError: it is none; a name has to be looked up before.
    """
    host, _, port = place.rpartition(":")
    address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    return address_pb2.Address(
        socket_address=address_pb2.SocketAddress(address=str(address), port_value=int(port))
    )


@functools.lru_cache(maxsize=_KNOWN)
def _where(place: str, check_at: str | None, name: str) -> bytes:
    """Return the part of an ``LbEndpoint`` that says where it is."""
    endpoint = endpoint_components_pb2.Endpoint(address=socket_address(place))
    if (host := certificate_name(name)) is not None:
        endpoint.hostname = endpoint.health_check_config.hostname = host
    if check_at is not None:
        endpoint.health_check_config.address.CopyFrom(socket_address(check_at))
    encoded: bytes = _LbEndpoint(endpoint=endpoint).SerializeToString(deterministic=True)
    return encoded


def _health(server: Server) -> health_check_pb2.HealthStatus:
    """Return the verdict; a degraded one comes after the healthy of all priorities."""
    if not server.ejected:
        return health_check_pb2.UNKNOWN
    return health_check_pb2.DEGRADED if server.last_resort else health_check_pb2.UNHEALTHY


@functools.lru_cache(maxsize=_KNOWN)
def _state(weight: int, health: health_check_pb2.HealthStatus, secure: bool) -> bytes:
    """Return the part of an ``LbEndpoint`` that says what it gets."""
    found = _LbEndpoint(
        health_status=health,
        load_balancing_weight=wrappers_pb2.UInt32Value(value=weight),
    )
    if secure:
        found.metadata.filter_metadata["envoy.transport_socket_match"].update({SECURE: True})
    encoded: bytes = found.SerializeToString(deterministic=True)
    return encoded


def _fields(number: int, messages: Iterable[bytes]) -> bytes:
    """Encode a repeated field of messages."""
    tag = bytes((number << 3 | 2,))
    return b"".join([tag + _length(len(message)) + message for message in messages])
