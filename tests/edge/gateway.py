"""A gateway's edge with fake servers over TCP, and what they got."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.edge.fake_replica import FakeReplica
from tests.edge.fake_server import FakeServer
from tests.edge.harness import Edge, edge_settings
from tidegate.edge import server_clusters
from tidegate.edge.pools import (
    GatewayTopology,
    HeaderPool,
    Pool,
    Protocol,
    RoutedModel,
    Server,
    Servers,
    TrafficPolicy,
)
from tidegate.protocols.registry import GATEWAY_ROUTINGS


class GatewayEdge(Edge):
    """An Envoy that is configured as a gateway's."""

    def __init__(self, run_dir: Path, **settings: Any) -> None:
        changes = {"routings": GATEWAY_ROUTINGS, "gateway": True, **settings}
        super().__init__(run_dir, edge_settings(run_dir, **changes))
        self.models: dict[str, RoutedModel] = {}

    async def server(
        self, name: str, protocol: Protocol = "tidegate", *, rest: bool = True, **more: Any
    ) -> Server:
        """Start a fake server, or take the one that runs, and return it for a pool."""
        if name not in self.replicas:
            fake = FakeServer(name)
            await self.stack.enter_async_context(fake)
            self.replicas[name] = fake
        address = self.replicas[name].socket
        known = {"versions", "labels"} & more.keys()
        more |= {key: frozenset(more[key]) for key in known}
        elsewhere = rest and protocol != "tidegate"
        return Server(address, protocol, address if elsewhere else None, name=name, **more)

    async def pool(self, name: str, *servers: str, **more: Any) -> Pool:
        return Pool(name, Servers([await self.server(each, **more) for each in servers]))

    async def model(
        self,
        name: str,
        *servers: Server,
        canary: tuple[float, Pool] | None = None,
        mirror: tuple[float, Pool] | None = None,
        headers: tuple[HeaderPool, ...] = (),
        **traffic: Any,
    ) -> None:
        """Add a model, or replace it; :meth:`publish` makes it known."""
        self.models[name] = RoutedModel(
            name, Pool(name, Servers(servers)), TrafficPolicy(**traffic), canary, mirror, headers
        )

    def topology(self) -> GatewayTopology:  # type: ignore[override]
        return GatewayTopology(self.models, self.ready, self.metadata, self.tasks)

    async def controller(self) -> FakeReplica:
        """Start the controller's fake."""
        if "controller" not in self.replicas:
            fake = FakeReplica(self.settings.controller_socket, "controller")
            await self.stack.enter_async_context(fake)
            self.replicas["controller"] = fake
        return self.replicas["controller"]


@contextlib.asynccontextmanager
async def running_gateway(
    run_dir: Path, *, patient: bool = True, **settings: Any
) -> AsyncIterator[GatewayEdge]:
    """Run one; if it is patient, it takes no server for dead that is slow to answer a ping.

    A node's edge is never so slow, but a server that is written in Python, on a busy machine.
    """
    with pytest.MonkeyPatch.context() as patch:
        if patient:
            patch.setattr(server_clusters, "_PING_TIMEOUT", 60.0)
        edge = GatewayEdge(run_dir, **settings)
        async with edge:
            yield edge
