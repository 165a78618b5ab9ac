"""The one table from a kind of error to what each transport calls it.

gRPC codes: https://grpc.io/docs/guides/status-codes/; exit codes: ``sysexits.h``.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

from tidegate import errors


class GrpcCode(enum.IntEnum):
    """The status codes of gRPC."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class Status(NamedTuple):
    """What one kind of error is called on each transport."""

    http: int
    grpc: GrpcCode
    exit: int


_USAGE, _DATA, _NO_INPUT, _UNAVAILABLE, _SOFTWARE = 64, 65, 66, 69, 70
_CANNOT_CREATE, _TEMPORARY, _NO_PERMISSION, _CONFIG = 73, 75, 77, 78

_TABLE: dict[type[errors.TidegateError], Status] = {
    errors.TidegateError: Status(500, GrpcCode.INTERNAL, _SOFTWARE),
    errors.ConfigurationError: Status(500, GrpcCode.FAILED_PRECONDITION, _CONFIG),
    errors.ModelError: Status(503, GrpcCode.UNAVAILABLE, _DATA),
    errors.InvalidModel: Status(503, GrpcCode.UNAVAILABLE, _DATA),
    errors.RuntimeMissing: Status(503, GrpcCode.UNAVAILABLE, _UNAVAILABLE),
    errors.InsufficientMemory: Status(503, GrpcCode.UNAVAILABLE, _UNAVAILABLE),
    errors.NodeError: Status(500, GrpcCode.INTERNAL, _SOFTWARE),
    errors.AddressInUse: Status(500, GrpcCode.INTERNAL, _CANNOT_CREATE),
    errors.EdgeFailed: Status(500, GrpcCode.INTERNAL, _SOFTWARE),
    errors.NodeNotFound: Status(404, GrpcCode.NOT_FOUND, _NO_INPUT),
    errors.RequestError: Status(500, GrpcCode.INTERNAL, _SOFTWARE),
    errors.InvalidInput: Status(400, GrpcCode.INVALID_ARGUMENT, _DATA),
    errors.ModelNotFound: Status(404, GrpcCode.NOT_FOUND, _NO_INPUT),
    errors.MethodNotFound: Status(404, GrpcCode.UNIMPLEMENTED, _USAGE),
    errors.MethodNotAllowed: Status(405, GrpcCode.UNIMPLEMENTED, _USAGE),
    errors.Unsupported: Status(501, GrpcCode.UNIMPLEMENTED, _USAGE),
    errors.UnsupportedEncoding: Status(415, GrpcCode.UNIMPLEMENTED, _USAGE),
    errors.MessageTooLarge: Status(413, GrpcCode.RESOURCE_EXHAUSTED, _DATA),
    errors.QueueFull: Status(429, GrpcCode.RESOURCE_EXHAUSTED, _TEMPORARY),
    errors.ModelNotReady: Status(503, GrpcCode.UNAVAILABLE, _UNAVAILABLE),
    errors.DeadlineExceeded: Status(504, GrpcCode.DEADLINE_EXCEEDED, _TEMPORARY),
    errors.Cancelled: Status(499, GrpcCode.CANCELLED, _TEMPORARY),
    errors.PermissionDenied: Status(403, GrpcCode.PERMISSION_DENIED, _NO_PERMISSION),
    errors.LoadFailed: Status(400, GrpcCode.FAILED_PRECONDITION, _DATA),
    errors.Quarantined: Status(422, GrpcCode.FAILED_PRECONDITION, _DATA),
    errors.InferenceFailed: Status(500, GrpcCode.INTERNAL, _SOFTWARE),
}


def kinds_by_exit() -> dict[int, list[type[errors.TidegateError]]]:
    """Return the kinds of errors by their exit codes, in the order of the tree."""
    found: dict[int, list[type[errors.TidegateError]]] = {}
    for kind, status in _TABLE.items():
        found.setdefault(status.exit, []).append(kind)
    return found


def status_of(error: BaseException) -> Status:
    """Return the status of ``error``: its own kind's, or that of the nearest ancestor.

    What is not of Tidegate's tree is a fault of ours: 500, INTERNAL, exit code 70.
    """
    for kind in type(error).__mro__:
        if kind in _TABLE:
            return _TABLE[kind]
    return _TABLE[errors.TidegateError]
