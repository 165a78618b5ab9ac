"""``tidegate serve``: one controller in the foreground, until a signal."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from pathlib import Path

from tidegate.config.node import NodeConfig
from tidegate.config.node_tls import with_whole_paths
from tidegate.controller.admin import AdminServer
from tidegate.controller.admin_grpc import AdminGrpc
from tidegate.controller.life import LOOPBACK, Signals, address, free_port, listen, write_log
from tidegate.controller.run_directory import RunDirectory, base_directory, log_settings
from tidegate.errors import AddressInUse
from tidegate.node.admin import application, shown_address
from tidegate.node.controller import Controller


def serve(repository: Path, config: NodeConfig, announce: Callable[[str], None]) -> None:
    """Serve ``repository`` until SIGTERM or SIGINT; then drain and end every process.

    Args:
        repository: The folder of models.
        config: The node's settings; port 0 becomes a free port.
        announce: Is told, in lines, what happens.

    Raises:
        TidegateError: the node cannot start; nothing of it is left running.
    """
    config = config.model_copy(update={"host": address(config.host)})
    if config.port == 0:
        config = config.model_copy(update={"port": free_port(config.host)})
    if config.admin_port == 0:
        config = config.model_copy(update={"admin_port": free_port(LOOPBACK)})
    config = with_whole_paths(config)
    directory = RunDirectory(base_directory(config.run_dir), config.port)
    written = logging.getLogger("tidegate.controller")

    def tell(line: str) -> None:
        announce(line)
        written.info("%s", line)

    asyncio.run(_serve(Controller(repository.resolve(), config, directory, tell)))


async def _serve(controller: Controller) -> None:
    signals = Signals(controller.hurry)
    config = controller.config
    # Before the ports: a live controller is named, and not one of the ports that it has.
    controller.directory.create()
    controller.directory.lock()
    write_log(controller.directory.controller_log, log_settings(config))
    try:
        admin_socket = listen(config.admin_port)
    except AddressInUse:
        controller.directory.unlock()
        raise
    with contextlib.closing(admin_socket):
        async with controller:
            async with AdminGrpc(controller.calls, controller.directory.admin_socket):
                admin = AdminServer(application(controller), controller.directory.admin_socket)
                serving = asyncio.create_task(admin.serve([admin_socket]))
                controller.announce(
                    f"serving {controller.repository} on {shown_address(config)}, "
                    f"admin on {LOOPBACK}:{config.admin_port}"
                )
                await signals.stop.wait()
                controller.announce("draining; a second Ctrl-C cuts what still runs")
                admin.should_exit = True
            await serving
    controller.announce("stopped")
