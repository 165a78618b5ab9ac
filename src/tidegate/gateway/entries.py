"""From entries of ``gateway.yaml`` to the sources that find their endpoints."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial

from tidegate.config.addresses import is_numeric, split_address
from tidegate.config.gateway import Endpoints, GatewayConfig, Kubernetes, Protocol
from tidegate.config.nodefile import NodefileTask
from tidegate.gateway.discovery.files import EndpointFile
from tidegate.gateway.discovery.kubernetes import EndpointSlices, of_service
from tidegate.gateway.discovery.kubernetes_api import Cluster
from tidegate.gateway.discovery.lookup import Resolver
from tidegate.gateway.discovery.names import HostAddresses, ServiceEndpoints
from tidegate.gateway.discovery.source import Source
from tidegate.gateway.endpoints import Endpoint, Traits
from tidegate.gateway.models import Task


def source_of(entry: Endpoints) -> Source | tuple[Endpoint, ...]:
    """Return what finds the endpoints of an entry, or the one endpoint that never changes."""
    traits = Traits(
        protocol=entry.protocol,
        rest_port=entry.rest,
        weight=entry.weight,
        priority=entry.priority,
        versions=None if entry.versions is None else frozenset(entry.versions),
        secure=entry.tls is True,
    )
    if entry.file is not None:
        return EndpointFile(entry.file, traits)
    if entry.srv is not None:
        return ServiceEndpoints(entry.srv, traits, Resolver(entry.nameservers))
    if entry.kubernetes is not None:
        said = entry.kubernetes
        selector = said.selector if said.service is None else of_service(said.service)
        assert selector is not None
        return EndpointSlices(partial(cluster_of, said, os.environ), selector, said.port, traits)
    assert entry.address is not None
    host, port = split_address(entry.address)
    if not is_numeric(host):
        return HostAddresses(entry.address, traits, Resolver(entry.nameservers))
    return (traits.at(host, port, name=host),)


def cluster_of(entry: Kubernetes, environ: Mapping[str, str]) -> Cluster:
    """Return where the API server of an entry is.

    The token of the gateway's own service account is for its own cluster, and shown to no other.

    Raises:
        ConfigurationError: the entry does not say, and the gateway runs in no cluster.
    """
    if entry.api_server is not None:
        space = entry.namespace or "default"
        return Cluster(entry.api_server, space, entry.token_file, entry.ca_file)
    own = Cluster.own(environ, entry.namespace)
    return replace(
        own,
        token_file=entry.token_file or own.token_file,
        ca_file=entry.ca_file or own.ca_file,
    )


def nodefile_tasks(tasks: Iterable[NodefileTask], protocol: Protocol) -> dict[str, Task]:
    """Return the tasks of a nodefile, their addresses as entries of ``gateway.yaml`` would be."""
    return {
        task.task: Task(
            task.timeout,
            tuple(Endpoints(address=address, protocol=protocol) for address in task.addresses),
        )
        for task in tasks
    }


def entries_of(config: GatewayConfig, tasks: Mapping[str, Task]) -> set[Endpoints]:
    """Return everything that tells of endpoints."""
    found: set[Endpoints] = set()
    for model in config.models.values():
        found.update(model.endpoints)
        for part in (model.canary, model.mirror, *model.headers):
            if part is not None:
                found.update(part.endpoints)
    for task in tasks.values():
        found.update(task.endpoints)
    return found
