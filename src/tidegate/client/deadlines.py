"""Network streams whose timeouts are times: what many waits take together is bounded.

httpcore hands one timeout to each wait of an exchange, and a server that sends a byte at a time
has as many waits as it likes. Here what is handed over is when the exchange must have ended, in
seconds of :func:`time.monotonic`, and may be infinite.
"""

from __future__ import annotations

import contextlib
import math
import socket
import ssl
import time
from collections.abc import Callable, Iterable
from typing import Any

import httpcore

_PIECE = 2**20
"""Bytes: a reader may be slow, too."""


class DeadlineBackend(httpcore.NetworkBackend):
    """Connects by ``timeout``, a time."""

    def __init__(self, renewed: Callable[[ssl.SSLContext], ssl.SSLContext]) -> None:
        """``renewed``: given the context that httpcore has for TLS, returns the one to take."""
        self._backend = httpcore.SyncBackend()
        self._renewed = renewed

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """Connect to a port."""
        left = _left(timeout, httpcore.ConnectTimeout)
        stream = self._backend.connect_tcp(host, port, left, local_address, socket_options)
        return _Stream(stream, self._renewed)


class _Stream(httpcore.NetworkStream):
    """Reads and writes by ``timeout``, a time."""

    def __init__(
        self, stream: httpcore.NetworkStream, renewed: Callable[[ssl.SSLContext], ssl.SSLContext]
    ) -> None:
        self._stream = stream
        self._renewed = renewed

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left(timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for start in range(0, len(buffer), _PIECE):
            piece = buffer[start : start + _PIECE]
            self._stream.write(piece, _left(timeout, httpcore.WriteTimeout))

    def close(self) -> None:
        # Closing alone does not wake a thread that waits for the socket; shutting it down does.
        with contextlib.suppress(OSError):
            self._stream.get_extra_info("socket").shutdown(socket.SHUT_RDWR)
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        left = _left(timeout, httpcore.ConnectTimeout)
        stream = self._stream.start_tls(self._renewed(ssl_context), server_hostname, left)
        return _Stream(stream, self._renewed)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _left(end: float | None, late: type[httpcore.TimeoutException]) -> float | None:
    if end is None or math.isinf(end):
        return None
    left = end - time.monotonic()
    if left <= 0:
        raise late("the time is over")
    return left
