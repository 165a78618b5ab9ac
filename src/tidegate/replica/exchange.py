"""One request and the way to answer it, whichever HTTP it came by."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol, TypeAlias

from tidegate.errors import MethodNotAllowed, QueueFull
from tidegate.protocols.grpc_frames import percent_encode
from tidegate.protocols.load_reports import ASK_HEADER, ASK_VALUE
from tidegate.protocols.registry import encode_error
from tidegate.protocols.routing import ONLY_HEADER
from tidegate.protocols.statuses import status_of

_ASK, _ASKED, _ONLY = ASK_HEADER.encode(), ASK_VALUE.encode(), ONLY_HEADER.encode()

Bytes: TypeAlias = bytes | bytearray | memoryview
Headers: TypeAlias = Sequence[tuple[bytes, bytes]]


class Head:
    """What a request says before its body. Many requests share one, and nobody changes it."""

    __slots__ = (
        "asks_load", "encoding", "grpc", "headers", "method", "retried", "target", "timeout",
    )  # fmt: skip

    def __init__(self, method: bytes, target: bytes, headers: Mapping[bytes, bytes]) -> None:
        self.method = method
        self.target = target
        """The path as it came, with the query."""
        self.headers = headers
        """By lower-case name; of a repeated header the last."""
        self.grpc = headers.get(b"content-type", b"").startswith(b"application/grpc")
        encoding = headers.get(b"grpc-encoding")
        self.encoding = None if encoding is None else encoding.decode("latin-1")
        """How the gRPC message is compressed, if its frame says that it is."""
        self.timeout = headers.get(b"grpc-timeout")
        """How long the caller of a gRPC method waits, as it was sent."""
        self.retried = headers.get(b"x-envoy-attempt-count", b"1") != b"1"
        """Whether another replica has failed to answer this request."""
        self.asks_load = headers.get(_ASK) == _ASKED or _ONLY in headers
        """Whether the answer is to say how busy this replica is."""


class Connection(Protocol):
    """Writes the answers to what came over it."""

    def write_message(self, stream: int, parts: Sequence[Bytes]) -> None:
        """Write a successful gRPC response of one message."""

    def write_response(
        self, stream: int, status: int, fields: Headers, parts: Sequence[Bytes]
    ) -> None:
        """Write a head and a body."""


class Exchange:
    """One request and the way to answer it; answering twice, or too late, does nothing."""

    __slots__ = ("_connection", "answered", "body", "head", "on_gone", "request_id", "stream")

    def __init__(
        self,
        connection: Connection,
        stream: int,
        head: Head,
        request_id: bytes | None,
        body: bytes = b"",
    ) -> None:
        self._connection = connection
        self.stream = stream
        """Tells it from the others of its connection."""
        self.head = head
        self.request_id = request_id
        """Tells requests apart, and is the same when one is tried again; a literal of HPACK."""
        self.body = body
        self.answered = False
        self.on_gone: Callable[[], object] | None = None
        """Called when the caller went away before there was an answer."""

    @property
    def method(self) -> bytes:
        """The HTTP method."""
        return self.head.method

    @property
    def target(self) -> bytes:
        """The path as it came, with the query."""
        return self.head.target

    @property
    def path(self) -> str:
        """The path as it came, without the query."""
        return self.head.target.partition(b"?")[0].decode("latin-1")

    @property
    def headers(self) -> Mapping[bytes, bytes]:
        """By lower-case name; of a repeated header the last. Gone with the answer."""
        return self.head.headers

    @property
    def grpc(self) -> bool:
        """Whether it is a gRPC call."""
        return self.head.grpc

    def _begin_answer(self) -> bool:
        """Say whether this is the first answer."""
        if self.answered:
            return False
        self.answered = True
        self.on_gone = None
        return True

    def gone(self) -> None:
        """Say that the caller went away."""
        on_gone = self.on_gone
        if self._begin_answer() and on_gone is not None:
            on_gone()

    def reply_grpc(self, parts: Sequence[Bytes]) -> None:
        """Answer a gRPC call with the parts of a serialized message."""
        if not self.answered:
            self.answered = True
            self.on_gone = None
            self._connection.write_message(self.stream, parts)

    def reply(
        self,
        parts: Sequence[Bytes],
        *,
        status: int = 200,
        content_type: bytes = b"application/json",
        headers: Headers = (),
    ) -> None:
        """Answer a REST call with the body ``parts``; names of headers are in lower case."""
        if not self._begin_answer():
            return
        length = sum(memoryview(part).nbytes for part in parts)
        fields = [
            (b"content-type", content_type),
            (b"content-length", b"%d" % length),
            *headers,
        ]
        # What would follow the head of an answer to HEAD is taken for the next answer.
        self._connection.write_response(
            self.stream, status, fields, parts if self.method != b"HEAD" else ()
        )

    def fail(self, error: BaseException) -> None:
        """Answer with an error, in the words of the transport that the call came by."""
        status = status_of(error)
        message = str(error) or type(error).__name__
        if not self.grpc:
            headers = headers_of(error)
            body = encode_error(self.path, status.http, message)
            self.reply([body], status=status.http, headers=headers)
        elif self._begin_answer():
            fields = [
                (b"content-type", b"application/grpc"),
                (b"grpc-status", b"%d" % status.grpc),
                (b"grpc-message", percent_encode(message)),
                (b"content-length", b"0"),
            ]
            self._connection.write_response(self.stream, 200, fields, ())


def headers_of(error: BaseException) -> Headers:
    """Return the headers that go with an error over REST (RFC 9110, sections 10.2.1, 10.2.3)."""
    if isinstance(error, QueueFull):
        return [(b"retry-after", b"%d" % max(1, round(error.retry_after)))]
    if isinstance(error, MethodNotAllowed):
        return [(b"allow", ", ".join(error.allowed).encode())]
    return ()


Handler: TypeAlias = Callable[[Exchange], None]
"""Answers an exchange, now or later; it must not raise."""


class Closable(Protocol):
    """A connection, as far as its listener is concerned."""

    def close(self) -> None:
        """Close it, whatever runs."""


class Sender(Protocol):
    """A connection that gathers what it has to send."""

    def flush(self) -> None:
        """Send it."""


class OpenConnections:
    """The connections that are open, which have something to send, and who waits for the last."""

    __slots__ = ("_unsent", "_waiters", "all", "load", "refuse", "unread")

    def __init__(self) -> None:
        self.all: set[Closable] = set()
        self.refuse: Callable[[Exchange, BaseException], None] = Exchange.fail
        """Answers a request that is not taken as a whole, and that no handler sees."""
        self.unread: Collection[bytes] = ()
        """Fields of requests over HTTP/2 that nobody looks at."""
        self.load: Callable[[], bytes] | None = None
        """Returns the load report for the answers to those who ask for one; ``None``: nobody
        gets any."""
        self._waiters: list[asyncio.Event] = []
        self._unsent: list[Sender] = []

    def flush_soon(self, connection: Sender) -> None:
        """Flush the connection with the others, in the loop's next turn at the latest."""
        if not self._unsent:
            asyncio.get_running_loop().call_soon(self.flush)
        self._unsent.append(connection)

    def flush(self) -> None:
        """Flush the connections that have asked for it since the last time."""
        unsent, self._unsent = self._unsent, []
        for connection in unsent:
            connection.flush()

    def discard(self, connection: Closable) -> None:
        """Note that it is closed."""
        self.all.discard(connection)
        if not self.all:
            for waiter in self._waiters:
                waiter.set()

    async def none_left(self) -> None:
        """Return when no connection is open."""
        while self.all:
            waiter = asyncio.Event()
            self._waiters.append(waiter)
            try:
                await waiter.wait()
            finally:
                self._waiters.remove(waiter)
