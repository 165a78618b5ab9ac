"""SIGHUP: what a daemon gets that is to read its files again, and what is left by a terminal."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import signal
import sys
import termios

from tests.gateway.harness import ServedGateway
from tests.node.harness import START


async def test_a_hang_up_without_a_terminal_changes_nothing() -> None:
    async with ServedGateway({"models": {}}) as gateway:
        assert gateway.process is not None
        gateway.process.send_signal(signal.SIGHUP)
        log = gateway.run_dir / str(gateway.port) / "logs" / "controller.log"
        await gateway.until(lambda: "SIGHUP" in log.read_text())
        assert (await gateway.status())["ready"]


async def test_a_terminal_that_is_closed_stops_what_runs_in_it() -> None:
    gateway = ServedGateway({"models": {}})
    master, slave = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *_command(gateway), env=_environment(),
        stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(slave, termios.TIOCSCTTY, 0),
    )  # fmt: skip
    os.close(slave)
    await _until_told(master)
    os.close(master)
    async with asyncio.timeout(START):
        assert await process.wait() == 0
    assert not list(gateway.repository.parent.glob("*/*.sock"))


async def test_nobody_has_to_read_what_is_told() -> None:
    reader, writer = os.pipe()
    process = await asyncio.create_subprocess_exec(
        *_command(ServedGateway({"models": {}})), env=_environment(), stdout=writer, stderr=writer
    )
    os.close(writer)
    await _until_told(reader)
    os.close(reader)
    process.terminate()
    async with asyncio.timeout(START):
        assert await process.wait() == 0


def _command(gateway: ServedGateway) -> list[str]:
    return [
        sys.executable, "-m", "tidegate.cli", *gateway.command(), "--port", "0",
        "--admin-port", "0", "--run-dir", str(gateway.repository.parent),
    ]  # fmt: skip


def _environment() -> dict[str, str]:
    # What is not buffered is not left over as the interpreter ends.
    return {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


async def _until_told(file: int) -> None:
    told = b""
    async with asyncio.timeout(START):
        while b"gateway of" not in told:
            told += await asyncio.to_thread(os.read, file, 4096)
