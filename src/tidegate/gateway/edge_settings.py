"""From a gateway's settings, and the files of certificates and keys, to its edge's settings."""

from __future__ import annotations

from tidegate.config.gateway import GatewayConfig
from tidegate.controller.machine import usable_cores, usable_memory
from tidegate.controller.run_directory import RunDirectory
from tidegate.edge.settings import EdgeSettings
from tidegate.edge.trust_files import Trust, rate_limits
from tidegate.protocols.registry import GATEWAY_ROUTINGS

_LEAST_MEMORY = 2**30


def edge_settings(config: GatewayConfig, directory: RunDirectory, trust: Trust) -> EdgeSettings:
    """Return the settings of the edge."""
    return EdgeSettings(
        host=config.host,
        port=config.port,
        controller_socket=str(directory.api_socket),
        max_message_size=config.max_message_size,
        retry_size=config.retry_size,
        forwarded_for=config.forwarded_for,
        access_log=directory.access_log if config.access_log else None,
        drain_timeout=config.drain_timeout,
        idle_timeout=config.idle_timeout,
        threads=config.envoy_threads or max(1, int(usable_cores())),
        heap_size=config.envoy_memory or max(_LEAST_MEMORY, usable_memory() // 8),
        envoy=config.envoy,
        origins=config.allowed_origins or (),
        gateway=True,
        load_reports=True,
        routings=GATEWAY_ROUTINGS,
        tls=trust.tls,
        upstream_tls=trust.upstream_tls,
        api_keys=trust.api_keys,
        limits=rate_limits(config.rate_limits),
    )
