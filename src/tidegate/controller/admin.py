"""The server of an admin API, and whom it answers."""

from __future__ import annotations

import contextlib
import ipaddress
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request

from tidegate.controller.admin_grpc import http_or_grpc
from tidegate.errors import MessageTooLarge, PermissionDenied
from tidegate.protocols.open_inference.documents import LARGEST


def refuse_pages(request: Request) -> None:
    """Refuse what a page of another site makes a browser on this machine send here.

    Raises:
        PermissionDenied: it comes from there, or may do.
    """
    site = request.headers.get("sec-fetch-site", "none")
    origin = request.headers.get("origin")
    host = request.headers.get("host", "")
    if site not in ("none", "same-origin") or (
        origin is not None and origin.partition("://")[2] != host
    ):
        raise PermissionDenied(f"the admin API is not for pages of other sites ({origin})")
    # A site can let its own name lead to loopback; an address it cannot have.
    if not _is_local(request.url.hostname or ""):
        raise PermissionDenied(
            f"the admin API is called as localhost or by an address, not as {host[:256]!r}"
        )


def _is_local(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return name in ("", "localhost")
    return True


async def body_of(request: Request) -> bytes:
    """Return the body of a request.

    Raises:
        MessageTooLarge: it is larger than any document may be.
    """
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > LARGEST:
            raise MessageTooLarge(f"the body is larger than {LARGEST} bytes; send less")
    return body


class AdminServer(uvicorn.Server):
    """The admin API's server, for HTTP and gRPC; signals are the controller's business."""

    def __init__(self, application: Starlette, grpc_socket: Path) -> None:
        super().__init__(
            uvicorn.Config(
                application,
                http=http_or_grpc(grpc_socket),
                log_config=None,
                log_level="warning",
                access_log=False,
                # Who calls is told by the connection alone.
                proxy_headers=False,
                lifespan="off",
                # A model that is being loaded does not hold up the end of a node.
                timeout_graceful_shutdown=1,
            )
        )

    @contextlib.contextmanager
    def capture_signals(self):  # type: ignore[no-untyped-def]
        """Leave the signals alone."""
        yield
