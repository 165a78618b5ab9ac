"""A node as processes of its own, tied to this one by :mod:`tidegate.guard`."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any

from tidegate.client import Client
from tidegate.config.loading import load_node_config
from tidegate.config.node import NodeConfig
from tidegate.controller.local_address import LocalAddress, local_address
from tidegate.errors import AddressInUse, DeadlineExceeded, ModelError
from tidegate.protocols.statuses import error_of_exit

_LOOPBACK = "127.0.0.1"
_PREFIX = "tidegate-py-"
"""Of the names of run directories that are made for one node."""
_LOOK_EVERY = 0.05
_AGAIN_AFTER = 0.6
"""Seconds between signals that are to count as two."""
_STOP_MARGIN = 30.0
"""Seconds beside those that requests have to end, until a node is ended by force."""
_ATTEMPTS = 3
_TAIL = 4096
"""Bytes of its output that are looked at for its last words."""


class GuardedNode:
    """The processes of a node: its guard, and through it all others."""

    def __init__(self, repository: Path, config: NodeConfig, options: dict[str, object]) -> None:
        self._repository = repository
        self._config = config
        self._owner = os.getpid()
        own = "run_dir" not in options
        self._run_dir = Path(_run_dir() if own else config.run_dir or "").absolute()
        self._output: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the node
        given = {**options, "port": config.port, "admin_port": config.admin_port}
        command = [
            sys.executable, "-m", "tidegate.guard",
            str(self._owner), str(config.port), str(self._run_dir), "1" if own else "0",
            sys.executable, "-m", "tidegate", "serve", str(repository.absolute()),
            *_arguments({**given, "run_dir": self._run_dir}),
        ]  # fmt: skip
        self._guard = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            # An interrupt, or a kill, of this process's group is not the node's.
            start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1", "NO_COLOR": "1"},
        )

    @property
    def address(self) -> LocalAddress:
        """Where clients on this machine reach it."""
        return local_address(self._config, self._config.port)

    def wait_ready(self, timeout: float) -> None:
        """Wait until every model that can be loaded is ready.

        Raises:
            TidegateError: the node has ended, with its own words; or the time is over.
        """
        end = time.monotonic() + timeout
        with Client(self.address.url("http"), timeout=5.0) as client:
            while not self._answers(client):
                status = self._guard.poll()
                if status is not None:
                    raise error_of_exit(status, self._last_words())
                if time.monotonic() > end:
                    raise DeadlineExceeded(
                        f"the models in {self._repository} were not ready after {timeout:g} s: "
                        f"{'; '.join(self._not_ready()) or self._last_words()}"
                    )
                time.sleep(_LOOK_EVERY)

    def _answers(self, client: Client) -> bool:
        status = self.status()
        if not status.get("ready"):
            return False
        if self.address.ca_file is None:
            return client.ready()
        # Over TLS it may want to see a certificate: the controller knows, too.
        return bool(status["edge"]["ready"])

    def check_models(self) -> None:
        """Make sure that every model is served.

        Raises:
            ModelError: one is not.
        """
        if failed := self._not_ready():
            raise ModelError(
                f"not every model in {self._repository} can be served: {'; '.join(failed)}; "
                "mend or remove them, or serve the others with allow_failed=True"
            )

    def status(self) -> dict[str, Any]:
        """Return what the node says of itself; nothing while it does not answer."""
        connection = http.client.HTTPConnection(_LOOPBACK, self._config.admin_port, timeout=5.0)
        with contextlib.closing(connection), contextlib.suppress(OSError, ValueError):
            connection.request("GET", "/status")
            found = json.loads(connection.getresponse().read())
            # The port may be another's, who was quicker.
            if isinstance(found, dict) and found.get("run_dir", "").startswith(str(self._run_dir)):
                return found
        return {}

    def stop(self) -> None:
        """End every process; return when they have ended."""
        if os.getpid() != self._owner:
            return  # a copy in a forked process, whose parent goes on
        try:
            self._guard.terminate()
            self._guard.wait(self._config.drain_timeout + _STOP_MARGIN)
        except BaseException as error:
            self._cut()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
        finally:
            self._output.close()
        if self._guard.returncode < 0:
            self._end_remains()

    def _cut(self) -> None:
        """Do not wait for requests any more."""
        end = time.monotonic() + _STOP_MARGIN
        while self._guard.poll() is None and time.monotonic() < end:
            self._guard.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
                self._guard.wait(_AGAIN_AFTER)
        if self._guard.poll() is None:
            self._guard.kill()
            self._guard.wait()

    def _end_remains(self) -> None:
        """End what the guard, which was killed, has left."""
        command = [
            sys.executable, "-m", "tidegate", "stop",
            "--port", str(self._config.port), "--run-dir", str(self._run_dir),
        ]  # fmt: skip
        subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        if self._run_dir.name.startswith(_PREFIX):
            shutil.rmtree(self._run_dir, ignore_errors=True)

    def _not_ready(self) -> list[str]:
        return [
            f"{model['name']}: {model.get('reason') or model['state']}"
            for model in self.status().get("models", ())
            if model["state"] not in ("ready", "unloaded")
        ]

    def _last_words(self) -> str:
        """Return the error that the node told, or else the end of what it said."""
        self._output.seek(0, os.SEEK_END)
        self._output.seek(max(0, self._output.tell() - _TAIL))
        lines = self._output.read().decode("utf-8", "replace").strip().splitlines()
        told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        return told[-1] if told else " | ".join(lines[-5:]) or "the node said nothing"


def start_node(repository: Path, options: dict[str, object], timeout: float) -> GuardedNode:
    """Start a node and wait until it is ready; a free port may be taken while it starts.

    Args:
        repository: the folder of models.
        options: of ``tidegate serve``; where a port is missing, a free one is taken.
        timeout: seconds until it must be ready.

    Raises:
        TidegateError: it cannot be started; nothing of it is left.
    """
    ports = ("port", "admin_port")
    for attempt in range(1, _ATTEMPTS + 1):
        free = {name: _free_port() for name in ports if not options.get(name)}
        config, _ = load_node_config(repository, os.environ, {**options, **free})
        node = GuardedNode(repository, config, options)
        try:
            node.wait_ready(timeout)
        except AddressInUse:
            node.stop()
            if not free or attempt == _ATTEMPTS:
                raise
        except BaseException:
            node.stop()
            raise
        else:
            return node
    raise AssertionError("unreachable")


def _arguments(options: dict[str, object]) -> list[str]:
    """Return options as ``tidegate serve`` takes them."""
    arguments = []
    for name, value in options.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            arguments.append(f"--{option}" if value else f"--no-{option}")
        elif value is not None:
            arguments += [f"--{option}", str(value)]
    return arguments


def _run_dir() -> str:
    """Make a run directory for one node; short, because Unix sockets lie in it."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    usable = runtime if runtime and os.access(runtime, os.W_OK) else None
    return tempfile.mkdtemp(prefix=_PREFIX, dir=usable)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port
