"""The run directory of a node or a gateway: sockets, logs, and what the next controller needs.

::

    tidegate/8000/              one node, named by its port
        controller.lock         locked by the live controller; holds its pid
        lifeline                locked by the controller and by the edge
        node.json               settings and the edge's record; of a gateway, gateway.json
        endpoints.json          of a gateway: which endpoints were known last
        notices.json            what running replicas are told
        regions.json            the shared memory that clients have registered
        ads.sock  api.sock      the controller: for Envoy's configuration, and behind it
        envoy.log, admin-0.sock, bootstrap-0.json, base-id
                                the edge's
        r/7.sock  r/7.json      a replica's socket, and what it was told
        logs/                   controller.log, access.log, one file for each replica's place,
                                and older ones of each
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError

from tidegate.config.gateway import GatewayConfig
from tidegate.config.node import NodeConfig
from tidegate.edge.topology import MAX_SOCKET_PATH
from tidegate.errors import AddressInUse, ConfigurationError
from tidegate.telemetry.logs import LogSettings

LONGEST_SOCKET = len("/65535/admin-9999.sock")
"""Bytes of the path of a socket below the base directory."""
_REPLICA_LOG = re.compile(r"(.+)-([0-9]+)\.([0-9]+)\.log")


def base_directory(configured: Path | None) -> Path:
    """Return where the run directories of this user's nodes lie."""
    if configured is not None:
        return configured.absolute()
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and os.access(runtime, os.W_OK):
        return Path(runtime) / "tidegate"
    return Path(tempfile.gettempdir()) / f"tidegate-{os.getuid()}"


def log_settings(config: NodeConfig | GatewayConfig) -> LogSettings:
    """Return how the processes of a node, or of a gateway, log."""
    return LogSettings(
        format=config.log_format,
        level=config.log_level,
        size=config.log_size,
        files=config.log_files,
    )


class NodeRecord(BaseModel):
    """What ``node.json`` holds."""

    repository: Path
    config: NodeConfig
    edge: dict[str, Any] | None = None
    """As :meth:`tidegate.edge.process.EnvoyProcess.record` gave it."""
    unloaded: tuple[str, ...] = ()
    """The models that were unloaded by hand."""

    @property
    def serves(self) -> Path:
        """What is served."""
        return self.repository


class GatewayRecord(BaseModel):
    """What ``gateway.json`` holds."""

    file: Path
    config: GatewayConfig
    edge: dict[str, Any] | None = None
    """As :meth:`tidegate.edge.process.EnvoyProcess.record` gave it."""

    @property
    def serves(self) -> Path:
        """What is served: the file that says it."""
        return self.file


class ReplicaLog(NamedTuple):
    """The log of one place among the replicas of a model's version."""

    model: str
    version: int
    replica: int
    path: Path


class RunDirectory:
    """The files of one node."""

    def __init__(self, base: Path, port: int) -> None:
        self.base = base
        self.port = port
        self.path = base / str(port)
        self.lifeline = self.path / "lifeline"
        self.ads_socket = self.path / "ads.sock"
        self.api_socket = self.path / "api.sock"
        self.admin_socket = self.path / "grpc.sock"
        self.replicas = self.path / "r"
        self.logs = self.path / "logs"
        self.notices = self.path / "notices.json"
        self.regions = self.path / "regions.json"
        self.edge_log = self.path / "envoy.log"
        self.access_log = self.logs / "access.log"
        self.controller_log = self.logs / "controller.log"
        self._lock = self.path / "controller.lock"
        self._lock_descriptor: int | None = None

    def create(self) -> None:
        """Make the folders, readable by this user alone.

        Raises:
            ConfigurationError: the path is too long for sockets, cannot be made, or is
                somebody else's.
        """
        longest = len(os.fsencode(self.base)) + LONGEST_SOCKET
        if longest > MAX_SOCKET_PATH:
            raise ConfigurationError(
                f"the run directory {self.base} is too long: a Unix socket's path has "
                f"{MAX_SOCKET_PATH} bytes at most; give a shorter one with --run-dir"
            )
        try:
            self.base.mkdir(mode=0o700, parents=True, exist_ok=True)
            # The link, if it is one, and what it leads to: in /tmp anybody can put one there.
            owners = {self.base.lstat().st_uid, self.base.stat().st_uid}
            if owners != {os.getuid()}:
                raise ConfigurationError(
                    f"the run directory {self.base} belongs to another user: "
                    "give another one with --run-dir"
                )
            for folder in (self.path, self.replicas, self.logs):
                folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(
                f"the run directory {self.path} cannot be made: {error.strerror}; "
                "give another one with --run-dir"
            ) from error

    def replica_log(self, model: str, version: int, index: int) -> Path:
        """Return the log of the replica at one place of a model's version."""
        return self.logs / f"{model}-{version}.{index}.log"

    def replica_logs(self) -> list[ReplicaLog]:
        """Find the logs of replicas that run or ran here, by model, version and place."""
        found = []
        for path in self.logs.glob("*.log"):
            match = _REPLICA_LOG.fullmatch(path.name)
            if match is not None:
                found.append(ReplicaLog(match[1], int(match[2]), int(match[3]), path))
        return sorted(found)

    def lock(self) -> None:
        """Become the controller of this node; nothing happens if this is it already.

        Raises:
            AddressInUse: another controller lives.
        """
        while self._lock_descriptor is None:
            descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                pid = self.controller_pid()
                if pid is not None:
                    raise AddressInUse(self._taken(pid)) from None
                # Somebody only looked, as 'tidegate status' does, or the other is gone by now.
                continue
            if _lies_at(descriptor, self._lock):
                self._lock_descriptor = descriptor
            else:
                os.close(descriptor)  # a node that stopped has removed it meanwhile
        os.ftruncate(self._lock_descriptor, 0)
        os.pwrite(self._lock_descriptor, str(os.getpid()).encode(), 0)

    def _taken(self, pid: int) -> str:
        record = self.load()
        serves = "" if record is None else f" and serves {record.serves}"
        return (
            f"port {self.port} is taken: the Tidegate controller with pid {pid} runs "
            f"there{serves}; stop it with 'tidegate stop --port {self.port}' or choose another "
            "--port"
        )

    def unlock(self) -> None:
        """Stop being the controller of this node."""
        if self._lock_descriptor is not None:
            os.close(self._lock_descriptor)
            self._lock_descriptor = None

    def controller_pid(self) -> int | None:
        """Return the pid of the live controller, if there is one."""
        try:
            descriptor = os.open(self._lock, os.O_RDWR)
        except OSError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return int(os.read(descriptor, 32) or b"0") or None
        finally:
            os.close(descriptor)
        return None

    def load(self) -> NodeRecord | GatewayRecord | None:
        """Return what an earlier controller recorded, if it can be read."""
        node, gateway = _records(self.path)
        with contextlib.suppress(OSError, ValidationError):
            return NodeRecord.model_validate_json(node.read_bytes())
        with contextlib.suppress(OSError, ValidationError):
            return GatewayRecord.model_validate_json(gateway.read_bytes())
        return None

    def save(self, record: NodeRecord | GatewayRecord) -> None:
        """Record the state; a reader sees the old or the new, never a part."""
        node, gateway = _records(self.path)
        file, other = (gateway, node) if isinstance(record, GatewayRecord) else (node, gateway)
        write_whole(file, record.model_dump_json(indent=1).encode())
        other.unlink(missing_ok=True)  # of what was killed here before

    def remove(self) -> None:
        """Remove what a stopped node left, but for its logs.

        While the lock is held: what the next controller makes is not to be removed.
        """
        for file in self.replicas.iterdir():
            file.unlink(missing_ok=True)
        for file in self.path.iterdir():
            if (file.is_file() or file.is_socket()) and ".log" not in file.suffixes:
                file.unlink(missing_ok=True)


def _lies_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def write_whole(path: Path, content: bytes) -> None:
    """Replace ``path`` by a file of this content at once."""
    partial = path.with_name(path.name + ".new")
    partial.write_bytes(content)
    partial.replace(path)


def find_nodes(base: Path) -> Iterator[RunDirectory]:
    """Find the nodes and gateways that have a record below ``base``, by port."""
    if not base.is_dir():
        return
    for folder in sorted(base.iterdir(), key=lambda f: f.name):
        if folder.name.isdigit() and any(map(Path.exists, _records(folder))):
            yield RunDirectory(base, int(folder.name))


def _records(folder: Path) -> tuple[Path, ...]:
    return (folder / "node.json", folder / "gateway.json")
