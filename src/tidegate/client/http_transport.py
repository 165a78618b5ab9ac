"""HTTP/1.1 by httpcore, blocking and for asyncio: connections are kept and used again."""

from __future__ import annotations

import asyncio
import math
import ssl
import time
from typing import Any
from urllib.parse import quote

import httpcore

from tidegate.client.calls import Incoming, Outgoing
from tidegate.client.connection import Connection
from tidegate.client.deadlines import DeadlineBackend
from tidegate.client.proxies import proxy_to
from tidegate.client.trust import tls_context
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
_KEPT, _KEPT_SECONDS = 64, 4.0
_FAILURES = (
    httpcore.TimeoutException,
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.ProxyError,
    httpcore.UnsupportedProtocol,
    ssl.SSLError,  # the one for asyncio lets it through
)
_NOT_LET_IN = ("CERTIFICATE", "UNKNOWN_CA", "ACCESS_DENIED", "DECRYPT_ERROR", "HANDSHAKE_FAILURE")
"""Of the alerts of TLS (RFC 8446, section 6), what a server says of a client's certificate."""


class HttpTransport:
    """Calls over HTTP from threads."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._closed = False
        self._pool = httpcore.ConnectionPool(
            **_settings(connection), network_backend=DeadlineBackend()
        )

    def exchange(self, outgoing: Outgoing, timeout: float) -> Incoming:
        """Send ``outgoing`` and return the answer; see :class:`Transport`."""
        end = time.monotonic() + timeout
        request = _request(self._connection, outgoing, timeout)
        limits = dict.fromkeys(("connect", "read", "write"), end)
        if (connect := self._connection.connect_timeout) is not None:
            limits["connect"] = min(end, time.monotonic() + connect)
        try:
            with self._pool.stream(**request, extensions={"timeout": limits}) as response:
                body = _Body(self._connection, response)
                for chunk in response.iter_stream():
                    body.add(chunk)
        except _FAILURES as error:
            if self._closed:
                raise self._connection.closed() from error
            raise _failure(self._connection, error, timeout) from error
        return body.whole()

    def close(self) -> None:
        """Close the connections."""
        self._closed = True
        self._pool.close()


class AsyncHttpTransport:
    """Calls over HTTP from one event loop."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._closed = False
        self._pool = httpcore.AsyncConnectionPool(**_settings(connection))

    async def exchange(self, outgoing: Outgoing, timeout: float) -> Incoming:
        """Send ``outgoing`` and return the answer; see :class:`Transport`."""
        request = _request(self._connection, outgoing, timeout)
        limits = {"timeout": {"connect": self._connection.connect_timeout}}
        try:
            async with asyncio.timeout(None if math.isinf(timeout) else timeout):
                async with self._pool.stream(**request, extensions=limits) as response:
                    body = _Body(self._connection, response)
                    async for chunk in response.aiter_stream():
                        body.add(chunk)
        except TimeoutError as error:
            raise self._connection.late(timeout) from error
        except _FAILURES as error:
            if self._closed:
                raise self._connection.closed() from error
            raise _failure(self._connection, error, timeout) from error
        return body.whole()

    async def close(self) -> None:
        """Close the connections."""
        self._closed = True
        await self._pool.aclose()


def _settings(connection: Connection) -> dict[str, Any]:
    return {
        # Made only where it is needed: reading the usual authorities takes a while.
        "ssl_context": tls_context(connection) if connection.address.secure else None,
        "proxy": proxy_to(connection.address),
        "max_connections": None,
        "max_keepalive_connections": _KEPT,
        "keepalive_expiry": _KEPT_SECONDS,
    }


def _request(connection: Connection, outgoing: Outgoing, timeout: float) -> dict[str, Any]:
    address = connection.address
    host = address.host if address.host.isascii() else address.host.encode("idna").decode()
    port = None if address.port == (443 if address.secure else 80) else address.port
    headers = {
        "host": (f"[{host}]" if ":" in host else host) + (f":{port}" if port else ""),
        "user-agent": "tidegate",
        "accept": "*/*",
        "accept-encoding": "identity",
    }
    for given in (connection.headers, outgoing.headers):
        headers.update((name.lower(), value) for name, value in given.items())
    if not math.isinf(timeout):
        # Tidegate takes the deadline of gRPC over HTTP, too; other servers ignore it.
        headers["grpc-timeout"] = format_timeout(timeout)
    return {
        "method": outgoing.method,
        "url": httpcore.URL(
            scheme=address.scheme,
            host=host,
            port=port,
            target=quote(address.path, safe="/%:@!$&'()*+,;=~") + outgoing.target,
        ),
        "headers": headers,
        "content": None if outgoing.method == "GET" else outgoing.body,
    }


class _Body:
    """The answer's body as it comes, never more than the limit."""

    def __init__(self, connection: Connection, response: httpcore.Response) -> None:
        self._connection = connection
        self._status = response.status
        self._headers = {
            name.decode("latin-1").lower(): value.decode("latin-1")
            for name, value in response.headers
        }
        self._chunks: list[bytes] = []
        self._size = 0
        announced = self._headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > connection.max_answer_size:
            raise connection.too_large(announced)

    def add(self, chunk: bytes) -> None:
        self._size += len(chunk)
        if self._size > self._connection.max_answer_size:
            raise self._connection.too_large()
        self._chunks.append(chunk)

    def whole(self) -> Incoming:
        body = b"".join(self._chunks)
        encoding = self._headers.get("content-encoding", "identity")
        if encoding != "identity":
            try:
                body = decompress(body, encoding, limit=self._connection.max_answer_size)
            except MessageTooLarge:
                raise self._connection.too_large() from None
            except (InvalidInput, UnsupportedEncoding) as error:
                raise InvalidAnswer(f"the answer cannot be unpacked: {error}") from error
        return Incoming(self._status, body, headers=self._headers)


def _failure(connection: Connection, error: Exception, timeout: float) -> TidegateError:
    reason = str(error) or type(error).__name__
    if _not_let_in(error):
        return connection.not_let_in(reason)
    if isinstance(error, httpcore.ConnectTimeout) and _sooner(connection, timeout):
        return connection.unreachable(f"no connection in {connection.connect_timeout:.3g} s")
    if isinstance(error, httpcore.TimeoutException):
        return connection.late(timeout)
    if isinstance(error, httpcore.ConnectError | httpcore.ProxyError):
        return connection.unreachable(reason)
    broken_off = any(words in reason for words in ("disconnected", "incomplete", "peer closed"))
    if isinstance(error, httpcore.RemoteProtocolError) and not broken_off:
        return connection.not_http(reason)
    return connection.lost(reason)


def _not_let_in(error: Exception) -> bool:
    """Whether the server refused the certificate of this client, or that it has none."""
    for each in (error, *error.args):
        if isinstance(each, ssl.SSLError) and "_ALERT_" in (each.reason or ""):
            return any(words in each.reason for words in _NOT_LET_IN)
    return False


def _sooner(connection: Connection, timeout: float) -> bool:
    """Whether connecting has less time than the call."""
    return connection.connect_timeout is not None and connection.connect_timeout < timeout
