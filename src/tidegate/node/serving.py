"""``tidegate serve``: one controller in the foreground, until a signal."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import logging.handlers
import signal
import socket
from collections.abc import Callable
from pathlib import Path

from tidegate.config.node import NodeConfig
from tidegate.errors import AddressInUse, ConfigurationError
from tidegate.node.admin import AdminServer
from tidegate.node.admin_grpc import AdminGrpc
from tidegate.node.controller import Controller
from tidegate.node.machine import not_ours
from tidegate.node.run_directory import RunDirectory, base_directory, log_settings
from tidegate.telemetry.logs import LogSettings, configure

LOOPBACK = "127.0.0.1"
_SAME_SIGNAL = 0.5
"""Seconds within which a second signal is the first one, passed on by somebody else."""


def serve(repository: Path, config: NodeConfig, announce: Callable[[str], None]) -> None:
    """Serve ``repository`` until SIGTERM or SIGINT; then drain and end every process.

    Args:
        repository: The folder of models.
        config: The node's settings; port 0 becomes a free port.
        announce: Is told, in lines, what happens.

    Raises:
        TidegateError: the node cannot start; nothing of it is left running.
    """
    config = config.model_copy(update={"host": _address(config.host)})
    if config.port == 0:
        config = config.model_copy(update={"port": _free_port(config.host)})
    if config.admin_port == 0:
        config = config.model_copy(update={"admin_port": _free_port(LOOPBACK)})
    directory = RunDirectory(base_directory(config.run_dir), config.port)
    written = logging.getLogger("tidegate.controller")

    def tell(line: str) -> None:
        announce(line)
        written.info("%s", line)

    asyncio.run(_serve(Controller(repository.resolve(), config, directory, tell)))


async def _serve(controller: Controller) -> None:
    signals = _Signals(controller)
    config = controller.config
    # Before the ports: a live controller is named, and not one of the ports that it has.
    controller.directory.create()
    controller.directory.lock()
    _write_log(controller.directory.controller_log, log_settings(config))
    try:
        admin_socket = _listen(config.admin_port)
    except AddressInUse:
        controller.directory.unlock()
        raise
    with contextlib.closing(admin_socket):
        async with controller:
            async with AdminGrpc(controller.calls, controller.directory.admin_socket):
                admin = AdminServer(controller)
                serving = asyncio.create_task(admin.serve([admin_socket]))
                controller.announce(
                    f"serving {controller.repository} on {config.host}:{config.port}, "
                    f"admin on {LOOPBACK}:{config.admin_port}"
                )
                await signals.stop.wait()
                controller.announce("draining; a second Ctrl-C cuts what still runs")
                admin.should_exit = True
            await serving
    controller.announce("stopped")


def _write_log(path: Path, settings: LogSettings) -> None:
    """Keep what is announced, and what is logged, in a file beside the replicas' logs."""
    handler = logging.handlers.RotatingFileHandler(
        path, maxBytes=settings.size, backupCount=settings.files
    )
    configure(handler, settings)
    announced = logging.getLogger("tidegate.controller")
    announced.setLevel(logging.INFO)
    announced.propagate = False  # who started this was told already
    announced.addHandler(handler)


class _Signals:
    """SIGTERM and SIGINT: the first one stops, a later one does not wait for requests.

    What wraps a command often passes on a Ctrl-C that the terminal has sent already: a second
    signal that comes at once is the same one.
    """

    def __init__(self, controller: Controller) -> None:
        self.stop = asyncio.Event()
        self._controller = controller
        self._loop = asyncio.get_running_loop()
        self._first = 0.0
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._take)

    def _take(self) -> None:
        now = self._loop.time()
        if not self.stop.is_set():
            self._first = now
            self.stop.set()
        elif now - self._first >= _SAME_SIGNAL:
            self._controller.hurry()


def _listen(port: int) -> socket.socket:
    """Listen for the admin API before anything else is started."""
    try:
        return socket.create_server((LOOPBACK, port))
    except OSError as error:
        place = f"the admin port {LOOPBACK}:{port}"
        raise not_ours(place, port, error, "--admin-port (0: any free one)") from error


def _address(host: str) -> str:
    """Return the address that a host's name stands for; an edge takes addresses only."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ConfigurationError(
            f"host: {host!r} is neither an address nor a name that can be resolved ({error}); "
            "give an address of this machine, as 127.0.0.1 or 0.0.0.0"
        ) from error
    # Of a name with both, as localhost, clients try the IPv4 address sooner or later.
    found.sort(key=lambda each: each[0] != socket.AF_INET)
    return str(found[0][4][0])


def _free_port(host: str) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port
