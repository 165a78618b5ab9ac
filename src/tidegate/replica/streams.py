"""gRPC calls with several messages, over HTTP/1.1 with chunks.

A message is handed over as soon as it has come, while the caller may still be sending, and
answers leave at once: so both sides may talk in turns, for hours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

from tidegate.errors import InvalidInput, MessageTooLarge, TidegateError, Unsupported
from tidegate.protocols.grpc_frames import PREFIX_SIZE, frame_prefix, percent_encode
from tidegate.protocols.statuses import status_of

LARGEST = 2**20
"""Bytes of a message of a stream."""
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/grpc\r\ntransfer-encoding: chunked\r\n\r\n"


class StreamHandler(Protocol):
    """Takes what the caller of a streaming method sends."""

    def message(self, message: bytes) -> None:
        """Take a message; a ``TidegateError`` ends the call."""

    def half_closed(self) -> None:
        """The caller sends no more."""

    def gone(self) -> None:
        """The call has ended: by the caller, by an error or by :meth:`Outgoing.end`."""


class Outgoing:
    """The way back to the caller; after the end nothing more is sent."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write
        self._begun = False
        self.ended = False

    def send(self, message: bytes) -> None:
        """Send a message."""
        if not self.ended:
            framed = frame_prefix(len(message)) + message
            self._put(b"%x\r\n%b\r\n" % (len(framed), framed))

    def end(self, error: TidegateError | None = None) -> None:
        """End the call, well or with an error."""
        if self.ended:
            return
        status = b"0" if error is None else b"%d" % status_of(error).grpc
        fields = b"grpc-status: " + status + b"\r\n"
        if error is not None:
            fields += b"grpc-message: " + percent_encode(str(error)) + b"\r\n"
        self._put(b"0\r\n" + fields + b"\r\n")
        self.ended = True

    def _put(self, data: bytes) -> None:
        self._write(data if self._begun else _HEAD + data)
        self._begun = True


Opener: TypeAlias = Callable[[str, Outgoing], StreamHandler | None]
"""Begins a call of a method; ``None``: it is no streaming one. It must not raise."""


class GrpcStream:
    """One call: cuts what comes into messages, and passes them on."""

    def __init__(self, handler: StreamHandler, outgoing: Outgoing) -> None:
        self._handler: StreamHandler | None = handler
        self._outgoing = outgoing
        self._data = bytearray()

    def feed(self, data: bytes) -> None:
        """Take a piece of the body."""
        if self._outgoing.ended:
            return
        self._data += data
        try:
            while (message := self._next()) is not None:
                if self._handler is not None:
                    self._handler.message(message)
        except TidegateError as error:
            self._outgoing.end(error)
        self._release()

    def half_closed(self) -> None:
        """The body has ended."""
        if self._data:
            self._outgoing.end(InvalidInput("the last message of the stream is not complete"))
        elif self._handler is not None:
            self._handler.half_closed()
        self._release()

    def gone(self) -> None:
        """The caller went away."""
        self._outgoing.ended = True
        self._release()

    def _next(self) -> bytes | None:
        if len(self._data) < PREFIX_SIZE:
            return None
        if self._data[0] != 0:
            raise Unsupported("a message of the stream is compressed: send it as it is")
        end = PREFIX_SIZE + int.from_bytes(self._data[1:PREFIX_SIZE], "big")
        if end - PREFIX_SIZE > LARGEST:
            raise MessageTooLarge(
                f"a message of the stream has {end - PREFIX_SIZE} bytes; send at most {LARGEST}"
            )
        if len(self._data) < end:
            return None
        message = bytes(self._data[PREFIX_SIZE:end])
        del self._data[:end]
        return message

    def _release(self) -> None:
        if self._outgoing.ended and self._handler is not None:
            handler, self._handler = self._handler, None
            handler.gone()
