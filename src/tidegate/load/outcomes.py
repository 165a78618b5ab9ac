"""The code that a gRPC client reports for what a server did (PROTOCOL-HTTP2.md, "Errors")."""

from __future__ import annotations

from tidegate.load.response_fields import Fields
from tidegate.protocols.statuses import GrpcCode

REFUSED_STREAM, CANCEL = 0x7, 0x8
# gRPC's mapping of HTTP/2 error codes (PROTOCOL-HTTP2.md, "Errors") and of HTTP statuses
# (http-grpc-status-mapping.md).
_OF_RESET = {REFUSED_STREAM: "UNAVAILABLE", CANCEL: "CANCELLED", 0xB: "RESOURCE_EXHAUSTED",
             0xC: "PERMISSION_DENIED"}  # fmt: skip
_CODES = {code.value: code.name for code in GrpcCode}
_OF_HTTP = {400: "INTERNAL", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED",
            404: "UNIMPLEMENTED", 429: "UNAVAILABLE", 502: "UNAVAILABLE", 503: "UNAVAILABLE",
            504: "UNAVAILABLE"}  # fmt: skip


def of_reset(error: int) -> tuple[str, str]:
    """Return code and message of a stream that was reset with an HTTP/2 error code."""
    return _OF_RESET.get(error, "INTERNAL"), f"the server reset the stream with error {error:#x}"


def of_response(head: Fields, last: Fields, body: bytes | bytearray) -> tuple[str, str]:
    """Return the code and the message that a gRPC client would report."""
    if last.grpc is not None and last.grpc != 0:
        name = _CODES.get(last.grpc)
        return (name, last.message) if name else ("UNKNOWN", f"{last.grpc}: {last.message}")
    if head.http != 200:
        return _OF_HTTP.get(head.http or 0, "UNKNOWN"), f"HTTP status {head.http}"
    if not head.is_grpc:
        return "UNKNOWN", "the content type is not gRPC's"
    if last.grpc is None:
        return "UNKNOWN", "the response has no grpc-status"
    return "INTERNAL", f"not one plain message in a response of {len(body)} bytes"
