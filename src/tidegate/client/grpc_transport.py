"""gRPC by grpcio, blocking and for asyncio, with messages as bytes."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio

from tidegate.client.calls import Incoming, Outgoing
from tidegate.client.connection import Connection
from tidegate.client.tls_refusal import look_for_refusal
from tidegate.client.trust import FollowedFiles, read_files, tls_context
from tidegate.errors import ConfigurationError, ConnectionFailed, TidegateError
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
_NOT_OF_TLS = ("refused", "imeout", "timed out", "DNS", "resolv", "nreachable", "No route")
"""What it says where nobody was connected to."""
_TICK = 1.0
"""Seconds between looks at files of certificates."""


class GrpcTransport:
    """Calls over gRPC from threads."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._metadata = _metadata(connection)
        self._channels = _Channels(connection, grpc.secure_channel, grpc.insecure_channel)

    def exchange(self, outgoing: Outgoing, timeout: float) -> Incoming:
        """Send ``outgoing`` and return the answer; see :class:`Transport`."""
        end = time.monotonic() + timeout
        channel = self._channels.take()
        try:
            message = channel.method(outgoing.target)(
                outgoing.body,
                timeout=None if math.isinf(timeout) else timeout,
                metadata=self._metadata,
            )
        except grpc.RpcError as error:
            fault = _of_this_side(self._connection, error, timeout)
            if self._channels.refused(fault):
                fault = self._channels.refusal(end - time.monotonic()) or fault
            if fault is not None:
                raise fault from error
            return _answered(error)
        finally:
            for gone in self._channels.give_back(channel):
                gone.itself.close()
        self._channels.let_in = channel
        return Incoming(GrpcCode.OK, message)

    def close(self) -> None:
        """Close the connections."""
        for channel in self._channels.take_all():
            channel.itself.close()


class AsyncGrpcTransport:
    """Calls over gRPC from one event loop."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._metadata = _metadata(connection)
        self._channels = _Channels(connection, grpc.aio.secure_channel, grpc.aio.insecure_channel)
        self._closed = False

    async def exchange(self, outgoing: Outgoing, timeout: float) -> Incoming:
        """Send ``outgoing`` and return the answer; see :class:`Transport`."""
        end = time.monotonic() + timeout
        channel = self._channels.take()
        try:
            message = await channel.method(outgoing.target)(
                outgoing.body,
                timeout=None if math.isinf(timeout) else timeout,
                metadata=self._metadata,
            )
        except grpc.RpcError as error:
            fault = _of_this_side(self._connection, error, timeout)
            if self._channels.refused(fault):
                left = end - time.monotonic()
                found = await asyncio.to_thread(self._channels.refusal, left)
                fault = found or fault
            if fault is not None:
                raise fault from error
            return _answered(error)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if self._closed and task is not None and not task.cancelling():
                # It is the channel that cancels; who waits for the call was not told to end.
                raise self._connection.closed() from error
            raise
        finally:
            for gone in self._channels.give_back(channel):
                await gone.itself.close()
        self._channels.let_in = channel
        return Incoming(GrpcCode.OK, message)

    async def close(self) -> None:
        """Close the connections."""
        self._closed = True
        for channel in self._channels.take_all():
            await channel.itself.close()


class _Channel:
    """A channel with the certificates of one moment."""

    def __init__(self, itself: Any) -> None:
        self.itself = itself
        self.calls = 0
        self._methods: dict[str, Any] = {}

    def method(self, target: str) -> Any:
        found = self._methods.get(target)
        if found is None:
            found = self._methods[target] = self.itself.unary_unary(target)
        return found


class _Channels:
    """The channel of a transport; another one when the files of certificates have changed.

    The one before is closed when its last call has ended.
    """

    def __init__(
        self, connection: Connection, secure: Callable[..., Any], insecure: Callable[..., Any]
    ) -> None:
        self._connection = connection
        self._secure = secure
        self._lock = threading.Lock()
        self._leaving: set[_Channel] = set()
        self._closed = False
        self.let_in: _Channel | None = None
        """The last one that brought an answer."""
        address = connection.address
        self._files: FollowedFiles | None = None
        if address.secure:
            self._files = FollowedFiles(connection, _TICK)
            self._now = self._renewed()
        else:
            self._now = _Channel(insecure(address.target, _options(connection)))

    def refused(self, fault: TidegateError | None) -> bool:
        """Whether one side may have refused the other's certificate.

        Not when the server has answered before who showed what is shown now.
        """
        return (
            isinstance(fault, ConnectionFailed)
            and self._files is not None
            and self.let_in is not self._now
            and not self._closed
            and not any(words in str(fault) for words in _NOT_OF_TLS)
        )

    def take(self) -> _Channel:
        """Return the channel for a call, which is to be given back."""
        with self._lock:
            if self._files is not None and not self._closed and self._files.changed():
                try:
                    before, self._now = self._now, self._renewed()
                except ConfigurationError as error:
                    self._files.doubt(error)
                else:
                    self._leaving.add(before)
            self._now.calls += 1
            return self._now

    def give_back(self, channel: _Channel) -> list[_Channel]:
        """Take a channel back; return those that are to be closed."""
        with self._lock:
            channel.calls -= 1
            gone = [each for each in self._leaving if not each.calls]
            self._leaving.difference_update(gone)
            return gone

    def take_all(self) -> list[_Channel]:
        """Return all that are to be closed at the end."""
        with self._lock:
            self._closed = True
            found, self._leaving = [self._now, *self._leaving], set()
            return found

    def refusal(self, timeout: float) -> TidegateError | None:
        """Find out whether one side refuses the other's certificate, after a fault."""
        try:
            context = tls_context(self._connection, "h2")
        except ConfigurationError:
            return None
        return look_for_refusal(self._connection, context, timeout)

    def _renewed(self) -> _Channel:
        files = read_files(self._connection)
        credentials = grpc.ssl_channel_credentials(files.authorities, files.key, files.certificate)
        target = self._connection.address.target
        return _Channel(self._secure(target, credentials, _options(self._connection)))


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


def _answered(error: Any) -> Incoming:
    return Incoming(GrpcCode(error.code().value[0]), message=error.details() or "")


def _of_this_side(connection: Connection, error: Any, timeout: float) -> TidegateError | None:
    """Return what went wrong where grpcio made the status itself; ``None``: a server did."""
    code, words = GrpcCode(error.code().value[0]), error.details() or ""
    if code is GrpcCode.DEADLINE_EXCEEDED and words == "Deadline Exceeded":
        return connection.late(timeout)
    if code is GrpcCode.RESOURCE_EXHAUSTED and "Received message larger than max" in words:
        return connection.too_large()
    if code is GrpcCode.UNAVAILABLE and words.startswith(_NOT_CONNECTED):
        return (connection.not_let_in if _NOT_LET_IN in words else connection.unreachable)(words)
    if code is GrpcCode.CANCELLED and words in (
        "Channel closed!",
        "Locally cancelled by application!",
    ):
        return connection.closed()
    if code in (GrpcCode.UNAVAILABLE, GrpcCode.INTERNAL) and any(w in words for w in _BROKEN_OFF):
        return connection.lost(words)
    return None
