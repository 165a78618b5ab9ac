"""From what a controller says to what Envoy is told: one pure function."""

from __future__ import annotations

from tidegate.edge.access import guard
from tidegate.edge.ads import CLUSTERS, ENDPOINTS, LISTENERS, ROUTES, RUNTIME, SECRETS, Snapshot
from tidegate.edge.aside import aside_listener
from tidegate.edge.clusters import controller_cluster, load_assignment, model_cluster
from tidegate.edge.listener import client_listener
from tidegate.edge.messages import packed
from tidegate.edge.names import ASIDE, CONTROLLER_CLUSTER, LISTENER, MODEL_PREFIX
from tidegate.edge.names import ROUTES as ROUTES_NAME
from tidegate.edge.routes import route_configuration
from tidegate.edge.settings import EdgeSettings
from tidegate.edge.tls import server_secrets
from tidegate.edge.topology import Topology


def snapshot_of(topology: Topology, settings: EdgeSettings) -> Snapshot:
    """Return all resources of an edge; equal arguments give equal bytes."""
    clusters = {CONTROLLER_CLUSTER: packed(controller_cluster(settings.controller_socket))}
    endpoints = {}
    for key, replicas in topology.clusters.items():
        name = MODEL_PREFIX + key
        clusters[name] = packed(model_cluster(name))
        endpoints[name] = packed(load_assignment(name, replicas))
    routes = route_configuration(topology, settings)
    if settings.api_keys is not None:
        guard(routes, settings.api_keys)
    return Snapshot(
        {
            CLUSTERS: clusters,
            ENDPOINTS: endpoints,
            LISTENERS: {
                LISTENER: packed(client_listener(settings)),
                ASIDE: packed(aside_listener(settings)),
            },
            ROUTES: {ROUTES_NAME: packed(routes)},
            SECRETS: server_secrets(settings.tls),
            RUNTIME: {},
        }
    )
