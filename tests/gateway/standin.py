"""The admin port of a gateway, without an edge: real calls and registry, and faults on demand."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path

from starlette.applications import Starlette
from starlette.types import ASGIApp, Receive, Scope, Send

from tests.ports import free_port
from tidegate.clock import MonotonicClock
from tidegate.controller.admin import AdminServer
from tidegate.gateway.own_places import OwnPlaces
from tidegate.gateway.registration_calls import registration_routes
from tidegate.gateway.registry import Registry

OWN = OwnPlaces([("127.0.0.1", 7001), ("::1", 7002)], MonotonicClock())
"""Where the gateway says that it listens."""


class GatewayStandIn:
    """``async with`` listens on loopback; ``stop()`` and ``start()`` do that again on its port."""

    def __init__(self, lease: float = 5.0, tls: tuple[Path, Path] | None = None) -> None:
        self._lease = lease
        self.registry = Registry(lease)
        self.token: str | None = None
        self.calls: list[str] = []
        """What came, as ``PUT /nodes/…``."""
        self.changes = 0
        self.applied = asyncio.Event()
        """Whether the edge, if there were one, has been told."""
        self.applied.set()
        self.answering = asyncio.Event()
        """While it is not set, calls hang."""
        self.answering.set()
        self.fault: int | None = None
        """A status that all calls get."""
        self._tls = tls
        self.port = free_port()

    @property
    def url(self) -> str:
        return f"http{'s' if self._tls else ''}://127.0.0.1:{self.port}"

    async def __aenter__(self) -> GatewayStandIn:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.answering.set()
        self.applied.set()
        await self.stop()

    async def start(self) -> None:
        routes = registration_routes(
            self.registry,
            lambda: self.token,
            MonotonicClock(),
            self._change,
            self.applied.wait,
            OWN,
        )
        self._socket = socket.create_server(("127.0.0.1", self.port))
        self._server = AdminServer(self._faulty(Starlette(routes=routes)), Path("/nowhere"))  # type: ignore[arg-type]
        if self._tls is not None:
            self._server.config.ssl_certfile, self._server.config.ssl_keyfile = self._tls
        self._serving = asyncio.create_task(self._server.serve([self._socket]))
        while not self._server.started:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.005)

    async def stop(self) -> None:
        self._server.should_exit = True
        self._server.force_exit = True
        await self._serving
        self._socket.close()

    def _change(self) -> None:
        self.changes += 1

    def _faulty(self, application: ASGIApp) -> ASGIApp:
        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            self.calls.append(f"{scope['method']} {scope['path']}")
            await self.answering.wait()
            if self.fault is None:
                await application(scope, receive, send)
            else:
                await send({"type": "http.response.start", "status": self.fault, "headers": []})
                await send({"type": "http.response.body", "body": b'{"error": "a fault"}'})

        return answer

    async def until(self, condition: Callable[[], object], timeout: float = 60.0) -> None:
        """Wait until ``condition`` holds."""
        async with asyncio.timeout(timeout):
            while not condition():  # noqa: ASYNC110 - what is waited for has no event
                await asyncio.sleep(0.005)

    def now(self) -> float:
        """The time that the registry is told."""
        return MonotonicClock.now()

    def forget(self) -> None:
        """Know nobody any more; between :meth:`stop` and :meth:`start`."""
        self.registry = Registry(self._lease)

    def addresses(self, model: str) -> list[str]:
        """Where ``model`` is, as far as nodes have said."""
        found = self.registry.models(self.now())
        return [endpoint.address for endpoint in found.get(model, ())]
