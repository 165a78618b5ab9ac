"""A backend of known capacity, which can be made sick: what balancing is measured with.

    python -m bench.backend --name a --port 9000 --service-ms 10 --slots 8

It answers any unary gRPC method over HTTP/2 and any path by REST over HTTP/1.1 or HTTP/2. A call
takes a slot for the service time, a timer and no work, so that ``slots / service time`` calls a
second are what it can do, however busy the machine is. Without a service time it answers at once.
A gRPC answer is a ModelInferResponse whose id is the backend's name. What asks for health
(``GET``, ``grpc.health.v1``) is answered at once, as long as anything is.

On standard input it takes one command a line: ``slow F`` (the service time times F), ``silent``
(takes calls, and never answers, not for health either), ``mute`` (the same, but it says that it is
healthy), ``reset`` (breaks the connection in the middle of an answer), ``garbage`` (answers what
is not HTTP), ``error`` (UNAVAILABLE, 503), ``down`` and ``up`` (stops listening and closes every
connection, as a killed process; listens again), ``well`` (ends all but ``down``) and ``count``,
answered by a line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import os
import signal
import struct
import sys
from collections import deque
from collections.abc import Mapping
from typing import cast

import hpack
import uvloop

from tidegate.errors import ModelNotReady
from tidegate.replica.exchange import Exchange, Head, OpenConnections
from tidegate.replica.header_blocks import BlockReader, MalformedBlock
from tidegate.replica.http1 import Http1Connection
from tidegate.replica.http2 import Http2Connection
from tidegate.replica.http2_answers import Answers
from tidegate.replica.http2_frames import DATA, PREFACE, frame

_LIMIT = 2**30
_WINDOW = 2**20
_BACKLOG = 4096
_HEALTH = b"/grpc.health.v1.Health/Check"
_SERVING = b"\x08\x01"
MODES = ("well", "silent", "mute", "reset", "garbage", "error")


class Blocks:
    """Reads header blocks of any peer: of one with a dynamic table too, until it gives that up.

    The peer hears that it may have no table with our settings; what it sends before that may
    refer to one.
    """

    def __init__(self) -> None:
        self._stateful: hpack.Decoder | None = hpack.Decoder()
        self._plain = BlockReader(_head)

    def read(self, block: bytes) -> tuple[Head, bytes | None]:
        """Return the head; see :class:`BlockReader`."""
        decoder = self._stateful
        if decoder is None:
            return self._plain.read(block)
        try:
            fields = dict(decoder.decode(block, raw=True))
        except hpack.HPACKError as error:
            raise MalformedBlock(str(error)) from error
        if decoder.header_table_size == 0:
            self._stateful = None
        return _head(cast("Mapping[bytes, bytes]", fields)), None


def _head(fields: Mapping[bytes, bytes]) -> Head:
    return Head(fields.get(b":method", b""), fields.get(b":path", b""), fields)


class Http2(Http2Connection):
    """A connection from any peer, not from our edge alone."""

    calls = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Read blocks as any peer sends them; take messages in steps, as a node's edge does."""
        self._blocks = cast("BlockReader[Head]", Blocks())
        self._taken: dict[int, int] = {}
        most, self._most = self._most, _WINDOW
        super().connection_made(transport)
        self._most = most

    def leave(self) -> bool:
        """Close the connection unless a call is under way; return whether that was so."""
        if self._waiting or self._coming or self._transport.is_closing():
            return False
        # RFC 9113, section 6.8: what was sent at the same moment can be sent again elsewhere.
        self._transport.write(b"\0\0\x08\7\0\0\0\0\0" + struct.pack(">II", self._last_stream, 0))
        self._transport.close()
        return True

    def _take_piece(self, exchange: Exchange, piece: bytes, *, ended: bool) -> None:
        # The answer does not depend on it: a hundred messages of 64 MiB take no memory here.
        taken = self._taken.pop(exchange.stream, 0) + len(piece)
        if taken >= _WINDOW // 2:
            self._answers.open_window(taken, exchange.stream)
            taken = 0
        if not ended:
            self._taken[exchange.stream] = taken
        super()._take_piece(exchange, piece[:0], ended=ended)


class Http1(Http1Connection):
    """The same for HTTP/1.1."""

    calls = 0

    def leave(self) -> bool:
        """Close the connection unless a call is under way; return whether that was so."""
        if self._exchange is not None or self._transport.is_closing():
            return False
        self._transport.close()
        return True


class _Newcomer(asyncio.Protocol):
    """A connection until its first bytes tell which HTTP it speaks."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._begun = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the first bytes."""
        self._transport = cast("asyncio.Transport", transport)
        self._backend.connections.all.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """It said nothing."""
        self._backend.connections.discard(self)

    def close(self) -> None:
        """Close the connection."""
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Hand over to the protocol that it speaks."""
        self._begun += data
        if len(self._begun) < 3:
            return
        backend = self._backend
        kind = Http2 if self._begun.startswith(PREFACE[:3]) else Http1

        def take(exchange: Exchange) -> None:
            connection.calls += 1
            backend.take(exchange)

        connection = kind(take, _LIMIT, 64, backend.connections)
        self._transport.set_protocol(connection)
        connection.connection_made(self._transport)
        backend.connections.discard(self)
        backend.watch(connection)
        connection.data_received(self._begun)


class Backend:
    """Answers calls, or does not."""

    def __init__(
        self, name: str, hosts: list[str], service: float, slots: int, idle: float
    ) -> None:
        self.name = name
        self._idle = idle
        self.mode = "well"
        self.slowness = 1.0
        self.connections = OpenConnections()
        self.calls = 0
        self.health = 0
        self.gone = 0
        self._hosts = hosts
        self._port = 0
        self._service = service
        self._free = slots
        self._waiting: deque[Exchange] = deque()
        self._answer = b"\x1a" + bytes((len(name),)) + name.encode()
        self._server: asyncio.Server | None = None

    async def listen(self, port: int) -> int:
        """Listen; return the port."""
        self._server = await asyncio.get_running_loop().create_server(
            lambda: _Newcomer(self), self._hosts, port, backlog=_BACKLOG, reuse_address=True
        )
        self._port = self._server.sockets[0].getsockname()[1]
        return self._port

    def watch(self, connection: Http1 | Http2, calls: int = 0) -> None:
        """Close a connection that had no call for a while, if that is asked for."""
        if not self._idle or connection not in self.connections.all:
            return
        # It has made as many calls as at the last look.
        if calls and calls == connection.calls and connection.leave():
            return
        again = (connection, connection.calls)
        asyncio.get_running_loop().call_later(self._idle, self.watch, *again)

    def take(self, exchange: Exchange) -> None:
        """Take a call."""
        if exchange.head.method == b"GET" or exchange.head.target == _HEALTH:
            self.health += 1
            if self.mode in ("well", "mute"):
                self._answer_health(exchange)
            elif self.mode != "silent":
                self._misbehave(exchange)
            return
        self.calls += 1
        if self.mode != "well":
            self._misbehave(exchange)
        elif not self._service:
            self._succeed(exchange)
        elif self._free:
            self._free -= 1
            self._serve(exchange, asyncio.get_running_loop().time())
        else:
            self._waiting.append(exchange)
            exchange.on_gone = self._count_gone

    def _serve(self, exchange: Exchange, start: float) -> None:
        # From when it could begin, not from when the loop came to it: no time of a slot is lost.
        end = start + self._service * self.slowness
        asyncio.get_running_loop().call_at(end, self._end, exchange, end)

    def _end(self, exchange: Exchange, end: float) -> None:
        if self.mode == "well":
            self._succeed(exchange)
        else:
            self._misbehave(exchange)
        while self._waiting:
            following = self._waiting.popleft()
            if not following.answered:
                self._serve(following, end)
                return
        self._free += 1

    def _succeed(self, exchange: Exchange) -> None:
        if exchange.grpc:
            exchange.reply_grpc((self._answer,))
        else:
            exchange.reply((json.dumps({"id": self.name}).encode(),))

    def _answer_health(self, exchange: Exchange) -> None:
        if exchange.grpc:
            exchange.reply_grpc((_SERVING,))
        else:
            exchange.reply((b"{}",))

    def _misbehave(self, exchange: Exchange) -> None:
        if self.mode == "error":
            exchange.fail(ModelNotReady("this backend was told to fail"))
            return
        exchange.on_gone = self._count_gone
        connection = cast("Http1 | Answers", exchange._connection)
        if connection._transport.is_closing():
            return
        if self.mode == "reset":
            _break_off(connection, _half_of_an_answer(exchange, connection))
        elif self.mode == "garbage":
            _break_off(connection, b"\xff\xfe no HTTP \x00" * 16)

    def _count_gone(self) -> None:
        self.gone += 1

    async def obey(self, command: str) -> str | None:
        """Do what standard input says; return what to answer."""
        word, _, rest = command.strip().partition(" ")
        if word == "slow":
            self.slowness = float(rest)
        elif word in MODES:
            self.mode = word
            if word == "well":
                self.slowness = 1.0
        elif word == "down":
            self._close()
        elif word == "up":
            await self.listen(self._port)
        elif word == "count":
            counts = {"calls": self.calls, "health": self.health, "gone": self.gone}
            return json.dumps({**counts, "connections": len(self.connections.all)})
        else:
            return json.dumps({"error": f"no command {command.strip()!r}"})
        return json.dumps({"done": word})

    def _close(self) -> None:
        assert self._server is not None
        self._server.close()
        for connection in list(self.connections.all):
            connection.close()


def _half_of_an_answer(exchange: Exchange, connection: Http1 | Answers) -> bytes:
    if isinstance(connection, Http1):
        return b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nhalf"
    return connection.head(exchange.stream, 0, b"\x88") + frame(DATA, 0, exchange.stream, b"half")


def _break_off(connection: Http1 | Answers, begun: bytes) -> None:
    """Send this and close the connection."""
    connection._transport.write(begun)
    connection._transport.close()


async def serve(given: argparse.Namespace) -> None:
    """Serve until SIGTERM or the end of standard input."""
    backend = Backend(given.name, given.host, given.service_ms / 1e3, given.slots, given.idle)
    port = await backend.listen(given.port)
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    task = asyncio.current_task()
    assert task is not None
    loop.add_signal_handler(signal.SIGTERM, task.cancel)
    gc.freeze()
    # Connections come and go; looking through all that are open each time would stop the clock.
    gc.set_threshold(10_000, 20, 1000)
    print(f"listening on {port}", flush=True)
    with contextlib.suppress(asyncio.CancelledError):
        while line := await reader.readline():
            answer = await backend.obey(line.decode())
            print(answer, flush=True)
    # Nothing is kept that would have to be closed.
    os._exit(0)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(prog="python -m bench.backend", description=__doc__)
    parser.add_argument("--name", default="backend")
    parser.add_argument("--host", nargs="+", default=["127.0.0.1"])
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--service-ms", type=float, default=0.0, help="0: at once, without slots")
    parser.add_argument("--slots", type=int, default=1, help="calls at a time")
    parser.add_argument(
        "--idle", type=float, default=0.0, help="close connections idle for so many seconds"
    )
    uvloop.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
