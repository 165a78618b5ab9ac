"""HTTP/1.1 by httpx, blocking and for asyncio: connections are kept and used again."""

from __future__ import annotations

import asyncio
import math
import ssl
import time
from typing import Any

import httpx

from tidegate.client.calls import Incoming, Outgoing
from tidegate.client.connection import Connection
from tidegate.errors import (
    InvalidAnswer,
    InvalidInput,
    MessageTooLarge,
    TidegateError,
    UnsupportedEncoding,
)
from tidegate.protocols.compression import decompress
from tidegate.protocols.grpc_frames import format_timeout

# Idle connections are let go before servers on uvicorn (MLServer, KServe) close them, after 5 s.
_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=4.0)


class HttpTransport:
    """Calls over HTTP from threads."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._client = httpx.Client(**_settings(connection))

    def exchange(self, outgoing: Outgoing, timeout: float) -> Incoming:
        """Send ``outgoing`` and return the answer; see :class:`Transport`."""
        limit = None if math.isinf(timeout) else timeout
        end = time.monotonic() + timeout
        request = _request(self._client, self._connection, outgoing, timeout, httpx.Timeout(limit))
        try:
            response = self._client.send(request, stream=True)
            try:
                body = _Body(self._connection, response)
                for chunk in response.iter_raw():
                    body.add(chunk)
                    # httpx limits each wait; their sum is limited here.
                    if time.monotonic() > end:
                        raise self._connection.late(timeout)
            finally:
                response.close()
        except httpx.TransportError as error:
            raise _failure(self._connection, error, timeout) from error
        return body.whole()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


class AsyncHttpTransport:
    """Calls over HTTP from one event loop."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._client = httpx.AsyncClient(**_settings(connection))

    async def exchange(self, outgoing: Outgoing, timeout: float) -> Incoming:
        """Send ``outgoing`` and return the answer; see :class:`Transport`."""
        request = _request(self._client, self._connection, outgoing, timeout, httpx.Timeout(None))
        try:
            async with asyncio.timeout(None if math.isinf(timeout) else timeout):
                response = await self._client.send(request, stream=True)
                try:
                    body = _Body(self._connection, response)
                    async for chunk in response.aiter_raw():
                        body.add(chunk)
                finally:
                    await response.aclose()
        except TimeoutError as error:
            raise self._connection.late(timeout) from error
        except httpx.TransportError as error:
            raise _failure(self._connection, error, timeout) from error
        return body.whole()

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()


def _settings(connection: Connection) -> dict[str, Any]:
    address = connection.address
    verify: ssl.SSLContext | bool = False
    if address.secure:
        # Made only where it is needed: reading the usual authorities takes a while.
        verify = _authorities(connection)
    return {
        "verify": verify,
        # Proxies from the environment; between here and here there is none.
        "trust_env": not address.loopback,
        "limits": _LIMITS,
        "headers": {"accept-encoding": "identity", **connection.headers},
    }


def _authorities(connection: Connection) -> ssl.SSLContext:
    if connection.ca_file is None:
        return httpx.create_ssl_context()
    try:
        return ssl.create_default_context(cafile=connection.ca_file)
    except OSError as error:  # what the ssl module raises is one, too
        raise connection.bad_authorities(error) from error


def _request(
    client: httpx.Client | httpx.AsyncClient,
    connection: Connection,
    outgoing: Outgoing,
    timeout: float,
    limits: httpx.Timeout,
) -> httpx.Request:
    address = connection.address
    headers = dict(outgoing.headers)
    if not math.isinf(timeout):
        # Tidegate takes the deadline of gRPC over HTTP, too; other servers ignore it.
        headers["grpc-timeout"] = format_timeout(timeout)
    return client.build_request(
        outgoing.method,
        f"{address.scheme}://{address.target}{address.path}{outgoing.target}",
        content=outgoing.body or None,
        headers=headers,
        timeout=limits,
    )


class _Body:
    """The answer's body as it comes, never more than the limit."""

    def __init__(self, connection: Connection, response: httpx.Response) -> None:
        self._connection = connection
        self._response = response
        self._chunks: list[bytes] = []
        self._size = 0
        announced = response.headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > connection.max_answer_size:
            raise connection.too_large(announced)

    def add(self, chunk: bytes) -> None:
        self._size += len(chunk)
        if self._size > self._connection.max_answer_size:
            raise self._connection.too_large()
        self._chunks.append(chunk)

    def whole(self) -> Incoming:
        response = self._response
        body = b"".join(self._chunks)
        encoding = response.headers.get("content-encoding", "identity")
        if encoding != "identity":
            try:
                body = decompress(body, encoding, limit=self._connection.max_answer_size)
            except MessageTooLarge:
                raise self._connection.too_large() from None
            except (InvalidInput, UnsupportedEncoding) as error:
                raise InvalidAnswer(f"the answer cannot be unpacked: {error}") from error
        return Incoming(response.status_code, body, headers=response.headers)


def _failure(connection: Connection, error: httpx.TransportError, timeout: float) -> TidegateError:
    reason = str(error) or type(error).__name__
    if isinstance(error, httpx.TimeoutException):
        return connection.late(timeout)
    if isinstance(error, httpx.ConnectError | httpx.ProxyError):
        return connection.unreachable(reason)
    broken_off = any(words in reason for words in ("disconnected", "incomplete", "peer closed"))
    if isinstance(error, httpx.RemoteProtocolError) and not broken_off:
        return connection.not_http(reason)
    return connection.lost(reason)
