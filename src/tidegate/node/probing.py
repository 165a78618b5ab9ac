"""Asks a replica that an earlier controller started what it is."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tidegate.replica.service import STATUS_PATH
from tidegate.replica.spec import Ready

_TIMEOUT = 5.0


async def probe(socket: Path) -> Ready | None:
    """Return what the replica at ``socket`` says; ``None`` when it is not ready."""
    try:
        async with asyncio.timeout(_TIMEOUT):
            reader, writer = await asyncio.open_unix_connection(str(socket))
            try:
                writer.write(b"GET %s HTTP/1.1\r\nhost: replica\r\n\r\n" % STATUS_PATH.encode())
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length:")[2].split()[0])
                return Ready.model_validate_json(await reader.readexactly(length))
            finally:
                writer.close()
    except (OSError, TimeoutError, EOFError, asyncio.LimitOverrunError, ValueError, IndexError):
        return None
