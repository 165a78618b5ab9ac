"""The protocols beside the Open Inference Protocol, as a replica finds them by a call's path."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

from tidegate.protocols.dialect import (
    Dialect,
    Inference,
    ModelView,
    ReadCall,
    ReadMessage,
    Reply,
    RestCall,
)
from tidegate.replica.exchange import Exchange
from tidegate.types import InferResponse


class Spoken(NamedTuple):
    """What the answer to an inference in a dialect needs."""

    encode: Callable[[InferResponse], Reply]
    protocol: str
    """As metrics name it."""


Message: TypeAlias = bytes | memoryview


class Dialects:
    """Finds who reads a call. ``message`` and ``body`` return what came, decompressed."""

    def __init__(
        self,
        dialects: Sequence[Dialect],
        message: Callable[[Exchange], Message],
        body: Callable[[Exchange], bytes],
    ) -> None:
        self._message = message
        self._body = body
        self._inferences: dict[bytes, tuple[ReadMessage, str]] = {}
        self._questions: dict[bytes, tuple[ReadMessage, str]] = {}
        self._rest: list[tuple[Dialect, ReadCall, str]] = []
        for dialect in dialects:
            name = dialect.name
            for path, read in dialect.inferences.items():
                self._inferences[path.encode()] = (read, f"{name}-grpc")
            for path, read in dialect.questions.items():
                self._questions[path.encode()] = (read, f"{name}-grpc")
            if dialect.read is not None:
                self._rest.append((dialect, dialect.read, f"{name}-rest"))

    def protocol(self, exchange: Exchange) -> str | None:
        """Return the protocol of an inference in any dialect, as metrics name it."""
        head = exchange.head
        if head.grpc:
            found = self._inferences.get(head.target)
            return None if found is None else found[1]
        if head.method != b"POST":
            return None
        path = exchange.path
        return next((name for dialect, _, name in self._rest if dialect.has_path(path)), None)

    def read(self, exchange: Exchange, model: ModelView) -> tuple[Inference | Reply, str] | None:
        """Return what a call says, and the protocol; ``None`` when it is of none of these.

        Raises:
            TidegateError: it cannot be read, or ``model`` has no answer.
        """
        target = exchange.head.target
        if exchange.head.grpc:
            found = self._inferences.get(target) or self._questions.get(target)
            if found is None:
                return None
            read_message, protocol = found
            return read_message(self._message(exchange), model), protocol
        path = exchange.path
        for dialect, read_call, protocol in self._rest:
            if dialect.has_path(path):
                query = target.partition(b"?")[2].decode("latin-1")
                method = exchange.method.decode("latin-1")
                body = self._body(exchange)
                call = RestCall(method, path, query, exchange.headers, body)
                return read_call(call, model), protocol
        return None


def send(exchange: Exchange, reply: Reply) -> None:
    """Answer with ``reply``."""
    if exchange.head.grpc:
        exchange.reply_grpc(reply.parts)
        return
    exchange.reply(
        reply.parts,
        status=reply.status,
        content_type=reply.content_type,
        headers=reply.headers,
    )
