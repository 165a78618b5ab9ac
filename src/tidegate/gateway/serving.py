"""``tidegate gateway``: one controller in the foreground, until a signal."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
from collections.abc import Callable
from pathlib import Path

from tidegate.config.addresses import join_address
from tidegate.config.gateway import GatewayConfig
from tidegate.controller.admin import AdminServer
from tidegate.controller.admin_grpc import AdminGrpc
from tidegate.controller.life import Signals, address, free_port, listen, write_log
from tidegate.controller.run_directory import RunDirectory, base_directory, log_settings
from tidegate.errors import AddressInUse, ConfigurationError
from tidegate.gateway.admin import application, check_reach
from tidegate.gateway.controller import GatewayController

_COLLECTIONS = (100_000, 20, 50)
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
    asyncio.run(_serve(controller))


async def _serve(controller: GatewayController) -> None:
    signals = Signals(controller.hurry)
    config = controller.config
    controller.directory.create()
    controller.directory.lock()
    write_log(controller.directory.controller_log, log_settings(config))
    try:
        admin_socket = listen(config.admin_port, config.admin_host)
    except (AddressInUse, ConfigurationError):
        controller.directory.unlock()
        raise
    with contextlib.closing(admin_socket):
        async with controller:
            async with AdminGrpc(controller.calls.server, controller.directory.admin_socket):
                admin = AdminServer(application(controller), controller.directory.admin_socket)
                serving = asyncio.create_task(admin.serve([admin_socket]))
                controller.announce(
                    f"gateway of {controller.file} on {join_address(config.host, config.port)}, "
                    f"admin on {join_address(config.admin_host, config.admin_port)}"
                )
                await signals.stop.wait()
                controller.announce("draining; a second Ctrl-C cuts what still runs")
                admin.should_exit = True
            await serving
    controller.announce("stopped")
