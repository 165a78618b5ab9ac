"""A controller in the foreground: its log, its admin port, and the signals that end it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Protocol, TypeVar

from starlette.applications import Starlette

from tidegate.controller.admin import AdminServer
from tidegate.controller.admin_grpc import AdminGrpc
from tidegate.controller.life import Signals, listen, write_log
from tidegate.controller.run_directory import RunDirectory
from tidegate.controller.server_calls import ServerCalls
from tidegate.errors import AddressInUse, ConfigurationError
from tidegate.telemetry.logs import LogSettings


class Controlling(Protocol):
    """What is run: a controller, which ``async with`` starts and stops."""

    directory: RunDirectory
    announce: Callable[[str], None]

    async def __aenter__(self) -> object: ...

    async def __aexit__(self, *exc: object) -> None: ...

    def hurry(self) -> None:
        """Stop without waiting for the requests that are being run."""


_C = TypeVar("_C", bound=Controlling)


async def run(
    controller: _C,
    calls: ServerCalls,
    application: Callable[[_C], Starlette],
    admin: tuple[str, int],
    log: LogSettings,
    serves: Callable[[], str],
) -> None:
    """Run ``controller`` until a signal.

    Args:
        controller: what is run.
        calls: what its admin port answers over gRPC.
        application: makes what it answers over HTTP.
        admin: the address and the port of it.
        log: how the controller's log is written.
        serves: says what is served, and where, once it is.

    Raises:
        TidegateError: it cannot start.
    """
    signals = Signals(controller.hurry)
    directory = controller.directory
    # Before the ports: a live controller is named, and not one of the ports that it has.
    directory.create()
    directory.lock()
    write_log(directory.controller_log, log)
    try:
        admin_socket = listen(admin[1], admin[0])
    except (AddressInUse, ConfigurationError):
        directory.unlock()
        raise
    with contextlib.closing(admin_socket):
        async with controller:
            async with AdminGrpc(calls, directory.admin_socket):
                server = AdminServer(application(controller), directory.admin_socket)
                serving = asyncio.create_task(server.serve([admin_socket]))
                controller.announce(serves())
                await signals.stop.wait()
                controller.announce("draining; a second Ctrl-C cuts what still runs")
                server.should_exit = True
            await serving
    controller.announce("stopped")
