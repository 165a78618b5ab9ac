"""The launching seam: how a replica's process comes to be, here as a plain process.

It is run by the node's own interpreter, or by the one that its model names. A container is another
launcher; nothing else of the node knows.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Protocol

import psutil
from pydantic import TypeAdapter, ValidationError

from tidegate.controller.run_directory import write_whole
from tidegate.edge.exit import ExitWatch
from tidegate.node import environments
from tidegate.replica.spec import THREAD_STACK, Failed, Ready, ReplicaSpec

_EVENT: TypeAdapter[Ready | Failed] = TypeAdapter(Ready | Failed)
_TAIL = 4096


class ReplicaProcess(Protocol):
    """A replica's process, just launched or adopted."""

    @property
    def pid(self) -> int:
        """Its pid."""

    async def started(self, timeout: float) -> Ready | Failed | None:
        """Wait for it to be ready, or to say why not; ``None``: it died without a word.

        Raises:
            TimeoutError: nothing was heard in ``timeout`` seconds.
        """

    async def wait(self) -> int | None:
        """Wait for its end; return its exit status, or minus the signal, where known."""

    async def end(self, timeout: float) -> None:
        """Let it drain and end; kill it after ``timeout`` seconds."""


class Launcher(Protocol):
    """Starts replicas, and finds those that an earlier controller started."""

    async def launch(self, spec: ReplicaSpec, spec_file: Path, log: Path) -> ReplicaProcess:
        """Start a replica of ``spec``.

        Raises:
            ConfigurationError: what ``model.yaml`` says of its environment cannot be.
        """

    def find(self, directory: Path) -> list[tuple[ReplicaSpec, ReplicaProcess]]:
        """Find the running replicas whose spec files lie in ``directory``."""


class LocalProcess:
    """A replica as a process of this machine."""

    def __init__(
        self,
        pid: int,
        child: subprocess.Popen[bytes] | None = None,
        status: int | None = None,
    ) -> None:
        self._pid = pid
        self._exit = ExitWatch(pid, child)
        self._status = status

    @property
    def pid(self) -> int:
        """Its pid."""
        return self._pid

    async def started(self, timeout: float) -> Ready | Failed | None:
        """Wait for the line that it writes to its status pipe."""
        assert self._status is not None
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        pipe = os.fdopen(self._status, "rb", buffering=0)
        self._status = None
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), pipe
        )
        try:
            line = await asyncio.wait_for(reader.readline(), timeout)
        finally:
            transport.close()
        return _EVENT.validate_json(line) if line.strip() else None

    async def wait(self) -> int | None:
        """Wait for its end; an adopted process does not tell its status."""
        return await self._exit.wait()

    async def end(self, timeout: float) -> None:
        """SIGTERM, then SIGKILL after ``timeout`` seconds."""
        self._exit.terminate()
        try:
            await asyncio.wait_for(self._exit.wait(), timeout)
        except TimeoutError:
            self._exit.kill()
            await self._exit.wait()


class ProcessLauncher:
    """Starts replicas with the interpreter that runs this, or the one of their models."""

    async def launch(self, spec: ReplicaSpec, spec_file: Path, log: Path) -> LocalProcess:
        """Start ``python -m tidegate.replica MODEL VERSION``, in a session of its own.

        Raises:
            ConfigurationError: the model's interpreter cannot run it.
        """
        interpreter = spec.config.interpreter
        if interpreter is not None:
            await environments.check(interpreter, spec.runtime)
        return self._spawn(spec, spec_file, log)

    def _spawn(self, spec: ReplicaSpec, spec_file: Path, log: Path) -> LocalProcess:
        write_whole(spec_file, spec.model_dump_json(indent=1).encode())
        reading, writing = os.pipe()
        interpreter = str(spec.config.interpreter or sys.executable)
        command = [
            interpreter, "-m", "tidegate.replica", spec.model, str(spec.version),
            "--spec", str(spec_file), "--status-fd", str(writing),
        ]  # fmt: skip
        try:
            with log.open("ab") as output:
                child = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=[writing],
                    start_new_session=True,
                    env=environment_of(spec),
                )
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        return LocalProcess(child.pid, child, reading)

    def find(self, directory: Path) -> list[tuple[ReplicaSpec, ReplicaProcess]]:
        """Find replicas by their command lines, which name their spec files."""
        found: list[tuple[ReplicaSpec, ReplicaProcess]] = []
        for process in psutil.process_iter(["cmdline", "status"]):
            file = _spec_file(process.info["cmdline"] or [])
            if file is None or process.info["status"] == psutil.STATUS_ZOMBIE:
                continue
            try:
                if not file.parent.samefile(directory):
                    continue
                spec = ReplicaSpec.model_validate_json(file.read_bytes())
                found.append((spec, LocalProcess(process.pid)))
            except (OSError, psutil.NoSuchProcess):
                continue  # another user's, or gone meanwhile
            except ValidationError:
                # Of another version of Tidegate; it ends when the edge has let go of it.
                process.terminate()
        return found


def _spec_file(line: list[str]) -> Path | None:
    """Return the spec file of a replica's command line; others may name replicas, too."""
    if "tidegate.replica" not in line or "--spec" not in line[:-1]:
        return None
    return Path(line[line.index("--spec") + 1])


def environment_of(spec: ReplicaSpec) -> dict[str, str]:
    """Return the variables that a replica of ``spec`` is started with."""
    other = spec.config.interpreter is not None
    environment = environments.variables(os.environ) if other else dict(os.environ)
    environment["PYTHONUNBUFFERED"] = "1"
    # Frameworks read these at import; a thread per core in every replica helps nobody.
    environment.setdefault("OMP_NUM_THREADS", str(spec.threads))
    environment.setdefault("OMP_STACKSIZE", f"{THREAD_STACK >> 10}K")
    environment.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's: it only moves data here
    return environment


def log_tail(log: Path, lines: int = 5) -> str:
    """Return the last lines of a replica's log, for a message."""
    try:
        with log.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - _TAIL))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return " | ".join(line.strip() for line in text.strip().splitlines()[-lines:])
