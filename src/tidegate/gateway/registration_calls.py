"""The calls of a gateway's admin port by which nodes join and leave: ``/nodes``."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
from collections.abc import Awaitable, Callable
from functools import wraps

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tidegate.clock import Clock
from tidegate.controller.admin import body_of, refusal, refuse_pages
from tidegate.controller.machine import is_from_here
from tidegate.errors import (
    Cancelled,
    DeadlineExceeded,
    MethodNotAllowed,
    ModelNotFound,
    PermissionDenied,
    TidegateError,
    Unauthenticated,
)
from tidegate.gateway.own_places import OwnPlaces
from tidegate.gateway.registry import MOST_NODES, Registry
from tidegate.protocols.open_inference.rest import encode_error
from tidegate.protocols.registration import (
    PATH,
    Announcement,
    decode_announcement,
    encode_grant,
    read_instance,
    read_name,
)
from tidegate.protocols.statuses import status_of
from tidegate.replica.exchange import headers_of

log = logging.getLogger(__name__)

PATIENCE = 5.0
"""Seconds that a body may take to come, and the edge to be told."""
_WHILE_RENEWING = 1.0
"""Seconds for which the answer to an announcement waits for the edge; nodes wait for a few."""

_METHODS = ("GET", "PUT", "DELETE")
_Answer = Callable[[Request], Awaitable[Response]]


def registration_routes(
    registry: Registry,
    token: Callable[[], str | None],
    clock: Clock,
    changed: Callable[[], None],
    applied: Callable[[], Awaitable[object]],
    own: OwnPlaces,
) -> list[Route]:
    """Return the routes for a gateway's admin application.

    Args:
        registry: Where nodes are kept.
        token: Returns what callers must show, as ``authorization: Bearer …``; ``None``: nothing.
            Without a token, pages in browsers are refused as the rest of the admin API does.
        clock: The time that the registry is told.
        changed: Called when endpoints have changed, before there is an answer.
        applied: Waits until the edge has been told of all changes so far: who leaves gets its
            answer only then.
        own: Where the gateway itself listens: that is no node's.
    """
    calls = _Calls(registry, clock, changed, applied, own)
    return [
        Route(PATH, _guarded(token, calls.listing), methods=list(_METHODS)),
        Route(PATH + "/{name:path}", _guarded(token, calls.node), methods=list(_METHODS)),
    ]


def no_registration_routes() -> list[Route]:
    """Return the routes of a gateway that lets no nodes join: they say so."""

    async def refuse(request: Request) -> Response:
        return refusal(
            PermissionDenied(
                "this gateway lets no nodes join: write 'registration: {}' into its gateway.yaml, "
                "and start it again"
            )
        )

    paths = (PATH, PATH + "/{name:path}")
    return [Route(path, refuse, methods=list(_METHODS)) for path in paths]


class _Calls:
    def __init__(
        self,
        registry: Registry,
        clock: Clock,
        changed: Callable[[], None],
        applied: Callable[[], Awaitable[object]],
        own: OwnPlaces,
    ) -> None:
        self._registry = registry
        self._clock = clock
        self._changed = changed
        self._applied = applied
        self._own = own
        self._said: dict[str, tuple[bytes, Announcement]] = {}
        """What each node said last, by a digest of its bytes."""

    async def listing(self, request: Request) -> Response:
        """All nodes."""
        if request.method not in ("GET", "HEAD"):
            raise MethodNotAllowed(f"{PATH} takes GET, not {request.method}", ("GET",))
        return JSONResponse({"nodes": self._registry.describe(self._clock.now())})

    async def node(self, request: Request) -> Response:
        """One node: announce it, look at it, or take it back."""
        # As it came: an escaped slash is part of a name, and no name has one.
        raw = request.scope["raw_path"].decode("latin-1").partition("?")[0]
        name = read_name(raw.removeprefix(PATH + "/"))
        if request.method == "PUT":
            return await self._register(request, name)
        if request.method == "DELETE":
            return await self._leave(request, name)
        found = self._registry.describe_node(name, self._clock.now())
        if found is None:
            raise ModelNotFound(f"no node {name} is known; it is announced by PUT")
        return JSONResponse(found)

    async def _register(self, request: Request, name: str) -> Response:
        from_here = is_from_here(request.scope.get("client"), request.scope.get("server"))
        said = self._read(name, await _body(request), from_here)
        before = self._registry.revision
        grant = self._registry.register(name, said, self._clock.now())
        if self._registry.revision != before:
            ready = sum(model.ready for model in said.models)
            log.info("node %s: %d model%s ready", name, ready, "" if ready == 1 else "s")
            self._changed()
            # Who takes something back relies on it when it has its answer.
            await self._published(_WHILE_RENEWING)
        return Response(encode_grant(grant), media_type="application/json")

    def _read(self, name: str, body: bytes, from_here: bool) -> Announcement:
        """Read an announcement; most only renew the one before, and reading takes the longest."""
        digest = hashlib.blake2b(body, digest_size=16, person=b"%d" % from_here).digest()
        before = self._said.get(name)
        if before is not None and before[0] == digest:
            return before[1]
        said = decode_announcement(body)
        self._own.check_announced(said.address, from_here=from_here)
        if len(self._said) >= MOST_NODES:
            self._said.clear()
        self._said[name] = digest, said
        return said

    async def _leave(self, request: Request, name: str) -> Response:
        instance = read_instance(request.query_params.get("instance", "")[:256])
        self._said.pop(name, None)
        known = self._registry.leave(name, self._clock.now(), instance)
        published = True
        if known:
            log.info("node %s leaves", name)
            self._changed()
            published = await self._published(PATIENCE)
            if not published:
                # Who leaves has no more to wait for; health checks see that it drains.
                log.warning("%s leaves, and the edge has not been told in time", name)
        return JSONResponse({"known": known, "published": published})

    async def _published(self, timeout: float) -> bool:
        """Wait until the edge knows of all changes, or not for longer; say which."""
        try:
            await asyncio.wait_for(self._applied(), timeout)
        except TimeoutError:
            return False
        return True


def _guarded(token: Callable[[], str | None], answer: _Answer) -> _Answer:
    @wraps(answer)
    async def guarded(request: Request) -> Response:
        try:
            admit(request, token())
            return await answer(request)
        except TidegateError as error:
            headers = {name.decode(): value.decode() for name, value in headers_of(error)}
            if isinstance(error, Unauthenticated):
                headers["www-authenticate"] = "Bearer"  # RFC 9110, section 11.6.1
            return Response(
                encode_error(str(error)),
                status_of(error).http,
                headers,
                media_type="application/json",
            )

    return guarded


def admit(request: Request, token: str | None) -> None:
    """Let in who shows the token; without one, whoever is no page in a browser.

    Raises:
        TidegateError: it is somebody else.
    """
    if token is None:
        refuse_pages(request)
        return
    # No page of another site knows the token, by whatever name it reaches this port.
    scheme, _, shown = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not shown:
        raise Unauthenticated(
            "show the gateway's token, as 'authorization: Bearer TOKEN'; nodes are given it by "
            "join_token_file"
        )
    if not hmac.compare_digest(shown.strip().encode(), token.encode()):
        raise Unauthenticated(
            "the token is not that of this gateway: give the node the same join_token_file as "
            "the gateway has"
        )


async def _body(request: Request) -> bytes:
    try:
        async with asyncio.timeout(PATIENCE):
            return await body_of(request)
    except TimeoutError:
        raise DeadlineExceeded(
            f"the rest of the announcement did not come within {PATIENCE:g} s"
        ) from None
    except ClientDisconnect:
        raise Cancelled("the node went away before its announcement was whole") from None
