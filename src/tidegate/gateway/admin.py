"""The admin API of a gateway: what it knows of each endpoint and what it decided, in JSON."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from tidegate import __version__
from tidegate.balancing.verdict import Verdict
from tidegate.config.addresses import join_address
from tidegate.config.gateway import GatewayConfig
from tidegate.controller.admin import not_for_pages, refusal, shared_routes
from tidegate.controller.machine import is_from_here
from tidegate.errors import ConfigurationError, PermissionDenied, TidegateError
from tidegate.gateway.controller import GatewayController
from tidegate.gateway.health import Feeling
from tidegate.gateway.metrics import Metrics
from tidegate.gateway.models import ModelMembers, PoolMembers
from tidegate.gateway.registration_calls import (
    admit,
    no_registration_routes,
    registration_routes,
)
from tidegate.protocols.registration import PATH

_OPEN = ("/live", "/metrics")
"""What other machines are told without a token."""

_SEEN: Mapping[Feeling, str] = {
    "unhealthy": "does not pass the edge's health checks",
    "unchecked": "has not passed its first health check yet",
    "broken off": "left alone for a moment: it broke off or could not be reached",
}


def check_reach(config: GatewayConfig) -> None:
    """Make sure that nodes must say who they are, where others can reach the admin API.

    Raises:
        ConfigurationError: they need not.
    """
    if config.registration is None or config.registration.token_file is not None:
        return
    try:
        loopback = ipaddress.ip_address(config.admin_host).is_loopback
    except ValueError:
        loopback = config.admin_host == "localhost"
    if not loopback:
        raise ConfigurationError(
            f"admin_host: {config.admin_host} lets others reach the admin API, so nodes that join "
            "must know a token: give registration.token_file a file (0600) with one"
        )


def status_of(controller: GatewayController, *, details: bool = False) -> dict[str, Any]:
    """Return the state of the gateway, its models and their endpoints.

    ``details`` adds what went into each decision.
    """
    config = controller.config
    return {
        "kind": "gateway",
        "version": __version__,
        "file": str(controller.file),
        "address": join_address(config.host, config.port),
        "admin": join_address(config.admin_host, config.admin_port),
        "admin_port": config.admin_port,
        "run_dir": str(controller.directory.path),
        "ready": controller.ready,
        "edge": {"pid": controller.edge.process.pid},
        "generation": controller.settings.generation,
        "problem": controller.settings.problem or controller.problem,
        "sources": controller.sources_state(),
        "nodes": controller.registry.describe(controller.clock.now()),
        "models": [
            _model(controller, controller.members[name], details=details)
            for name in sorted(controller.members)
        ],
    }


def _model(controller: GatewayController, model: ModelMembers, *, details: bool) -> dict[str, Any]:
    return {
        "name": model.name,
        "tasks": sorted(task for task, name in controller.tasks.items() if name == model.name),
        "canary_percent": None if model.canary is None else model.canary[0],
        "mirror_percent": None if model.mirror is None else model.mirror[0],
        "pools": [_pool(controller, pool, details=details) for pool in model.pools],
    }


def _pool(controller: GatewayController, pool: PoolMembers, *, details: bool) -> dict[str, Any]:
    calls = controller.calls
    verdicts = controller.balancers.verdicts(pool.name, controller.clock.now())
    health = calls.endpoint_health
    without = health.not_asked(pool.name, (e.address for e in pool.endpoints))
    shares = controller.balancers.shares(pool, controller.clock.now(), without)
    endpoints = []
    for endpoint in pool.endpoints:
        feeling = health.of(pool.name, endpoint.address)
        verdict = verdicts[endpoint.address]
        sums = calls.figures.of(pool.name, endpoint.address)
        endpoints.append(
            {
                "address": endpoint.address,
                "name": endpoint.name,
                "protocol": endpoint.protocol,
                "priority": endpoint.priority,
                "versions": None if endpoint.versions is None else sorted(endpoint.versions),
                "weight": endpoint.weight,
                "share": shares[endpoint.address],
                "state": verdict.state,
                "reason": _reason(
                    verdict,
                    feeling,
                    health.only(pool.name, endpoint.address),
                    calls.tls_troubles.of(endpoint),
                ),
                "health": feeling,
                "in_flight": sums.in_flight,
                "succeeded": sums.succeeded,
                "failed": sums.failed,
                "cancelled": sums.cancelled,
                **({"verdict": asdict(verdict)} if details else {}),
            }
        )
    return {"name": pool.name, "endpoints": endpoints}


def _reason(verdict: Verdict, feeling: Feeling, only: str, trouble: str) -> str:
    """Say why an endpoint gets what it gets: what the edge sees goes before what is decided."""
    seen = _SEEN.get(feeling)
    if seen is not None and trouble:
        return trouble
    if seen is not None and only:
        seen = f"{seen} over {only}, gets {'gRPC' if only == 'REST' else 'REST'} calls alone"
    if seen is None or verdict.state == "ejected":
        return verdict.reason
    return seen if verdict.state == "new" else f"{seen}; {verdict.reason}"


class Guard:
    """Keeps other machines out that do not show the token, but for what probes ask.

    The calls of nodes look at the token themselves, wherever they come from.
    """

    def __init__(self, app: ASGIApp, token: Callable[[], str | None]) -> None:
        self._app = app
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        answer = self._app
        if scope["type"] == "http" and not self._is_open(scope):
            try:
                self._admit(Request(scope))
            except TidegateError as error:
                answer = refusal(error)
        await answer(scope, receive, send)

    @staticmethod
    def _is_open(scope: Scope) -> bool:
        path = scope["path"]
        return (
            path in _OPEN
            or path == PATH
            or path.startswith(PATH + "/")
            or is_from_here(scope.get("client"), scope.get("server"))
        )

    def _admit(self, request: Request) -> None:
        token = self._token()
        if token is None:
            raise PermissionDenied(
                "other machines are told /live and /metrics alone: give registration.token_file a "
                "file with a token, and show that"
            )
        admit(request, token)


def application(controller: GatewayController) -> Starlette:
    """Return the admin API of a gateway."""

    async def status(request: Request) -> JSONResponse:
        await controller.calls.look_closely()
        return JSONResponse(status_of(controller))

    async def balancing(request: Request) -> JSONResponse:
        await controller.calls.look_closely()
        return JSONResponse(status_of(controller, details=True)["models"])

    registration = (
        no_registration_routes()
        if controller.config.registration is None
        else registration_routes(
            controller.registry,
            controller.token,
            controller.clock,
            controller.joined,
            controller.applied,
            controller.own_places,
        )
    )
    return Starlette(
        routes=[
            Route("/status", not_for_pages(status)),
            Route("/debug/balancing", not_for_pages(balancing)),
            *registration,
            *shared_routes(Metrics(controller).page, controller.calls.server),
        ],
        middleware=[Middleware(Guard, controller.token)],
    )
