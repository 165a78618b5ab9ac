"""How the client of asyncio keeps its connections over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvloop

from tests.edge.certificates import leaf, pem, write
from tests.edge.harness import until
from tidegate.client.address import Address
from tidegate.client.calls import Outgoing
from tidegate.client.connection import Connection
from tidegate.client.http_transport import AsyncHttpTransport
from tidegate.errors import ConnectionLost

MIB = 2**20


class Echo:
    """Answers each request with its body, and counts connections."""

    def __init__(self) -> None:
        self.opened = 0
        self.open: set[asyncio.StreamWriter] = set()
        self.gate = asyncio.Event()
        self.gate.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.opened += 1
        self.open.add(writer)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                size = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
                body = await reader.readexactly(size)
                await self.gate.wait()
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size + body)
                await writer.drain()
        self.open.discard(writer)
        writer.close()


@contextlib.asynccontextmanager
async def talking(folder: Path | None = None) -> AsyncIterator[tuple[Echo, AsyncHttpTransport]]:
    """A server, and a client of it; over TLS if there is a folder for certificates."""
    echo, context = Echo(), None
    if folder is not None:
        (folder / "ca.crt").write_bytes(pem())
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(*write(folder, leaf()))
    server = await asyncio.start_server(echo.serve, "127.0.0.1", limit=64 * MIB, ssl=context)
    scheme = "http" if folder is None else "https"
    address = Address.parse(f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    ca_file = None if folder is None else folder / "ca.crt"
    transport = AsyncHttpTransport(Connection(address, ca_file=ca_file))
    async with server:
        try:
            yield echo, transport
        finally:
            await transport.close()
            echo.gate.set()
            await until(lambda: so(lambda: not echo.open))


async def so(holds: Callable[[], bool]) -> bool:
    return holds()


async def ask(transport: AsyncHttpTransport, body: bytes = b"a") -> Any:
    return (await transport.exchange(Outgoing("/", body), 20.0)).body


async def test_connections_are_used_again_and_come_to_rest() -> None:
    async with talking() as (echo, transport):
        echo.gate.clear()
        calls = [asyncio.create_task(ask(transport)) for _ in range(100)]
        await until(lambda: so(lambda: echo.opened >= 100))
        echo.gate.set()
        assert await asyncio.gather(*calls) == [b"a"] * 100
        # 64 are kept: each call lets go of one, if there are more.
        for _ in range(40):
            assert await ask(transport) == b"a"
        assert echo.opened == 100
        await until(lambda: so(lambda: len(echo.open) <= 64))


async def test_one_that_the_server_has_closed_is_not_used_again() -> None:
    async with talking() as (echo, transport):
        for turn in range(1, 20):
            await ask(transport)
            assert echo.opened == turn
            (writer,) = echo.open
            writer.close()
            await writer.wait_closed()

            await until(lambda: so(lambda: transport._connections._idle[0].has_expired()))


@pytest.mark.parametrize("size", [0, 1, MIB - 1, 20 * MIB])
async def test_messages_of_all_sizes(size: int) -> None:
    body = np.random.default_rng(size).bytes(size)
    async with talking() as (_, transport):
        for _ in range(2):
            assert await ask(transport, body) == body


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
@pytest.mark.parametrize("secure", [False, True])
def test_every_loop_over_tls_and_without(
    run: Callable[[Coroutine[Any, Any, None]], None], secure: bool, tmp_path: Path
) -> None:
    body = bytes(range(256)) * 2**14

    async def main() -> None:
        async with talking(tmp_path if secure else None) as (echo, transport):
            for _ in range(3):
                assert await ask(transport, body) == body
            assert await asyncio.gather(*(ask(transport) for _ in range(20))) == [b"a"] * 20
            assert echo.opened <= 20

    run(main())


async def test_a_call_that_is_given_up_takes_its_connection_with_it() -> None:
    async with talking() as (echo, transport):
        echo.gate.clear()
        call = asyncio.create_task(ask(transport, b"old"))
        await until(lambda: so(lambda: echo.opened > 0))
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        echo.gate.set()
        assert await ask(transport, b"new") == b"new"
        assert echo.opened == 2


async def test_closing_cuts_what_runs() -> None:
    async with talking() as (echo, transport):
        echo.gate.clear()
        calls = [asyncio.create_task(ask(transport)) for _ in range(3)]
        await until(lambda: so(lambda: echo.opened >= 3))
        await transport.close()
        for call in calls:
            with pytest.raises(ConnectionLost, match="this client was closed"):
                await call
