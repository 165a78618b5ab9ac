"""A server for tests on a port of its own: a fake replica that tells Envoy whether it is ready.

Run ``python -m tests.edge.fake_server PORT NAME [HOST]`` for one that can be killed or stopped;
SIGUSR1 releases what it holds.
"""

from __future__ import annotations

import asyncio
import signal
import sys

from tests.edge.fake_replica import FakeReplica, _headers
from tidegate.protocols.tensorflow_serving import GET_MODEL_STATUS
from tidegate.replica.exchange import Exchange

_READY = {GET_MODEL_STATUS: b"\x0a\x04\x08\x01\x10\x1e"}
"""The messages by which a server says so; else it is a ModelReadyResponse."""


class FakeServer(FakeReplica):
    """Counts the calls in ``requests``, and the checks of its health in ``checks``."""

    def __init__(self, name: str, port: int = 0, host: str = "127.0.0.1") -> None:
        super().__init__(f"{host}:{port}", name)
        self.ready = True
        self.checks = 0
        self.check_event = asyncio.Event()

    @property
    def address(self) -> str:
        return self.socket

    def handle(self, exchange: Exchange) -> None:
        if _headers(exchange).get("user-agent") != "Envoy/HC":
            return super().handle(exchange)
        self.checks += 1
        self.check_event.set()
        if exchange.grpc:
            ready = _READY.get(exchange.target.decode(), b"\x08\x01")
            return exchange.reply_grpc((ready if self.ready else b"",))
        status = b"AVAILABLE" if self.ready else b"LOADING"
        return exchange.reply([b'{"state": "%s"}' % status], status=200 if self.ready else 503)


async def main(port: str, name: str, host: str = "127.0.0.1") -> None:
    server = FakeServer(name, int(port), host)
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, server.release.set)
    async with server:
        print(server.address, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
