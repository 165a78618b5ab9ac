"""From the settings that nodes and gateways have in common to those of their edge."""

from __future__ import annotations

from tidegate.config.gateway import GatewayConfig
from tidegate.config.node import NodeConfig
from tidegate.controller.machine import usable_cores, usable_memory
from tidegate.controller.run_directory import RunDirectory
from tidegate.edge.settings import EdgeSettings, least_memory
from tidegate.edge.trust import ServerTls


def common_settings(
    config: NodeConfig | GatewayConfig, directory: RunDirectory, tls: ServerTls | None
) -> EdgeSettings:
    """Return the settings of an edge, as far as a node and a gateway do not differ in them."""
    return EdgeSettings(
        host=config.host,
        port=config.port,
        controller_socket=str(directory.api_socket),
        max_message_size=config.max_message_size,
        access_log=directory.access_log if config.access_log else None,
        drain_timeout=config.drain_timeout,
        idle_timeout=config.idle_timeout,
        threads=config.envoy_threads or max(1, int(usable_cores())),
        heap_size=max(least_memory(config.max_message_size), usable_memory() // 8),
        envoy=config.envoy,
        origins=config.allowed_origins or (),
        tls=tls,
    )
