"""A gateway's edge with fake servers over TCP, and what they got."""

from __future__ import annotations

import contextlib
import unittest.mock
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

from envoy.config.cluster.v3 import cluster_pb2

from tests.edge.fake_replica import FakeReplica
from tests.edge.harness import Edge, edge_settings
from tidegate.edge import control, names
from tidegate.edge.ads import CLUSTERS, ENDPOINTS, LISTENERS, ROUTES, SECRETS, Snapshot
from tidegate.edge.clusters import _cluster, controller_cluster
from tidegate.edge.gateway_routes import gateway_route_configuration
from tidegate.edge.listener import client_listener
from tidegate.edge.messages import packed
from tidegate.edge.names import CONTROLLER_CLUSTER, LISTENER
from tidegate.edge.plan import Plan
from tidegate.edge.pools import (
    GatewayTopology,
    HeaderPool,
    Pool,
    Protocol,
    RoutedModel,
    Server,
    TrafficPolicy,
)
from tidegate.edge.settings import EdgeSettings
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
            fake = FakeReplica("127.0.0.1:0", name)
            await self.stack.enter_async_context(fake)
            self.replicas[name] = fake
        address = self.replicas[name].socket
        known = {"versions", "labels"} & more.keys()
        more |= {key: frozenset(more[key]) for key in known}
        elsewhere = rest and protocol != "tidegate"
        return Server(address, protocol, address if elsewhere else None, name=name, **more)

    async def pool(self, name: str, *servers: str, **more: Any) -> Pool:
        return Pool(name, tuple([await self.server(each, **more) for each in servers]))

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
            name, Pool(name, servers), TrafficPolicy(**traffic), canary, mirror, headers
        )

    def gateway_topology(self) -> GatewayTopology:
        return GatewayTopology(self.models, self.ready, self.metadata, self.tasks)

    async def publish(self) -> None:
        topology = self.gateway_topology()
        with unittest.mock.patch.object(control, "snapshot_of", _snapshot):
            await self.control.publish(cast("Any", topology), self.settings)
            await self.control.wait_acknowledged()

    async def controller(self) -> FakeReplica:
        """Start the controller's fake."""
        if "controller" not in self.replicas:
            fake = FakeReplica(self.settings.controller_socket, "controller")
            await self.stack.enter_async_context(fake)
            self.replicas["controller"] = fake
        return self.replicas["controller"]


def _snapshot(topology: GatewayTopology, settings: EdgeSettings) -> Snapshot:
    clusters = {CONTROLLER_CLUSTER: packed(controller_cluster(settings.controller_socket))}
    for name, planned in Plan(topology).clusters.items():
        cluster = _cluster(name, http2=not planned.rest)
        cluster.type = cluster_pb2.Cluster.STATIC
        cluster.load_assignment.cluster_name = name
        for server in planned.servers:
            locality = cluster.load_assignment.endpoints.add(priority=server.priority)
            place = locality.lb_endpoints.add().endpoint.address.socket_address
            host, _, port = planned.place(server).rpartition(":")
            place.address, place.port_value = host, int(port)
        clusters[name] = packed(cluster)
    routes = gateway_route_configuration(topology, settings)
    listener = client_listener(settings)
    return Snapshot(
        {
            CLUSTERS: clusters,
            ENDPOINTS: {},
            SECRETS: {},
            LISTENERS: {LISTENER: packed(listener)},
            ROUTES: {names.ROUTES: packed(routes)},
        }
    )


@contextlib.asynccontextmanager
async def running_gateway(run_dir: Path, **settings: Any) -> AsyncIterator[GatewayEdge]:
    edge = GatewayEdge(run_dir, **settings)
    async with edge:
        yield edge
