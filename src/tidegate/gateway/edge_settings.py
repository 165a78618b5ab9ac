"""From a gateway's settings to its edge's, with all that must be read from files for that."""

from __future__ import annotations

from tidegate.config.gateway import GatewayConfig
from tidegate.controller.machine import usable_cores
from tidegate.controller.run_directory import RunDirectory
from tidegate.edge.settings import EdgeSettings


def edge_settings(config: GatewayConfig, directory: RunDirectory) -> EdgeSettings:
    """Return the settings of the edge.

    Raises:
        ConfigurationError: a certificate, a key or a file of keys is of no use.
    """
    return EdgeSettings(
        host=config.host,
        port=config.port,
        controller_socket=str(directory.api_socket),
        max_message_size=config.max_message_size,
        access_log=directory.access_log if config.access_log else None,
        drain_timeout=config.drain_timeout,
        idle_timeout=config.idle_timeout,
        threads=config.envoy_threads or max(1, int(usable_cores())),
        envoy=config.envoy,
        origins=config.allowed_origins or (),
    )
