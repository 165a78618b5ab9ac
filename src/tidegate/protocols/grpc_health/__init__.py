"""gRPC's own health checking, as probes and balancers ask for it.

Source: https://github.com/grpc/grpc/blob/master/doc/health-checking.md
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any

from google.protobuf.message import DecodeError

from tidegate.errors import InvalidInput
from tidegate.protocols.descriptors import message_classes, read_files
from tidegate.protocols.grpc_frames import Buffer
from tidegate.protocols.routing import Routing

_SERVICE = "/grpc.health.v1.Health/"
CHECK = _SERVICE + "Check"
LIST = _SERVICE + "List"
WATCH = _SERVICE + "Watch"
ROUTING = Routing(methods=(), prefixes=(), server_methods=(CHECK, LIST, WATCH))

FILES = read_files(__name__, "health")
"""The descriptors, for reflection."""
_CLASSES = message_classes(FILES)
_Request: Any = _CLASSES["grpc.health.v1.HealthCheckRequest"]
_Response: Any = _CLASSES["grpc.health.v1.HealthCheckResponse"]
_ListResponse: Any = _CLASSES["grpc.health.v1.HealthListResponse"]


class Health(enum.IntEnum):
    """How a service feels."""

    SERVING = 1
    NOT_SERVING = 2
    SERVICE_UNKNOWN = 3


def decode_check(message: Buffer) -> str:
    """Return the service in a ``HealthCheckRequest``; empty: the whole server.

    Raises:
        InvalidInput: the message is malformed.
    """
    try:
        return str(_Request.FromString(bytes(message)).service)
    except DecodeError as error:
        raise InvalidInput(f"the message is not a HealthCheckRequest: {error}") from error


def encode_health(health: Health) -> bytes:
    """Return a ``HealthCheckResponse``."""
    return bytes(_Response(status=int(health)).SerializeToString())


def encode_list(statuses: Mapping[str, Health]) -> bytes:
    """Return a ``HealthListResponse``."""
    message = _ListResponse()
    for service, health in statuses.items():
        message.statuses[service].status = int(health)
    return bytes(message.SerializeToString())
