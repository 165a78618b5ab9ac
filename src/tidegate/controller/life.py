"""The life of a controller's process: its log, its signals, the ports that it takes."""

from __future__ import annotations

import asyncio
import logging
import logging.handlers
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

from tidegate.controller.machine import not_ours
from tidegate.errors import ConfigurationError
from tidegate.telemetry.logs import LogSettings, configure

log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
_SAME_SIGNAL = 0.5
"""Seconds within which a second signal is the first one, passed on by somebody else."""


def write_log(path: Path, settings: LogSettings) -> None:
    """Keep what is announced, and what is logged, in a file beside the replicas' logs."""
    logging.raiseExceptions = False  # a full disk is no reason to print how it was found
    handler = logging.handlers.RotatingFileHandler(
        path, maxBytes=settings.size, backupCount=settings.files
    )
    configure(handler, settings)
    announced = logging.getLogger("tidegate.controller")
    announced.setLevel(logging.INFO)
    announced.propagate = False  # who started this was told already
    announced.addHandler(handler)


class Signals:
    """SIGTERM and SIGINT: the first one stops, a later one does not wait for requests.

    What wraps a command often passes on a Ctrl-C that the terminal has sent already: a second
    signal that comes at once is the same one.

    SIGHUP stops, too, if the terminal is gone. Sent by somebody, as to daemons that are to read
    their files again, it changes nothing: these are followed.
    """

    def __init__(self, hurry: Callable[[], None]) -> None:
        self.stop = asyncio.Event()
        self._hurry = hurry
        self._loop = asyncio.get_running_loop()
        self._first = 0.0
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._take)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as under nohup
            self._loop.add_signal_handler(signal.SIGHUP, self._hung_up, _has_terminal())

    def _hung_up(self, had_terminal: bool) -> None:
        if had_terminal and not _has_terminal():
            self._take()
        else:
            log.info("SIGHUP: nothing to do, files are followed as they change")

    def _take(self) -> None:
        now = self._loop.time()
        if not self.stop.is_set():
            self._first = now
            self.stop.set()
        elif now - self._first >= _SAME_SIGNAL:
            self._hurry()


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True


def listen(port: int, host: str = LOOPBACK) -> socket.socket:
    """Listen for the admin API, before anything else is started.

    Raises:
        AddressInUse: somebody else does.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, dualstack_ipv6=host == "::")
    except OSError as error:
        place = f"the admin port {host}:{port}"
        raise not_ours(place, port, error, "--admin-port (0: any free one)") from error


def address(host: str) -> str:
    """Return the address that a host's name stands for; an edge takes addresses only.

    Raises:
        ConfigurationError: it stands for none.
    """
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


def free_port(host: str) -> int:
    """Return a port of ``host`` on which nobody listens at this moment."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port
