"""The admin API, on loopback: what runs on this node, in JSON.

gRPC comes by the same port; see :mod:`tidegate.controller.admin_grpc`.
"""

from __future__ import annotations

import contextlib
from typing import Any

import psutil
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from tidegate import __version__
from tidegate.config.addresses import join_address
from tidegate.config.node import NodeConfig
from tidegate.controller.admin import not_for_pages, shared_routes
from tidegate.node.controller import Controller
from tidegate.node.fleet import Generation, Replica
from tidegate.node.metrics import Metrics


def status_of(controller: Controller) -> dict[str, Any]:
    """Return the state of the node, its models, their versions and replicas."""
    config = controller.config
    return {
        "version": __version__,
        "repository": str(controller.repository),
        "address": shown_address(config),
        "admin_port": config.admin_port,
        "run_dir": str(controller.directory.path),
        "ready": controller.ready,
        "edge": {"pid": controller.edge.process.pid, "ready": controller.edge_ready},
        "gateways": controller.joining.describe(),
        "models": [_model(controller, name) for name in sorted(controller.fleet.models)],
        "problems": [
            *([controller.trust.problem] if controller.trust.problem else ()),
            *(str(problem) for problem in controller.found.problems),
        ],
    }


def shown_address(config: NodeConfig) -> str:
    """Return where a node listens, as people are told."""
    scheme = "" if config.tls_certificate is None else "https://"
    return scheme + join_address(config.host, config.port)


def _model(controller: Controller, name: str) -> dict[str, Any]:
    fleet = controller.fleet
    default = fleet.default(name)
    state = fleet.state(name)
    return {
        "name": name,
        "state": state,
        "default_version": default.version if default is not None else None,
        "reason": None if state == "ready" else fleet.reason(name),
        "versions": [
            _version(generation)
            for generation in sorted(fleet.generations(name), key=lambda g: g.version)
        ],
        "problems": [str(problem) for problem in fleet.models[name].problems],
    }


def _version(generation: Generation) -> dict[str, Any]:
    state = "ready" if generation.ready and generation.live else "loading"
    if generation.failure is not None:
        state = "failed"
    elif generation.live and not generation.desired:
        state = "being replaced"
    return {
        "version": generation.version,
        "state": state,
        "reason": generation.failure,
        "runtime": generation.entry.runtime,
        "environment": generation.config.environment,
        "path": str(generation.entry.path),
        "replicas": [_replica(r) for r in generation.replicas.values()],
    }


def _replica(replica: Replica) -> dict[str, Any]:
    memory = None
    if replica.pid is not None:
        with contextlib.suppress(psutil.Error):
            memory = psutil.Process(replica.pid).memory_info().rss
    return {
        "index": replica.index,
        "state": replica.state.value,
        "pid": replica.pid,
        "restarts": replica.restarts,
        "memory_bytes": memory,
        "device": replica.ready.device if replica.ready is not None else None,
        "python": replica.ready.python if replica.ready is not None else None,
        "max_batch_size": replica.ready.max_batch_size if replica.ready is not None else None,
    }


def application(controller: Controller) -> Starlette:
    """Return the admin API of a node."""

    async def status(request: Request) -> JSONResponse:
        return JSONResponse(status_of(controller))

    page = Metrics(controller).page
    return Starlette(
        routes=[Route("/status", not_for_pages(status)), *shared_routes(page, controller.calls)]
    )
