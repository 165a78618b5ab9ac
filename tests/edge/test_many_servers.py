"""An edge with more servers than it may have sockets."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from tests.edge.gateway_harness import Gateway
from tests.edge.harness import until
from tidegate.edge.pools import Server

_SERVERS, _FILES = 1000, 950


class Asked:
    """A server behind every address of the loopback network; notes where it was asked."""

    def __init__(self) -> None:
        self.places: set[str] = set()
        self.port = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            self.places.add(writer.get_extra_info("sockname")[0])
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            await reader.read()  # until the other side closes
        writer.close()


@pytest.fixture
async def asked() -> AsyncIterator[Asked]:
    asked = Asked()
    async with await asyncio.start_server(asked.answer, "0.0.0.0", 0, backlog=4096) as server:
        asked.port = server.sockets[0].getsockname()[1]
        yield asked


async def test_first_checks_do_not_take_all_sockets(run_dir: Path, asked: Asked) -> None:
    """Envoy ends when it may open no more, and all at once the checks would be more."""
    servers = [Server(f"127.20.{i // 250}.{1 + i % 250}:{asked.port}") for i in range(_SERVERS)]
    async with Gateway(run_dir) as gateway:
        edge = psutil.Process(gateway.envoy.pid)
        edge.rlimit(psutil.RLIMIT_NOFILE, (_FILES, _FILES))
        await gateway.route(*servers)

        # Not that all are healthy at one time: that many answers are much for a busy machine.
        async def all_asked() -> bool:
            return len(asked.places) == _SERVERS

        await until(all_asked)
        stats = await gateway.envoy.admin.stats("membership_healthy")
        assert stats["cluster.pool/m.membership_healthy"] > 0

        # Nor are connections kept from one check to the next.
        async def calm() -> bool:
            return edge.num_fds() < _SERVERS / 2

        await until(calm)
