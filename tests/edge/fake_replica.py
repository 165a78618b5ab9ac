"""A replica for tests: the real one's listener, before whatever a test asks for.

What it does is told by the request header ``x-do``, a list of steps with ``;`` between them:

``sleep 0.5``; ``hold`` (until ``release`` is set); ``grpc 13 words``; ``http 429``; ``close``
(break off before an answer); ``half`` (break off in the middle of one); ``big 1000`` (so many
bytes). The steps after ``only NAME`` are for the replica of this name, those after ``once`` for
the first request. Without any it answers with what it got, as JSON.

It listens on a Unix socket, or over TCP at ``HOST:PORT``. Run ``python -m
tests.edge.fake_replica SOCKET`` for one that can be killed.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from tidegate.replica.exchange import Exchange
from tidegate.replica.header_blocks import encode_block, text_of
from tidegate.replica.http import Server, _Newcomer
from tidegate.replica.http2 import Http2Connection
from tidegate.replica.http2_answers import Answers
from tidegate.replica.http2_frames import DATA, frame

_LIMIT = 2**30


class FakeReplica:
    def __init__(self, socket: str, name: str = "", idle_timeout: float = 60.0) -> None:
        self.socket = socket
        self.name = name or socket.rsplit("/", 1)[-1]
        self.requests = 0
        self.cancelled = 0
        self.request_event = asyncio.Event()
        self.cancelled_event = asyncio.Event()
        self.release = asyncio.Event()
        self.server = Server(Path(socket), self.handle, _LIMIT, idle_timeout=idle_timeout)
        self.tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        host, _, port = self.socket.rpartition(":")
        if host:
            loop = asyncio.get_running_loop()
            self.server._server = await loop.create_server(
                lambda: _Newcomer(self.server), host.strip("[]"), int(port), backlog=4096
            )
            self.socket = f"{host}:{self.server._server.sockets[0].getsockname()[1]}"
        else:
            await self.server.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        """As ``kill -9`` looks from outside."""
        assert self.server._server is not None
        self.server._server.close()
        self.break_off()

    @property
    def receiving(self) -> bool:
        """Whether a request has begun and not ended."""
        connections = self.server.connections.all
        return any(c._coming for c in connections if isinstance(c, Http2Connection))

    def break_off(self) -> None:
        """Close the connections, whatever runs."""
        for connection in list(self.server.connections.all):
            connection.close()

    def handle(self, exchange: Exchange) -> None:
        self.requests += 1
        self.request_event.set()
        task = asyncio.ensure_future(self.answer(exchange))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

        def cancel() -> None:
            if not task.done():
                task.cancel()
                self.cancelled += 1
                self.cancelled_event.set()

        exchange.on_gone = cancel

    def steps(self, told: str) -> Iterator[tuple[str, str]]:
        """The steps that are for this replica and this request."""
        for step in filter(None, told.split(";")):
            verb, _, rest = step.strip().partition(" ")
            if (verb == "only" and rest != self.name) or (verb == "once" and self.requests > 1):
                return
            yield verb, rest

    async def answer(self, exchange: Exchange) -> None:
        headers = _headers(exchange)
        info: dict[str, Any] = {
            "replica": self.name,
            "path": exchange.target.decode(),
            "headers": headers,
            "size": len(exchange.body),
        }
        payload = json.dumps(info).encode()
        for verb, rest in self.steps(headers.get("x-do", "")):
            if verb in ("sleep", "hold"):
                await (asyncio.sleep(float(rest)) if rest else self.release.wait())
            elif verb == "big":
                payload = bytes(int(rest))
            elif verb in ("close", "half"):
                exchange.on_gone = None
                if verb == "half":
                    await _half(exchange)
                return self.break_off()
            elif verb == "die":
                os._exit(9)
            elif verb == "http":
                return exchange.reply([b'{"error":"own words"}'], status=int(rest))
            elif verb == "grpc":
                code, _, words = rest.partition(" ")
                return _grpc_error(exchange, code, words)
        if exchange.grpc:
            return exchange.reply_grpc((payload,))
        return exchange.reply([payload], headers=_load(headers))


def _headers(exchange: Exchange) -> dict[str, str]:
    headers = {name.decode(): value.decode() for name, value in exchange.headers.items()}
    if exchange.request_id is not None:
        headers["x-request-id"] = text_of(exchange.request_id)
    return headers


def _load(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    """What tells of load in an answer over REST: the header ``x-load`` says how much."""
    load = headers.get("x-load")
    if load is None:
        return []
    report = b"TEXT application_utilization=" + load.encode()
    return [(b"endpoint-load-metrics", report), (b"x-envoy-upstream-service-time", b"3")]


async def _half(exchange: Exchange) -> None:
    """The head of an answer and a part of its body, on the wire."""
    connection, stream = exchange._connection, exchange.stream
    assert isinstance(connection, Answers)
    block = b"\x88" + encode_block([(b"content-type", b"application/grpc")])
    connection.send(connection.head(stream, 0, block), frame(DATA, 0, stream, b"\0\0\0\0\x09"))
    await asyncio.sleep(0.05)


def _grpc_error(exchange: Exchange, code: str, words: str) -> None:
    fields = [
        (b"content-type", b"application/grpc"),
        (b"grpc-status", code.encode()),
        (b"grpc-message", urllib.parse.quote(urllib.parse.unquote(words)).encode()),
    ]
    if exchange._begin_answer():
        exchange._connection.write_response(exchange.stream, 200, fields, ())


async def main(socket: str) -> None:
    async with FakeReplica(socket):
        print("ready", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
