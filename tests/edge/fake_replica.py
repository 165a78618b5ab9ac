"""A replica for tests: HTTP/1.1 on a Unix socket, gRPC with chunked trailers.

What it does is told by the request header ``x-do``, a list of steps with ``;`` between them:

``sleep 0.5``; ``grpc 13 words``; ``http 429``; ``close`` (break off before an answer); ``half``
(break off in the middle of one); ``big 1000`` (so many bytes). Without one it answers with what it
got, as JSON. Run ``python -m tests.edge.fake_replica SOCKET`` for one that can be killed.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

import httptools


class Connection(asyncio.Protocol):
    def __init__(self, replica: FakeReplica) -> None:
        self.replica = replica
        self.task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.parser = httptools.HttpRequestParser(self)
        self.replica.connections.add(self)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def connection_lost(self, error: Exception | None) -> None:
        self.replica.connections.discard(self)
        if self.task is not None and not self.task.done():
            self.task.cancel()
            self.replica.cancelled += 1
            self.replica.cancelled_event.set()

    def on_message_begin(self) -> None:
        self.headers: dict[str, str] = {}
        self.size = 0
        self.path = ""

    def on_url(self, url: bytes) -> None:
        self.path += url.decode()

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode().lower()] = value.decode()

    def on_body(self, body: bytes) -> None:
        self.size += len(body)

    def on_message_complete(self) -> None:
        self.replica.requests += 1
        self.replica.request_event.set()
        self.task = asyncio.ensure_future(self.answer())

    async def answer(self) -> None:
        info: dict[str, Any] = {
            "replica": self.replica.name,
            "path": self.path,
            "headers": self.headers,
            "size": self.size,
        }
        payload = json.dumps(info).encode()
        for step in filter(None, self.headers.get("x-do", "").split(";")):
            verb, _, rest = step.strip().partition(" ")
            if verb == "sleep":
                await asyncio.sleep(float(rest))
            elif verb == "big":
                payload = bytes(int(rest))
            elif verb == "close":
                return self.transport.abort()
            elif verb == "die":
                os._exit(9)
            elif verb == "half":
                self.transport.write(self.head() + b"5\r\n\0\0\0\0\x09\r\n")
                await asyncio.sleep(0.05)
                return self.transport.abort()
            elif verb == "http":
                return self.plain(int(rest), b'{"error":"own words"}')
            elif verb == "grpc":
                code, _, words = rest.partition(" ")
                return self.transport.write(
                    b"HTTP/1.1 200 OK\r\ncontent-type: application/grpc\r\n"
                    b"grpc-status: %s\r\ngrpc-message: %s\r\ncontent-length: 0\r\n\r\n"
                    % (code.encode(), words.encode())
                )
        if "application/grpc" not in self.headers.get("content-type", ""):
            return self.plain(200, payload)
        frame = b"\0" + len(payload).to_bytes(4, "big") + payload
        self.transport.write(
            self.head() + b"%x\r\n%s\r\n0\r\ngrpc-status: 0\r\n\r\n" % (len(frame), frame)
        )
        return None

    def head(self) -> bytes:
        return (
            b"HTTP/1.1 200 OK\r\ncontent-type: application/grpc\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )

    def plain(self, status: int, body: bytes) -> None:
        self.transport.write(
            b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s"
            % (status, len(body), body)
        )


class FakeReplica:
    def __init__(self, socket: str, name: str = "") -> None:
        self.socket = socket
        self.name = name or socket.rsplit("/", 1)[-1]
        self.connections: set[Connection] = set()
        self.requests = 0
        self.cancelled = 0
        self.request_event = asyncio.Event()
        self.cancelled_event = asyncio.Event()

    async def __aenter__(self) -> FakeReplica:
        loop = asyncio.get_running_loop()
        self.server = await loop.create_unix_server(
            lambda: Connection(self), self.socket, backlog=2048
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        """As ``kill -9`` looks from outside."""
        self.server.close()
        for connection in list(self.connections):
            connection.transport.abort()


async def main(socket: str) -> None:
    async with FakeReplica(socket):
        print("ready", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
