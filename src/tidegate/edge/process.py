"""The life of the Envoy process: start, adopt, hot restart, drain, stop.

Envoy outlives its controller. What the next controller needs to find it again is in
:meth:`EnvoyProcess.record`.

Source: https://www.envoyproxy.io/docs/envoy/latest/operations/cli and
https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/operations/hot_restart
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from tidegate.edge.admin import AdminClient
from tidegate.edge.binary import find_envoy
from tidegate.edge.bootstrap import bootstrap_json
from tidegate.edge.exit import ExitWatch
from tidegate.edge.remains import (
    BASE_ID,
    KILL_GRACE,
    LOG,
    admin_socket_of,
    bootstrap_path,
    forget_earlier,
    last_words_of,
    remove_shared_memory,
    running,
)
from tidegate.edge.settings import EdgeSettings
from tidegate.edge.topology import check_socket_path
from tidegate.errors import EdgeFailed

CONTROL_SOCKET = "ads.sock"
"""Where in the run directory Envoy looks for its controller, whichever that is."""

_DETACH = '(while kill -0 $$ 2>/dev/null; do :; done; exec "$@") >&2 & echo $!'
"""Prints a process id and ends; the process becomes the command when the shell is gone."""

_START_TIMEOUT = 30.0
_POLL = 0.02
_SAME_START = 1.0
"""Seconds by which two readings of one process's start may differ when the clock is set."""
_QUIET = 0.25
"""Seconds in which a request that was sent before its client heard of the end has arrived."""
_PARENT_GRACE = 2


@dataclass(frozen=True, slots=True)
class _Record:
    """What is saved of a process."""

    pid: int
    started: float
    base_id: int
    epoch: int
    admin_socket: str
    run_dir: str
    binary: str
    fingerprint: str


class EnvoyProcess:
    """One running Envoy. Made by :meth:`start`, :meth:`adopt` and :meth:`hot_restart`."""

    def __init__(self, record: _Record, watch: ExitWatch) -> None:
        self._record = record
        self._exit = watch
        self.admin = AdminClient(Path(record.admin_socket))

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._record.pid

    @property
    def control_socket(self) -> Path:
        """Where this Envoy looks for its :class:`~tidegate.edge.control.ControlServer`."""
        return Path(self._record.run_dir) / CONTROL_SOCKET

    @property
    def log(self) -> Path:
        """Envoy's own log."""
        return Path(self._record.run_dir) / LOG

    def record(self) -> dict[str, Any]:
        """Return what :meth:`adopt` needs, fit for JSON."""
        return asdict(self._record)

    def started_as(self, settings: EdgeSettings) -> bool:
        """Whether a start with ``settings`` now would give the same process.

        If not (another binary, other threads or limits), a hot restart makes it so.

        Raises:
            EdgeFailed: there is no Envoy binary.
        """
        binary = find_envoy(settings.envoy)
        run_dir = Path(self._record.run_dir)
        return self._record.fingerprint == _fingerprint(settings, binary, run_dir)

    @classmethod
    async def start(
        cls, run_dir: Path, settings: EdgeSettings, *, pass_fds: Sequence[int] = ()
    ) -> EnvoyProcess:
        """Start an Envoy in ``run_dir``; return when its admin interface answers.

        It listens for clients when a :class:`~tidegate.edge.control.ControlServer` on
        :data:`CONTROL_SOCKET` of that directory has told it to. It runs in a session of its own,
        is not a child of this process, and keeps ``pass_fds`` open as long as it lives.

        Raises:
            EdgeFailed: Envoy is missing, cannot start, or a path is too long.
        """
        return await _launch(cls, run_dir, settings, pass_fds, None)

    @classmethod
    def adopt(cls, record: Mapping[str, Any]) -> EnvoyProcess | None:
        """Return the process of ``record``, or ``None`` if it is gone or the record is unfit.

        One that was to replace it, and was not recorded before its controller was killed, is
        returned instead; of that one it is not known what it was started with.
        """
        try:
            saved = _Record(**record)
            watch = ExitWatch(saved.pid)
            process = psutil.Process(saved.pid)
            same = (
                watch.running
                and abs(process.create_time() - saved.started) < _SAME_START
                and bootstrap_path(Path(saved.run_dir), saved.epoch) in process.cmdline()
            )
            if not same:
                return None
            successors = running(Path(saved.run_dir)).get(saved.epoch + 1, [])
            for successor in successors:
                saved = replace(
                    saved,
                    pid=successor.pid,
                    started=successor.create_time(),
                    epoch=saved.epoch + 1,
                    admin_socket=str(admin_socket_of(Path(saved.run_dir), saved.epoch + 1)),
                    fingerprint="",
                )
                watch = ExitWatch(saved.pid)
        except (psutil.Error, TypeError, ValueError):
            return None
        return cls(saved, watch)

    async def wait(self) -> int | None:
        """Wait until the process has ended; return its exit status where that can be known.

        The status is negative for a signal, and ``None`` to all but the first process of a
        container: Envoy is nobody else's child.
        """
        return await self._exit.wait()

    async def hot_restart(
        self, settings: EdgeSettings, *, pass_fds: Sequence[int] = ()
    ) -> EnvoyProcess:
        """Replace the process by one that is started with ``settings``, losing no request.

        The new one takes over the listening sockets once the controller has configured it; the
        old one ends its requests and exits within ``settings.drain_timeout`` and two seconds
        (wait for it with :meth:`wait`). A controller must be publishing on the control socket.

        Raises:
            EdgeFailed: the new one cannot start; the old one goes on.
        """
        await self._until_initialized()
        run_dir = Path(self._record.run_dir)
        return await _launch(type(self), run_dir, settings, pass_fds, self._record)

    async def _until_initialized(self) -> None:
        """Wait until the process can be a parent: a controller may just have started it."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_START_TIMEOUT):
                while self._exit.running:
                    with contextlib.suppress(EdgeFailed):
                        info = json.loads(await self.admin.get("/server_info"))
                        if "INITIALIZING" not in info["state"]:
                            return
                    await asyncio.sleep(_POLL)

    async def drain_and_stop(self, timeout: float) -> bool:
        """End the process: no new connections, let requests end, then go.

        Args:
            timeout: seconds that running requests have; what runs on then is cut.

        Returns:
            Whether every request had ended.
        """
        drained = False
        with contextlib.suppress(EdgeFailed, TimeoutError):
            async with asyncio.timeout(timeout):
                # From now on every answer says that the connection ends.
                await self.admin.post("/healthcheck/fail")
                await self.admin.post("/drain_listeners?graceful&skip_exit")
                # And nobody connects any more, or a busy port would never be quiet.
                await self.admin.post("/drain_listeners")
                await self._until_quiet()
                drained = True
        await self.kill()
        return drained

    async def _until_quiet(self) -> None:
        """Wait until nothing is under way, nor on its way over a connection that is open."""
        loop = asyncio.get_running_loop()
        quiet_since = loop.time()
        while True:
            requests, connections = await self.admin.activity()
            now = loop.time()
            if requests:
                quiet_since = now
            elif not connections or now - quiet_since >= _QUIET:
                return
            await asyncio.sleep(_POLL)

    async def kill(self) -> None:
        """End the process now: SIGTERM, and SIGKILL if that does not help in two seconds."""
        self._exit.terminate()
        try:
            async with asyncio.timeout(KILL_GRACE):
                await self.wait()
        except TimeoutError:
            self._exit.kill()
            await self.wait()
        _remove(self._record.admin_socket)
        if not admin_socket_of(Path(self._record.run_dir), self._record.epoch + 1).exists():
            remove_shared_memory(self._record.base_id)

    def last_words(self) -> str:
        """Return the last lines of Envoy's log."""
        return last_words_of(self.log)


async def _launch(
    cls: type[EnvoyProcess],
    run_dir: Path,
    settings: EdgeSettings,
    pass_fds: Sequence[int],
    parent: _Record | None,
) -> EnvoyProcess:
    binary = find_envoy(settings.envoy)
    epoch = 0 if parent is None else parent.epoch + 1
    admin = admin_socket_of(run_dir, epoch)
    base_id_file = run_dir / BASE_ID
    try:
        check_socket_path(str(admin))
    except ValueError as error:
        raise EdgeFailed(str(error)) from None
    bootstrap = bootstrap_path(run_dir, epoch)
    _write(bootstrap, bootstrap_json(settings, str(run_dir / CONTROL_SOCKET), str(admin)))
    _remove(str(admin))
    if parent is None:
        forget_earlier(run_dir)
        base = ["--use-dynamic-base-id", "--base-id-path", str(base_id_file)]
    else:
        base = ["--base-id", str(parent.base_id), "--restart-epoch", str(epoch)]
    command = [str(binary), "-c", bootstrap, *base, *_arguments(settings)]
    pid = _spawn(command, run_dir, pass_fds)  # milliseconds: the shell ends at once
    try:
        watch = ExitWatch(pid)
    except psutil.NoSuchProcess:
        raise EdgeFailed(
            f"Envoy ended as it started; the end of its log: {last_words_of(run_dir / LOG)}"
        ) from None
    try:
        await _until_it_answers(AdminClient(admin), watch, run_dir / LOG)
        _raise_file_limit(pid)
        record = _Record(
            pid=pid,
            started=psutil.Process(pid).create_time(),
            base_id=int(base_id_file.read_text()) if parent is None else parent.base_id,
            epoch=epoch,
            admin_socket=str(admin),
            run_dir=str(run_dir),
            binary=str(binary),
            fingerprint=_fingerprint(settings, binary, run_dir),
        )
    except BaseException:
        watch.kill()
        raise
    return cls(record, watch)


def _spawn(command: Sequence[str], run_dir: Path, pass_fds: Sequence[int]) -> int:
    """Start ``command`` as nobody's child, in a session of its own; return its process id.

    Envoy asks the system for a SIGTERM when its parent ends (PR_SET_PDEATHSIG), so a controller
    that is killed would take its edge with it. A shell in between ends before Envoy begins.
    """
    with (run_dir / LOG).open("ab") as log:
        shell = subprocess.run(
            ["/bin/sh", "-c", _DETACH, "sh", *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
            pass_fds=tuple(pass_fds),
            cwd=run_dir,
            check=True,
        )
    return int(shell.stdout)


def _arguments(settings: EdgeSettings) -> list[str]:
    drain = max(1, math.ceil(settings.drain_timeout))
    return [
        "--concurrency", str(settings.threads),
        "--log-level", "warning",
        # Of the routes of a gateway, each would be told to have a deadline in the old form.
        *(("--component-log-level", "misc:error") if settings.gateway else ()),
        "--log-format", "%Y-%m-%d %T.%e %l %n: %v",
        "--file-flush-interval-msec", "500",
        # Say "go elsewhere" with the next answer on each connection, not some time in the period.
        "--drain-strategy", "immediate",
        "--drain-time-s", str(drain),
        "--parent-shutdown-time-s", str(drain + _PARENT_GRACE),
    ]  # fmt: skip


async def _until_it_answers(admin: AdminClient, watch: ExitWatch, log: Path) -> None:
    """Wait for the admin interface; there is no event for a socket that appears."""
    ended = asyncio.ensure_future(watch.wait())
    try:
        async with asyncio.timeout(_START_TIMEOUT):
            while not ended.done():
                if admin.socket.exists():
                    with contextlib.suppress(EdgeFailed):
                        await admin.get("/server_info")
                        return
                await asyncio.wait([ended], timeout=_POLL)
    except TimeoutError:
        raise EdgeFailed(
            f"Envoy does not answer {_START_TIMEOUT:g} s after its start: {last_words_of(log)}"
        ) from None
    finally:
        ended.cancel()
    raise EdgeFailed(f"Envoy ended while it started; the end of its log: {last_words_of(log)}")


def _fingerprint(settings: EdgeSettings, binary: Path, run_dir: Path) -> str:
    """Return a digest of all that only a new process can change."""
    status = binary.stat()
    content = [
        bootstrap_json(settings, str(run_dir / CONTROL_SOCKET), "admin.sock"),
        _arguments(settings),
        [str(binary), status.st_size, status.st_mtime_ns],
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _write(path: str, text: str) -> None:
    Path(path).write_text(text)


def _remove(path: str) -> None:
    Path(path).unlink(missing_ok=True)


def _raise_file_limit(pid: int) -> None:
    """Let Envoy have as many connections as the system allows; two files go with each call."""
    if sys.platform != "linux":
        return
    with contextlib.suppress(psutil.Error, OSError):
        process = psutil.Process(pid)
        _, hard = process.rlimit(psutil.RLIMIT_NOFILE)
        process.rlimit(psutil.RLIMIT_NOFILE, (hard, hard))
