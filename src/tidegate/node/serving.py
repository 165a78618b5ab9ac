"""``tidegate serve``: one controller in the foreground, until a signal."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from tidegate.config.addresses import join_address
from tidegate.config.node import NodeConfig
from tidegate.config.node_tls import with_whole_paths
from tidegate.controller.foreground import run
from tidegate.controller.life import LOOPBACK, address, free_port
from tidegate.controller.run_directory import RunDirectory, base_directory, log_settings
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

    controller = Controller(repository.resolve(), config, directory, tell)
    admin = (LOOPBACK, config.admin_port)
    asyncio.run(
        run(
            controller,
            controller.calls,
            application,
            admin,
            log_settings(config),
            lambda: (
                f"serving {controller.repository} on {shown_address(config)}, "
                f"admin on {join_address(*admin)}"
            ),
        )
    )
