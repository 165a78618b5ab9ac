"""What a server says of a model, by servers that say it wrongly."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from tests.load import scripted_h2 as h2
from tests.load.scripted_h2 import Request, scripted
from tidegate.errors import (
    ConnectionLost,
    InvalidAnswer,
    ModelNotReady,
    RequestError,
    TidegateError,
)
from tidegate.load.target import infer_path, signature_of


@contextlib.asynccontextmanager
async def answering(answer: bytes) -> AsyncIterator[str]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


def reply(body: bytes, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (b"", ConnectionLost),
        (b"SSH-2.0-x\r\n", InvalidAnswer),
        (reply(b"<html>"), InvalidAnswer),
        (reply(b'{"inputs": 3, "outputs": []}'), InvalidAnswer),
        (reply(b'{"inputs": [{"name": "x", "datatype": "FP99", "shape": [1]}]}'), InvalidAnswer),
        (reply(b'{"error": "loading"}', "503 Busy"), ModelNotReady),
        (reply(b"teapot", "418 Teapot"), RequestError),
        (reply(b"", "302 Elsewhere"), RequestError),
    ],
)
async def test_rest_answers_that_are_none(answer: bytes, kind: type[TidegateError]) -> None:
    async with answering(answer) as target:
        with pytest.raises(kind):
            await signature_of(target, "m", "", grpc=False)


async def test_a_grpc_answer_that_is_none() -> None:
    async def script(request: Request) -> None:
        request.send(h2.answer(request.stream, b"\xff\xff"))

    async with scripted(script) as server:
        with pytest.raises(InvalidAnswer):
            await signature_of(server.target, "m", "", grpc=True)


async def test_a_server_that_speaks_no_http2() -> None:
    async with answering(reply(b"", "400 Bad Request")) as target:
        with pytest.raises(TidegateError):
            await signature_of(target, "m", "", grpc=True)


def test_paths() -> None:
    assert infer_path("a b/c", "") == "/v2/models/a%20b%2Fc/infer"
    assert infer_path("m", "3") == "/v2/models/m/versions/3/infer"
