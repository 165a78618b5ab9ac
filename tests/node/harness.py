"""A real node for tests: ``tidegate serve`` as a process, with a run directory of its own."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import psutil

from tests.ports import free_port

START = 60.0


class ServedNode:
    """``async with`` starts a node and waits until it is ready; at the end nothing is left.

    ``serve()`` starts another controller for the same port, as an operator would after the
    first one was killed.
    """

    SAYS = "serving "
    """What it says when it serves."""

    def __init__(self, repository: Path, *options: str, wait_ready: bool = True) -> None:
        self.repository = repository
        self.options = options
        self.wait_ready = wait_ready
        self.process: asyncio.subprocess.Process | None = None
        self.output = ""
        self._reader: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        # A Unix socket's path has 107 bytes: pytest's temporary folders are too deep.
        self.run_dir = Path(tempfile.mkdtemp(prefix="tg", dir="/tmp"))
        self.port, self.admin_port = free_port(), free_port()
        await self.serve()
        if self.wait_ready:
            await self.until_ready()
        return self

    async def serve(self) -> None:
        """Start ``tidegate serve`` and wait until it says that it serves."""
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tidegate.cli", *self.command(),
            "--port", str(self.port), "--admin-port", str(self.admin_port),
            "--run-dir", str(self.run_dir), *self.options,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1"},
        )  # fmt: skip
        self.output = ""
        self._reader = asyncio.create_task(self._read(self.process))
        await self.until(lambda: self.SAYS in self.output or self._ended())
        if self._ended():
            raise RuntimeError(f"tidegate {self.command()[0]} ended: {self.output}")

    def command(self) -> tuple[str, ...]:
        return "serve", str(self.repository)

    def _ended(self) -> bool:
        assert self.process is not None
        return self.process.returncode is not None

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            self.output += line.decode()

    async def until(self, condition: Callable[[], object], timeout: float = START) -> None:
        """Wait until ``condition`` holds."""
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"not in {timeout} s; the node said:\n{self.output}")
            await asyncio.sleep(0.02)

    async def until_ready(self, model: str | None = None) -> None:
        """Wait until the node, or a model, says at ``/ready`` that it is: calls are led there.

        What a replica says of itself in the output comes earlier.
        """
        path = "/v2/health/ready" if model is None else f"/v2/models/{model}/ready"
        answer = 0, b""
        deadline = time.monotonic() + 2 * START
        while answer[0] != 200:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{path} is {answer}; the node said:\n{self.output}")
            answer = await self.get(path)
            await asyncio.sleep(0.02)

    @property
    def target(self) -> str:
        """``host:port`` of the edge."""
        return f"127.0.0.1:{self.port}"

    async def get(self, path: str) -> tuple[int, bytes]:
        """``GET`` from the edge: status and body."""
        return await asyncio.to_thread(fetch, f"http://{self.target}{path}")

    async def post(
        self, path: str, body: bytes, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        """``POST`` to the edge: status and body."""
        return await asyncio.to_thread(fetch, f"http://{self.target}{path}", body, headers)

    async def status(self) -> dict[str, Any]:
        """The admin API's ``/status``."""
        code, body = await asyncio.to_thread(fetch, f"http://127.0.0.1:{self.admin_port}/status")
        assert code == 200, body
        found: dict[str, Any] = json.loads(body)
        return found

    def processes(self) -> list[psutil.Process]:
        """Every living process of this node: controllers, edges and replicas."""
        found = []
        for process in psutil.process_iter(["cmdline", "status"]):
            line = " ".join(process.info["cmdline"] or [])
            if str(self.run_dir) in line and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process)
        return found

    def replicas(self, model: str | None = None, version: int | None = None) -> list[int]:
        """The pids of the replicas, as ``ps`` shows them."""
        pids = []
        for process in self.processes():
            line = process.info["cmdline"]
            if "tidegate.replica" not in line:
                continue
            name, number = line[line.index("tidegate.replica") + 1 :][:2]
            if model in (None, name) and version in (None, int(number)):
                pids.append(process.pid)
        return pids

    def kill_controller(self) -> None:
        """``kill -9`` the controller."""
        assert self.process is not None
        self.process.kill()

    async def stop(self) -> int:
        """SIGTERM to the controller; its exit status."""
        assert self.process is not None
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
        status = await self.process.wait()
        assert self._reader is not None
        await self._reader
        return status

    async def __aexit__(self, *exc: object) -> None:
        try:
            await asyncio.wait_for(self.stop(), 2 * START)
        finally:
            left = self.processes()
            for process in left:
                process.kill()
            shutil.rmtree(self.run_dir, ignore_errors=True)
            if exc[0] is not None:
                print(self.output)


def fetch(
    url: str, body: bytes | None = None, headers: dict[str, str] | None = None
) -> tuple[int, bytes]:
    """One HTTP call: status and body; no connection is status 0."""
    request = urllib.request.Request(url, data=body, headers=headers or {})
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()
    except OSError as error:
        return 0, str(error).encode()
