"""An HTTP/2 server that does to each request exactly what a test says."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import hpack

from tidegate.load.http2 import frame

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = (
    0, 1, 2, 3, 4, 6, 7, 8, 9,
)  # fmt: skip
END_STREAM, ACK, END_HEADERS, PADDED, WITH_PRIORITY = 1, 1, 4, 8, 0x20
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def block(*fields: tuple[str, str]) -> bytes:
    encoder = hpack.Encoder()
    encoder.header_table_size = 0
    return encoder.encode(list(fields))


OPENING = block((":status", "200"), ("content-type", "application/grpc"))
OK = block(("grpc-status", "0"))


def message(content: bytes) -> bytes:
    return b"\0" + len(content).to_bytes(4, "big") + content


def answer(stream: int, content: bytes) -> bytes:
    """A plain success."""
    return (
        frame(HEADERS, END_HEADERS, stream, OPENING)
        + frame(DATA, 0, stream, message(content))
        + frame(HEADERS, END_HEADERS | END_STREAM, stream, OK)
    )


@dataclass
class Request:
    """One request, once it is whole."""

    connection: Connection
    stream: int
    headers: dict[str, str]
    body: bytes

    def send(self, data: bytes) -> None:
        self.connection.writer.write(data)

    def answer(self) -> None:
        """Send the request's own message back."""
        self.send(answer(self.stream, self.body[5:]))


@dataclass
class Connection:
    """One client's connection."""

    number: int
    writer: asyncio.StreamWriter
    requests: int = 0
    frames: list[tuple[int, int, int, bytes]] = field(default_factory=list)
    """Kind, flags, stream and payload of all that came, but for DATA's payloads."""


Script = Callable[[Request], Awaitable[None] | None]


@dataclass
class ScriptedServer:
    script: Script
    settings: bytes = b""
    connections: list[Connection] = field(default_factory=list)
    port: int = 0

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(len(self.connections), writer)
        self.connections.append(connection)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await self._frames(connection, reader)
        writer.close()

    async def _frames(self, connection: Connection, reader: asyncio.StreamReader) -> None:
        assert await reader.readexactly(len(PREFACE)) == PREFACE
        connection.writer.write(frame(SETTINGS, 0, 0, self.settings))
        decoder = hpack.Decoder()
        open_: dict[int, tuple[dict[str, str], bytearray]] = {}
        while True:
            word, flags, stream = struct.unpack(">IBI", await reader.readexactly(9))
            kind, payload = word & 0xFF, await reader.readexactly(word >> 8)
            connection.frames.append((kind, flags, stream, b"" if kind == DATA else payload))
            if kind == HEADERS:
                headers = {str(k): str(v) for k, v in decoder.decode(payload)}
                open_[stream] = headers, bytearray()
            elif kind == DATA:
                open_[stream][1].extend(payload)
                if flags & END_STREAM:
                    connection.requests += 1
                    headers, body = open_.pop(stream)
                    done = self.script(Request(connection, stream, headers, bytes(body)))
                    if done is not None:
                        await done


@contextlib.asynccontextmanager
async def scripted(script: Script, settings: bytes = b"") -> AsyncIterator[ScriptedServer]:
    """Run a server whose SETTINGS frame holds ``settings``."""
    server = ScriptedServer(script, settings)
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()
        for connection in server.connections:
            connection.writer.close()
        await listener.wait_closed()
