"""From entries of ``gateway.yaml`` to their endpoints, or to the sources that find them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import lru_cache, partial

from tidegate.config.addresses import is_numeric, join_address, split_address
from tidegate.config.endpoints import Endpoints, Kubernetes, Protocol
from tidegate.config.gateway import Canary, GatewayConfig, GatewayModel, HeaderRoute, Mirror
from tidegate.config.nodefile import NodefileTask
from tidegate.gateway.discovery.files import EndpointFile
from tidegate.gateway.discovery.kubernetes import EndpointSlices, of_service
from tidegate.gateway.discovery.kubernetes_api import Cluster
from tidegate.gateway.discovery.lookup import Resolver
from tidegate.gateway.discovery.names import HostAddresses, ServiceEndpoints
from tidegate.gateway.discovery.source import Source
from tidegate.gateway.endpoints import Endpoint, Traits
from tidegate.gateway.models import Task

_KNOWN = 2**16
"""Endpoints that are remembered."""


def fixed_endpoint(entry: Endpoints) -> Endpoint | None:
    """Return the endpoint of an entry that gives an IP address; ``None``: a source finds them.

    For the same entry it is the same object: there are thousands, and few change at a time.
    """
    if entry.address is None or (host := _fixed_host(entry.address)) is None:
        return None
    return _endpoint(
        host,
        entry.address,
        entry.protocol,
        entry.rest,
        entry.weight,
        entry.priority,
        entry.versions,
        entry.tls is True,
    )


@lru_cache(maxsize=_KNOWN)
def _fixed_host(address: str) -> str | None:
    host, _ = split_address(address)
    return host if is_numeric(host) else None


@lru_cache(maxsize=_KNOWN)
def _endpoint(
    host: str,
    address: str,
    protocol: Protocol,
    rest: int | None,
    weight: int,
    priority: int,
    versions: tuple[int, ...] | None,
    secure: bool,
) -> Endpoint:
    return Endpoint(
        address=address,
        protocol=protocol,
        rest=None if rest is None else join_address(host, rest),
        weight=weight,
        priority=priority,
        versions=None if versions is None else frozenset(versions),
        name=host,
        secure=secure,
    )


def source_of(entry: Endpoints) -> Source:
    """Return what finds the endpoints of an entry, if that is no :func:`fixed_endpoint`."""
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
    return HostAddresses(entry.address, traits, Resolver(entry.nameservers))


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
    """Return everything that tells of endpoints and may tell of others later."""
    parts: list[GatewayModel | Canary | Mirror | HeaderRoute | Task | None] = [*tasks.values()]
    for model in config.models.values():
        parts += (model, model.canary, model.mirror, *model.headers)
    return {
        entry
        for part in parts
        if part is not None
        for entry in part.endpoints
        if entry.address is None or _fixed_host(entry.address) is None
    }
