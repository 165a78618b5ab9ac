"""The server of an admin API, and whom it answers."""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Awaitable, Callable
from functools import wraps
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tidegate.controller.admin_grpc import http_or_grpc
from tidegate.controller.machine import is_from_here
from tidegate.controller.server_calls import ServerCalls
from tidegate.errors import MessageTooLarge, PermissionDenied, TidegateError
from tidegate.protocols.open_inference.documents import LARGEST
from tidegate.protocols.open_inference.rest import encode_error
from tidegate.protocols.statuses import status_of
from tidegate.replica.exchange import headers_of
from tidegate.telemetry.exposition import Page


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


def not_for_pages(
    answer: Callable[[Request], Awaitable[Response]],
) -> Callable[[Request], Awaitable[Response]]:
    """Return ``answer``, which pages in browsers on this machine are not to read."""

    @wraps(answer)
    async def guarded(request: Request) -> Response:
        if is_from_here(request.scope.get("client"), request.scope.get("server")):
            try:
                refuse_pages(request)
            except TidegateError as error:
                return refusal(error)
        return await answer(request)

    return guarded


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


async def answer_call(calls: ServerCalls, request: Request) -> Response:
    """Answer one of the calls that the public port has, too, without its restrictions."""
    try:
        refuse_pages(request)
        path = request.scope["raw_path"].decode("latin-1").partition("?")[0]
        reply = await calls.answer_path(request.method, path, await body_of(request), trusted=True)
    except TidegateError as error:
        return refusal(error)
    return Response(b"".join(reply.parts), media_type="application/json")


def refusal(error: TidegateError) -> Response:
    """Return the answer that tells of an error, with the headers that belong to it."""
    headers = {name.decode(): value.decode() for name, value in headers_of(error)}
    body, status = encode_error(str(error)), status_of(error).http
    return Response(body, status, headers, media_type="application/json")


def shared_routes(page: Callable[[], Awaitable[Page]], calls: ServerCalls) -> list[Route]:
    """Return what nodes and gateways have in common: metrics, a probe, and the public calls.

    Args:
        page: collects the metrics.
        calls: what is answered about the whole server.
    """

    async def metrics(request: Request) -> Response:
        content, kind = (await page()).render(request.headers.get("accept", ""))
        return Response(content, headers={"content-type": kind})

    async def live(request: Request) -> JSONResponse:
        return JSONResponse({"live": True})

    async def call(request: Request) -> Response:
        return await answer_call(calls, request)

    return [
        Route("/live", live),
        Route("/metrics", metrics),
        Route("/v1/{path:path}", call, methods=["GET"]),
        Route("/v2/{path:path}", call, methods=["GET", "POST"]),
    ]


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
