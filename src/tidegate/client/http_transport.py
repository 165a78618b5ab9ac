"""HTTP/1.1 by httpcore, blocking and for asyncio: connections are kept and used again."""

from __future__ import annotations

import asyncio
import math
import ssl
import time
from typing import Any
from urllib.parse import quote

import httpcore

from tidegate.client.asyncio_streams import AsyncioBackend
from tidegate.client.calls import Incoming, Outgoing
from tidegate.client.connection import Connection
from tidegate.client.deadlines import DeadlineBackend
from tidegate.client.http_connections import HttpConnections
from tidegate.client.proxies import proxy_to
from tidegate.client.tls_refusal import look_for_refusal, refusal_of
from tidegate.client.trust import TlsContexts
from tidegate.errors import (
    ConnectionLost,
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
)


class HttpTransport:
    """Calls over HTTP from threads."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._closed = False
        self._trust = _Trust(connection)
        self._pool = httpcore.ConnectionPool(
            **_settings(connection, self._trust),
            max_connections=None,
            max_keepalive_connections=_KEPT,
            network_backend=DeadlineBackend(self._trust.renewed),
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
            fault = _failure(self._connection, error, timeout)
            if isinstance(fault, ConnectionLost):
                fault = self._trust.refusal(end - time.monotonic()) or fault
            raise fault from error
        self._trust.let_in()
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
        self._trust = _Trust(connection)
        self._backend = AsyncioBackend(self._trust.renewed)
        settings = _settings(connection, self._trust)
        pool = httpcore.AsyncConnectionPool(**settings, network_backend=self._backend)
        self._connections = HttpConnections(pool, _KEPT)

    async def exchange(self, outgoing: Outgoing, timeout: float) -> Incoming:
        """Send ``outgoing`` and return the answer; see :class:`Transport`."""
        end = time.monotonic() + timeout
        limits = {"timeout": {"connect": self._connection.connect_timeout}}
        request = httpcore.Request(
            **_request(self._connection, outgoing, timeout), extensions=limits
        )
        try:
            async with asyncio.timeout(None if math.isinf(timeout) else timeout):
                async with self._connections.send(request) as response:
                    body = _Body(self._connection, response)
                    async for chunk in response.aiter_stream():
                        body.add(chunk)
        except TimeoutError as error:
            raise self._connection.late(timeout) from error
        except _FAILURES as error:
            if self._closed:
                raise self._connection.closed() from error
            fault = _failure(self._connection, error, timeout)
            if isinstance(fault, ConnectionLost) and self._trust.doubtful:
                found = await asyncio.to_thread(self._trust.refusal, end - time.monotonic())
                fault = found or fault
            raise fault from error
        self._trust.let_in()
        return body.whole()

    async def close(self) -> None:
        """Close the connections."""
        self._closed = True
        self._backend.close()
        await self._connections.close()


class _Trust:
    """TLS of one transport, if its server speaks it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        # Made only where it is needed: reading the usual authorities takes a while.
        self._contexts = TlsContexts(connection) if connection.address.secure else None
        self._let_in: ssl.SSLContext | None = None

    @property
    def first(self) -> ssl.SSLContext | None:
        return None if self._contexts is None else self._contexts.first

    @property
    def doubtful(self) -> bool:
        """Whether the server has not answered anybody yet who showed what is shown now."""
        return self._contexts is not None and self._contexts.current() is not self._let_in

    def renewed(self, given: ssl.SSLContext) -> ssl.SSLContext:
        return given if self._contexts is None else self._contexts.renewed(given)

    def let_in(self) -> None:
        """The server has answered."""
        if self._contexts is not None:
            self._let_in = self._contexts.last

    def refusal(self, timeout: float) -> TidegateError | None:
        """Find out whether one side refuses the other's certificate, after a fault."""
        if self._contexts is None or not self.doubtful:
            return None
        return look_for_refusal(self._connection, self._contexts.current(), timeout)


def _settings(connection: Connection, trust: _Trust) -> dict[str, Any]:
    return {
        "ssl_context": trust.first,
        "proxy": proxy_to(connection.address),
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
    content = None if outgoing.method == "GET" else outgoing.body
    if content is not None:
        headers["content-length"] = str(len(content))
    return {
        "method": outgoing.method,
        "url": httpcore.URL(
            scheme=address.scheme,
            host=host,
            port=port,
            target=quote(address.path, safe="/%:@!$&'()*+,;=~") + outgoing.target,
        ),
        "headers": headers,
        "content": content,
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
    if (refused := refusal_of(connection, error)) is not None:
        return refused
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


def _sooner(connection: Connection, timeout: float) -> bool:
    """Whether connecting has less time than the call."""
    return connection.connect_timeout is not None and connection.connect_timeout < timeout
