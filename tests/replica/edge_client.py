"""A client that speaks to a replica as the edge does."""

from __future__ import annotations

import asyncio
import json
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.replica.waiting import WAIT

GRPC = {"content-type": "application/grpc", "te": "trailers"}


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes
    trailers: dict[str, str]

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        return str(self.json["error"])

    @property
    def grpc_status(self) -> int:
        return int({**self.headers, **self.trailers}["grpc-status"])

    @property
    def grpc_message(self) -> str:
        return urllib.parse.unquote(self.headers.get("grpc-message", ""))

    @property
    def message(self) -> bytes:
        """The message in the body's only frame."""
        assert self.body[0] == 0
        assert int.from_bytes(self.body[1:5], "big") == len(self.body) - 5
        return self.body[5:]


def frame(message: bytes, flag: int = 0) -> bytes:
    return bytes([flag]) + len(message).to_bytes(4, "big") + message


def encode(
    method: str, path: str, headers: Mapping[str, str], body: bytes | Sequence[bytes] | None
) -> bytes:
    """Return the bytes of a request; a sequence becomes chunks."""
    lines = [f"{method} {path} HTTP/1.1", "host: model"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    data = b""
    if isinstance(body, bytes):
        lines.append(f"content-length: {len(body)}")
        data = body
    elif body is not None:
        lines.append("transfer-encoding: chunked")
        data = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in body) + b"0\r\n\r\n"
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + data


class EdgeClient:
    """One connection of the edge; ``async with EdgeClient(path)``."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def __aenter__(self) -> EdgeClient:
        self._reader, self._writer = await asyncio.open_unix_connection(str(self._path))
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._writer.close()

    def abort(self) -> None:
        self._writer.transport.abort()

    async def write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def send(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        body: bytes | Sequence[bytes] | None = None,
    ) -> None:
        await self.write(encode(method, path, headers or {}, body))

    async def receive(self, *, head_only: bool = False) -> Reply:
        async with asyncio.timeout(WAIT):
            version, code, _ = (await self._line()).split(" ", 2)
            assert version == "HTTP/1.1"
            status = int(code)
            headers = await self._fields()
            if head_only:
                return Reply(status, headers, b"", {})
            if headers.get("transfer-encoding") != "chunked":
                length = int(headers["content-length"])
                return Reply(status, headers, await self._reader.readexactly(length), {})
            body = b""
            while size := int(await self._line(), 16):
                body += await self._reader.readexactly(size)
                assert await self._line() == ""
            return Reply(status, headers, body, await self._fields())

    async def closed(self) -> bytes:
        """Wait for the other side to close; return what came before."""
        async with asyncio.timeout(WAIT):
            try:
                return await self._reader.read()
            except ConnectionError:
                return b""

    def nothing_more(self) -> bool:
        """Whether no byte was received that was not read."""
        return not self._reader._buffer  # type: ignore[attr-defined]

    async def grpc(self, path: str, message: bytes, *, flag: int = 0, **headers: str) -> Reply:
        extra = {name.replace("_", "-"): value for name, value in headers.items()}
        await self.send("POST", path, {**GRPC, **extra}, frame(message, flag))
        return await self.receive()

    async def rest(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        await self.send(method, path, headers, body)
        return await self.receive(head_only=method == "HEAD")

    async def _line(self) -> str:
        line = await self._reader.readuntil(b"\r\n")
        return line[:-2].decode("latin-1")

    async def _fields(self) -> dict[str, str]:
        fields = {}
        while line := await self._line():
            name, _, value = line.partition(":")
            fields[name.lower()] = value.strip()
        return fields
