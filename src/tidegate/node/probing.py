"""Asks replicas over their sockets what they are and what they have counted."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError

from tidegate.replica.service import STATS_PATH, STATUS_PATH
from tidegate.replica.spec import Ready
from tidegate.telemetry.statistics import ReplicaStats

_READY_TIMEOUT = 5.0
_STATS_TIMEOUT = 1.0
_LARGEST_ANSWER = 2**20
_M = TypeVar("_M", bound=BaseModel)


async def probe(socket: Path) -> Ready | None:
    """Return what the replica at ``socket`` says; ``None`` when it is not ready."""
    answer = await _get(socket, STATUS_PATH, _READY_TIMEOUT)
    return None if answer is None else _read(Ready, answer)


async def ask_stats(socket: Path, timeout: float = _STATS_TIMEOUT) -> ReplicaStats | None:
    """Return what the replica at ``socket`` has counted; ``None`` when it does not say."""
    answer = await _get(socket, STATS_PATH, timeout)
    return None if answer is None else _read(ReplicaStats, answer)


async def ask_metadata(socket: Path, model: str) -> dict[str, Any] | None:
    """Return the metadata of the model that the replica at ``socket`` serves, if it says it."""
    answer = await _get(socket, f"/v2/models/{model}", _STATS_TIMEOUT)
    try:
        found: dict[str, Any] | None = None if answer is None else orjson.loads(answer)
    except orjson.JSONDecodeError:
        return None
    return found


def _read(kind: type[_M], answer: bytes) -> _M | None:
    try:
        return kind.model_validate_json(answer)
    except ValidationError:
        return None  # of another release


async def _get(socket: Path, path: str, timeout: float) -> bytes | None:
    try:
        async with asyncio.timeout(timeout):
            reader, writer = await asyncio.open_unix_connection(str(socket))
            try:
                writer.write(b"GET %s HTTP/1.1\r\nhost: replica\r\n\r\n" % path.encode())
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = int(head.partition(b"content-length:")[2].split()[0])
                if b" 200 " not in head.partition(b"\r\n")[0] or length > _LARGEST_ANSWER:
                    return None
                return await reader.readexactly(length)
            finally:
                writer.close()
    except (OSError, TimeoutError, EOFError, asyncio.LimitOverrunError, ValueError, IndexError):
        return None
