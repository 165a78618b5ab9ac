"""An HTTP/1.1 client connection for loads: kept open, one request at a time (RFC 9112)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from tidegate.load.driver import Call, Driver, Lane, now

_CACHED_HEADS = 4096
_heads: dict[bytes, Head] = {}


@dataclass(frozen=True, slots=True)
class Head:
    """What the head of a response says of what follows it."""

    status: int
    length: int | None
    """Bytes of the body; ``None``: chunked, or (with ``closes``) up to the connection's end."""
    chunked: bool
    closes: bool

    @classmethod
    def of(cls, head: bytes) -> Head:
        """Read a head, without the empty line at its end."""
        line, *lines = head.split(b"\r\n")
        version, status = line.split(b" ", 2)[:2]
        fields = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(b":") for line in lines)
        }
        code = int(status)
        chunked = b"chunked" in fields.get(b"transfer-encoding", b"").lower()
        options = fields.get(b"connection", b"").lower()
        length = fields.get(b"content-length")
        if code in (204, 304) or code < 200:
            size: int | None = 0
        else:
            size = int(length) if length is not None and not chunked else None
        closes = b"close" in options or (version == b"HTTP/1.0" and b"keep-alive" not in options)
        return cls(code, size, chunked, closes or (size is None and not chunked))


def encode_request(
    method: str, authority: str, path: str, body: bytes, headers: Mapping[str, str]
) -> bytes:
    """Return a whole request."""
    fields = {
        "host": authority,
        "content-type": "application/json",
        **{name.lower(): value for name, value in headers.items()},
        "content-length": str(len(body)),
    }
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join((*lines, "", "")).encode("latin-1") + body


class RestConnection(asyncio.Protocol):
    """One connection with at most one call under way."""

    def __init__(self, lane: Lane, requests: Sequence[bytes]) -> None:
        loop = asyncio.get_running_loop()
        self.gone: asyncio.Future[None] = loop.create_future()
        self.closed: asyncio.Future[None] = loop.create_future()
        self._lane = lane
        self._driver: Driver = lane.driver
        self._requests = requests
        self._transport: asyncio.Transport
        self._call: Call | None = None
        self._buffer: bytes | bytearray = b""
        self._head: Head | None = None
        """Of the final response, once it is there."""
        self._body_at = 0
        """Where in the buffer its body begins."""

    def launch(self, calls: Sequence[Call]) -> None:
        """Make calls on this connection for as long as it lasts."""
        for call in calls:
            self._make_next(call, now())

    def expire(self, before: float) -> None:
        """Fail the call that started before this time; HTTP/1.1 can only hang up on it."""
        if self._call is not None and self._call.started < before:
            self._fail("DEADLINE_EXCEEDED", "no answer in time")

    def close(self) -> None:
        """Close the connection."""
        if not self.gone.done():
            self.gone.set_result(None)
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the call under way, unless the end of the connection is the end of its body."""
        if not self.gone.done():
            self.gone.set_result(None)
        head = self._find_head()
        if self._call is not None:
            if exc is None and head is not None and head.length is None and not head.chunked:
                self._end(head, bytes(self._buffer[self._body_at :]))
            else:
                self._fail("DISCONNECTED", f"connection lost: {exc or 'closed by the server'}")
        self.closed.set_result(None)

    def data_received(self, data: bytes) -> None:
        """Read a response once it is whole."""
        if not self._buffer:
            self._buffer = data
        else:
            if not isinstance(self._buffer, bytearray):
                self._buffer = bytearray(self._buffer)
            self._buffer += data
        head = self._find_head()
        if head is None or self._call is None:
            return
        if head.length is not None:
            if len(self._buffer) - self._body_at >= head.length:
                self._end(head, bytes(self._buffer[self._body_at :]))
        elif head.chunked:
            whole = _unchunk(bytes(self._buffer[self._body_at :]))
            if whole is not None:
                self._end(head, whole)

    def _find_head(self) -> Head | None:
        """Return the final response's head, if it is there; a large body is not copied for it."""
        while self._head is None:
            end = self._buffer.find(b"\r\n\r\n", self._body_at)
            if end < 0:
                return None
            raw = bytes(self._buffer[self._body_at : end])
            head = _heads.get(raw)
            if head is None:
                if len(_heads) >= _CACHED_HEADS:
                    _heads.clear()
                head = _heads[raw] = Head.of(raw)
            self._body_at = end + 4
            if head.status >= 200:
                self._head = head
        return self._head

    def _end(self, head: Head, body: bytes) -> None:
        call, self._call, self._buffer = self._call, None, b""
        self._head, self._body_at = None, 0
        assert call is not None
        if head.closes:
            self.close()
        at = now()
        if 200 <= head.status < 300:
            self._driver.succeed(call, str(head.status), at, body)
        else:
            self._driver.fail(call, str(head.status), body[:200].decode(errors="replace"))
        self._make_next(call, at)

    def _fail(self, code: str, message: str) -> None:
        call, self._call = self._call, None
        assert call is not None
        self.close()
        self._driver.fail(call, code, message)
        self._lane.give((call,))

    def _make_next(self, call: Call, at: float) -> None:
        if self.gone.done():
            self._lane.give((call,))
        elif self._driver.issue(call, at):
            assert self._call is None, "HTTP/1.1 has one call at a time"
            self._call = call
            self._transport.write(self._requests[call.message])


def _unchunk(body: bytes) -> bytes | None:
    """Return the content of a chunked body, ``None`` while it is not whole (RFC 9112, 7.1)."""
    parts: list[bytes] = []
    position = 0
    while (end := body.find(b"\r\n", position)) >= 0:
        size = int(body[position:end].split(b";")[0], 16)
        if size == 0:
            return b"".join(parts) if body.find(b"\r\n\r\n", end) >= 0 else None
        parts.append(body[end + 2 : end + 2 + size])
        position = end + 2 + size + 2
    return None


async def connect_rest(
    host: str, port: int, requests: Sequence[bytes], lane: Lane
) -> RestConnection:
    """Open a connection."""
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(
        lambda: RestConnection(lane, requests), host, port
    )
    return connection
