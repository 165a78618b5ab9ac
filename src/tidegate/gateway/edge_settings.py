"""From a gateway's settings, and the files of certificates and keys, to its edge's settings."""

from __future__ import annotations

from dataclasses import replace

from tidegate.config.gateway import GatewayConfig
from tidegate.controller.edge_settings import common_settings
from tidegate.controller.machine import usable_memory
from tidegate.controller.run_directory import RunDirectory
from tidegate.edge.settings import EdgeSettings
from tidegate.edge.trust_files import Trust, rate_limits
from tidegate.protocols.registry import GATEWAY_ROUTINGS

_LEAST_MEMORY = 2**30


def edge_settings(config: GatewayConfig, directory: RunDirectory, trust: Trust) -> EdgeSettings:
    """Return the settings of the edge."""
    return replace(
        common_settings(config, directory, trust.tls),
        retry_size=config.retry_size,
        forwarded_for=config.forwarded_for,
        heap_size=config.envoy_memory or max(_LEAST_MEMORY, usable_memory() // 8),
        gateway=True,
        load_reports=True,
        routings=GATEWAY_ROUTINGS,
        upstream_tls=trust.upstream_tls,
        api_keys=trust.api_keys,
        limits=rate_limits(config.rate_limits),
    )
