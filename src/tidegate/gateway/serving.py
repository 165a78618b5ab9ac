"""``tidegate gateway``: one controller in the foreground, until a signal."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Callable
from pathlib import Path

from tidegate.config.addresses import join_address
from tidegate.config.gateway import GatewayConfig
from tidegate.controller.foreground import run
from tidegate.controller.life import address, free_port
from tidegate.controller.run_directory import RunDirectory, base_directory, log_settings
from tidegate.gateway.admin import application, check_reach
from tidegate.gateway.controller import GatewayController

_COLLECTIONS = (400_000, 20, 50)
"""Thousands of endpoints are hundreds of thousands of objects that stay: to look through them for
garbage as often as Python does by default would take as long as to read them."""


def serve_gateway(
    file: Path, read: Callable[[], GatewayConfig], announce: Callable[[str], None]
) -> None:
    """Serve what ``file`` says until SIGTERM or SIGINT; then drain and end the edge.

    Args:
        file: ``gateway.yaml``.
        read: reads the settings; called again whenever the file has changed.
        announce: is told, in lines, what happens.

    Raises:
        TidegateError: the gateway cannot start; nothing of it is left running.
    """
    gc.set_threshold(*_COLLECTIONS)
    ports: dict[str, object] = {}

    def settings() -> GatewayConfig:
        return read().model_copy(update=ports)

    config = settings()
    check_reach(config)
    ports["host"], ports["admin_host"] = address(config.host), address(config.admin_host)
    for key, host in (("port", "host"), ("admin_port", "admin_host")):
        if getattr(config, key) == 0:
            ports[key] = free_port(str(ports[host]))
    config = config.model_copy(update=ports)
    directory = RunDirectory(base_directory(config.run_dir), config.port)
    written = logging.getLogger("tidegate.controller")

    def tell(line: str) -> None:
        announce(line)
        written.info("%s", line)

    controller = GatewayController(file.resolve(), settings, config, directory, tell)
    admin = (config.admin_host, config.admin_port)
    asyncio.run(
        run(
            controller,
            controller.calls.server,
            application,
            admin,
            log_settings(config),
            lambda: (
                f"gateway of {controller.file} on {join_address(config.host, config.port)}, "
                f"admin on {join_address(*admin)}"
            ),
        )
    )
