"""gRPC by grpcio, blocking and for asyncio, with messages as bytes."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import grpc
import grpc.aio

from tidegate.client.calls import Incoming, Outgoing
from tidegate.client.connection import Connection
from tidegate.client.trust import read_files
from tidegate.errors import TidegateError
from tidegate.protocols.statuses import GrpcCode

_NOT_CONNECTED = ("failed to connect", "DNS resolution failed", "errors resolving")
_BROKEN_OFF = (
    "Broken pipe",
    "Cancelling all calls",
    "Connection aborted",
    "Connection reset",
    "Endpoint closing",
    "GOAWAY",
    "Socket closed",
    "Stream removed",
    "keepalive watchdog",
    "recvmsg",
    "sendmsg",
)
_NOT_LET_IN = "Unwrap failed"  # by TLS 1.3 a server says so after the handshake
"""What grpcio says where it makes a status itself; nothing else tells it from a server's."""


class GrpcTransport:
    """Calls over gRPC from threads."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._metadata = _metadata(connection)
        address, options = connection.address, _options(connection)
        self._channel = (
            grpc.secure_channel(address.target, _credentials(connection), options)
            if address.secure
            else grpc.insecure_channel(address.target, options)
        )
        self._methods: dict[str, Any] = {}

    def exchange(self, outgoing: Outgoing, timeout: float) -> Incoming:
        """Send ``outgoing`` and return the answer; see :class:`Transport`."""
        method = self._methods.get(outgoing.target)
        if method is None:
            method = self._methods[outgoing.target] = self._channel.unary_unary(outgoing.target)
        try:
            message = method(
                outgoing.body,
                timeout=None if math.isinf(timeout) else timeout,
                metadata=self._metadata,
            )
        except grpc.RpcError as error:
            return _failed(self._connection, error, timeout)
        return Incoming(GrpcCode.OK, message)

    def close(self) -> None:
        """Close the connections."""
        self._channel.close()


class AsyncGrpcTransport:
    """Calls over gRPC from one event loop."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._metadata = _metadata(connection)
        address, options = connection.address, _options(connection)
        self._channel = (
            grpc.aio.secure_channel(address.target, _credentials(connection), options)
            if address.secure
            else grpc.aio.insecure_channel(address.target, options)
        )
        self._methods: dict[str, Any] = {}
        self._closed = False

    async def exchange(self, outgoing: Outgoing, timeout: float) -> Incoming:
        """Send ``outgoing`` and return the answer; see :class:`Transport`."""
        method = self._methods.get(outgoing.target)
        if method is None:
            method = self._methods[outgoing.target] = self._channel.unary_unary(outgoing.target)
        try:
            message = await method(
                outgoing.body,
                timeout=None if math.isinf(timeout) else timeout,
                metadata=self._metadata,
            )
        except grpc.RpcError as error:
            return _failed(self._connection, error, timeout)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if self._closed and task is not None and not task.cancelling():
                # It is the channel that cancels; who waits for the call was not told to end.
                raise self._connection.closed() from error
            raise
        return Incoming(GrpcCode.OK, message)

    async def close(self) -> None:
        """Close the connections."""
        self._closed = True
        await self._channel.close()


def _metadata(connection: Connection) -> tuple[tuple[str, str], ...] | None:
    return tuple((key.lower(), value) for key, value in connection.headers.items()) or None


def _options(connection: Connection) -> list[tuple[str, Any]]:
    limit = min(connection.max_answer_size, 2**31 - 1)
    options: list[tuple[str, Any]] = [
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", limit),
        # Proxies from the environment; between here and here there is none.
        ("grpc.enable_http_proxy", 0 if connection.address.loopback else 1),
        # A server that is started again is found soon; no other client's wait counts.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2000),
        ("grpc.primary_user_agent", "tidegate"),
    ]
    if connection.connect_timeout is not None:
        # It is also how long connecting may take, and far servers take their time: so not always.
        options.append(("grpc.min_reconnect_backoff_ms", int(1000 * connection.connect_timeout)))
    return options


def _credentials(connection: Connection) -> Any:
    files = read_files(connection)
    return grpc.ssl_channel_credentials(files.authorities, files.key, files.certificate)


def _failed(connection: Connection, error: Any, timeout: float) -> Incoming:
    """Return what the server answered.

    Raises:
        TidegateError: it did not; grpcio made the status itself.
    """
    code, words = GrpcCode(error.code().value[0]), error.details() or ""
    fault = _of_this_side(connection, code, words, timeout)
    if fault is not None:
        raise fault from error
    return Incoming(code, message=words)


def _of_this_side(
    connection: Connection, code: GrpcCode, words: str, timeout: float
) -> TidegateError | None:
    if code is GrpcCode.DEADLINE_EXCEEDED and words == "Deadline Exceeded":
        return connection.late(timeout)
    if code is GrpcCode.RESOURCE_EXHAUSTED and "Received message larger than max" in words:
        return connection.too_large()
    if code is GrpcCode.UNAVAILABLE and words.startswith(_NOT_CONNECTED):
        if _NOT_LET_IN in words:
            return connection.not_let_in(words)
        return connection.unreachable(words)
    if code is GrpcCode.CANCELLED and words in (
        "Channel closed!",
        "Locally cancelled by application!",
    ):
        return connection.closed()
    if code in (GrpcCode.UNAVAILABLE, GrpcCode.INTERNAL) and any(w in words for w in _BROKEN_OFF):
        return connection.lost(words)
    return None
