"""The servers under comparison, each as a process of its own with a free port."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

_START_TIMEOUT = 60.0
_STOP_TIMEOUT = 40.0


@dataclass(frozen=True, slots=True)
class Server:
    """A running server."""

    name: str
    target: str
    """``host:port``."""
    processes: tuple[psutil.Process, ...]
    """All that belong to it."""

    def cpu_seconds(self) -> float:
        """Return the CPU time of its processes so far."""
        times = [process.cpu_times() for process in self.processes]
        return sum(one.user + one.system for one in times)


@contextlib.asynccontextmanager
async def reference(model: Path, name: str, loop: str, threads: int = 1) -> AsyncIterator[Server]:
    """Run :mod:`bench.reference_grpc_aio` with ``loop``, ``uvloop`` or ``asyncio``."""
    command = [sys.executable, "-m", "bench.reference_grpc_aio", str(model)]
    command += ["--name", name, "--loop", loop, "--threads", str(threads)]
    async with process_with_port(command, r"listening on (\d+)") as (process, port):
        yield Server(f"grpc.aio, {loop}", f"127.0.0.1:{port}", (process,))


@contextlib.asynccontextmanager
async def tidegate(
    repository: Path, run_dir: Path, options: Sequence[str] = ()
) -> AsyncIterator[Server]:
    """Run ``tidegate serve`` and wait until every model is ready."""
    script = Path(sys.executable).with_name("tidegate")
    command = [str(script), "serve", str(repository), "--port", "0", "--admin-port", "0"]
    command += ["--run-dir", str(run_dir), *options]
    async with process_with_port(command, r"on 127\.0\.0\.1:(\d+)") as (_, port):
        await ready(f"http://127.0.0.1:{port}/v2/health/ready")
        # Edge and replicas are no descendants: they outlive the controller. All of them have
        # the run directory in their arguments.
        parts = tuple(p for p in psutil.process_iter() if mentions(p, str(run_dir)))
        yield Server("tidegate serve", f"127.0.0.1:{port}", parts)


def mentions(process: psutil.Process, text: str) -> bool:
    try:
        return any(text in argument for argument in process.cmdline())
    except psutil.Error:
        return False


@contextlib.asynccontextmanager
async def process_with_port(
    command: Sequence[str], announcement: str
) -> AsyncIterator[tuple[psutil.Process, int]]:
    """Run a command that prints its port; end it by SIGTERM, and by force if that fails.

    A SIGTERM to this process cancels the task that runs it, so that no server is left behind.
    """
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parent.parent
    )
    assert process.stdout is not None
    reader = asyncio.ensure_future(_drain(process.stdout, announcement, port := _future()))
    try:
        yield psutil.Process(process.pid), await asyncio.wait_for(port, _START_TIMEOUT)
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), _STOP_TIMEOUT)
            except TimeoutError:
                process.kill()
                await process.wait()
        await reader


def _future() -> asyncio.Future[int]:
    return asyncio.get_running_loop().create_future()


async def _drain(
    output: asyncio.StreamReader, announcement: str, port: asyncio.Future[int]
) -> None:
    """Find the port, and keep the pipe from filling."""
    seen = []
    while line := await output.readline():
        seen.append(line.decode(errors="replace"))
        found = re.search(announcement, seen[-1])
        if found and not port.done():
            port.set_result(int(found[1]))
    if not port.done():
        port.set_exception(RuntimeError(f"the server ended: {''.join(seen)[-2000:]}"))


async def ready(url: str) -> None:
    def answers() -> bool:
        try:
            with opener.open(url, timeout=2) as response:
                return bool(response.status == 200)
        except OSError:
            return False

    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + _START_TIMEOUT
    while not await asyncio.to_thread(answers):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{url} was not 200 within {_START_TIMEOUT:.0f} s")
        await asyncio.sleep(0.05)
