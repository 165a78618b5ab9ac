"""An edge with more servers than it may have sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from tests.edge.gateway_harness import Gateway
from tests.edge.harness import until
from tidegate.edge.pools import Server

_SERVERS, _FILES = 3000, 1500


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
    await reader.read()  # until the other side closes
    writer.close()


@pytest.fixture
async def port() -> AsyncIterator[int]:
    """A server behind every address of the loopback network."""
    server = await asyncio.start_server(_answer, "0.0.0.0", 0, backlog=4096)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def test_first_checks_do_not_take_all_sockets(run_dir: Path, port: int) -> None:
    """Envoy ends when it may open no more; all at once, the checks would be twice as many."""
    servers = [Server(f"127.20.{i // 250}.{1 + i % 250}:{port}") for i in range(_SERVERS)]
    async with Gateway(run_dir) as gateway:
        edge = psutil.Process(gateway.envoy.pid)
        edge.rlimit(psutil.RLIMIT_NOFILE, (_FILES, _FILES))
        await gateway.route(*servers)

        async def all_healthy() -> bool:
            stats = await gateway.envoy.admin.stats("membership_healthy")
            return stats.get("cluster.pool/m.membership_healthy") == _SERVERS

        await until(all_healthy)
        # Nor are connections kept from one check to the next.
        assert edge.num_fds() < _SERVERS / 2
