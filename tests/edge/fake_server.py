"""A server for tests that speaks Tidegate's protocols over TCP: a fake replica with an address.

It says that it is ready unless told otherwise. Run ``python -m tests.edge.fake_server PORT NAME``
for one that can be killed or stopped.
"""

from __future__ import annotations

import asyncio
import sys

from tests.edge.fake_replica import FakeReplica
from tidegate.replica.exchange import Exchange
from tidegate.replica.http import Server, _Newcomer


class _TcpServer(Server):
    """The replica's listener on a port."""

    def __init__(self, host: str, port: int, replica: FakeReplica) -> None:
        super().__init__(replica.server._path, replica.handle, 2**30)
        self.host, self.port = host, port

    async def __aenter__(self) -> Server:
        self._server = await asyncio.get_running_loop().create_server(
            lambda: _Newcomer(self), self.host, self.port, backlog=4096
        )
        self.port = self._server.sockets[0].getsockname()[1]
        return self


class FakeServer(FakeReplica):
    """Counts the calls, without the checks of its health, in ``requests``."""

    def __init__(self, name: str, port: int = 0, host: str = "127.0.0.1") -> None:
        super().__init__("/nowhere", name)
        self.server: _TcpServer = _TcpServer(host, port, self)
        self.ready = True
        self.checks = 0
        self.check_event = asyncio.Event()

    @property
    def address(self) -> str:
        host = self.server.host
        return f"[{host}]:{self.server.port}" if ":" in host else f"{host}:{self.server.port}"

    def handle(self, exchange: Exchange) -> None:
        if exchange.target.endswith(b"/ready") and exchange.method == b"GET":
            self.checks += 1
            self.check_event.set()
            return exchange.reply([b"{}"], status=200 if self.ready else 503)
        return super().handle(exchange)


async def main(port: int, name: str) -> None:
    async with FakeServer(name, port) as server:
        print(server.address, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2]))
