"""The one table from a kind of error to what each transport calls it, and the way back.

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
_CANNOT_CREATE, _TEMPORARY, _PROTOCOL, _NO_PERMISSION, _CONFIG = 73, 75, 76, 77, 78

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
    errors.ConnectionFailed: Status(502, GrpcCode.UNAVAILABLE, _UNAVAILABLE),
    errors.ServerUnreachable: Status(503, GrpcCode.UNAVAILABLE, _UNAVAILABLE),
    errors.ConnectionLost: Status(502, GrpcCode.UNAVAILABLE, _UNAVAILABLE),
    errors.InvalidAnswer: Status(502, GrpcCode.INTERNAL, _PROTOCOL),
    errors.RequestError: Status(500, GrpcCode.INTERNAL, _SOFTWARE),
    errors.InvalidInput: Status(400, GrpcCode.INVALID_ARGUMENT, _DATA),
    errors.SignatureNotFound: Status(400, GrpcCode.FAILED_PRECONDITION, _DATA),
    errors.Unauthenticated: Status(401, GrpcCode.UNAUTHENTICATED, _NO_PERMISSION),
    errors.ModelNotFound: Status(404, GrpcCode.NOT_FOUND, _NO_INPUT),
    errors.MethodNotFound: Status(404, GrpcCode.UNIMPLEMENTED, _USAGE),
    errors.MethodNotAllowed: Status(405, GrpcCode.UNIMPLEMENTED, _USAGE),
    errors.Unsupported: Status(501, GrpcCode.UNIMPLEMENTED, _USAGE),
    errors.UnsupportedEncoding: Status(415, GrpcCode.UNIMPLEMENTED, _USAGE),
    errors.UnsupportedContent: Status(415, GrpcCode.UNIMPLEMENTED, _USAGE),
    errors.MessageTooLarge: Status(413, GrpcCode.RESOURCE_EXHAUSTED, _DATA),
    errors.QueueFull: Status(429, GrpcCode.RESOURCE_EXHAUSTED, _TEMPORARY),
    errors.ModelNotReady: Status(503, GrpcCode.UNAVAILABLE, _UNAVAILABLE),
    errors.DeadlineExceeded: Status(504, GrpcCode.DEADLINE_EXCEEDED, _TEMPORARY),
    errors.Cancelled: Status(499, GrpcCode.CANCELLED, _TEMPORARY),
    errors.RegionNotFound: Status(404, GrpcCode.NOT_FOUND, _NO_INPUT),
    errors.RegionExists: Status(409, GrpcCode.ALREADY_EXISTS, _CANNOT_CREATE),
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


_BY_GRPC: dict[int, type[errors.TidegateError]] = {
    GrpcCode.CANCELLED: errors.Cancelled,
    GrpcCode.INVALID_ARGUMENT: errors.InvalidInput,
    GrpcCode.OUT_OF_RANGE: errors.InvalidInput,
    GrpcCode.DEADLINE_EXCEEDED: errors.DeadlineExceeded,
    GrpcCode.NOT_FOUND: errors.ModelNotFound,
    GrpcCode.PERMISSION_DENIED: errors.PermissionDenied,
    GrpcCode.UNAUTHENTICATED: errors.Unauthenticated,
    GrpcCode.RESOURCE_EXHAUSTED: errors.QueueFull,
    GrpcCode.FAILED_PRECONDITION: errors.Quarantined,
    GrpcCode.UNIMPLEMENTED: errors.Unsupported,
    GrpcCode.UNAVAILABLE: errors.ModelNotReady,
    GrpcCode.INTERNAL: errors.InferenceFailed,
    GrpcCode.UNKNOWN: errors.InferenceFailed,
}
_BY_HTTP: dict[int, type[errors.TidegateError]] = {
    401: errors.Unauthenticated,
    403: errors.PermissionDenied,
    404: errors.ModelNotFound,
    405: errors.MethodNotAllowed,
    408: errors.DeadlineExceeded,
    413: errors.MessageTooLarge,
    415: errors.UnsupportedEncoding,
    422: errors.Quarantined,
    429: errors.QueueFull,
    499: errors.Cancelled,
    500: errors.InferenceFailed,
    501: errors.Unsupported,
    502: errors.ConnectionLost,
    503: errors.ModelNotReady,
    504: errors.DeadlineExceeded,
}
_OF_SIZE = ("limit of", "larger than max", "too large")
"""What tells an oversized message from a full queue, which share a code on gRPC."""


def error_of_grpc(code: int, message: str) -> errors.TidegateError:
    """Return the error that a server meant by a gRPC status other than OK.

    Where several kinds share a code, it is the one that callers meet most.
    """
    kind = _BY_GRPC.get(code, errors.RequestError)
    if kind is errors.QueueFull and any(words in message for words in _OF_SIZE):
        kind = errors.MessageTooLarge
    return kind(message)


def error_of_http(status: int, message: str) -> errors.TidegateError:
    """Return the error that a server meant by an HTTP status from 400 on."""
    fallback = errors.InvalidInput if 400 <= status < 500 else errors.RequestError
    return _BY_HTTP.get(status, fallback)(message)


def error_of_exit(status: int, message: str) -> errors.TidegateError:
    """Return the error that a command of ours meant by its exit status."""
    kinds = {
        _UNAVAILABLE: errors.RuntimeMissing,
        _CANNOT_CREATE: errors.AddressInUse,
        _CONFIG: errors.ConfigurationError,
    }
    return kinds.get(status, errors.NodeError)(message)
