"""How a unary gRPC message lies in an HTTP body, and gRPC's own header values.

Source: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md and
https://github.com/grpc/grpc/blob/master/doc/compression.md.
"""

from __future__ import annotations

import math
import re
from typing import TypeAlias

from tidegate.errors import InvalidInput, MessageTooLarge
from tidegate.protocols.compression import decompress

Buffer: TypeAlias = bytes | bytearray | memoryview
"""What a message can lie in; indexing gives integers."""

ACCEPT_ENCODING = b"identity,deflate,gzip"
"""The value of ``grpc-accept-encoding``: what :func:`unframe` can read."""

PREFIX_SIZE = 5
"""Bytes before a message: one flag and a big-endian length of four."""

_COPY_BELOW = 16 * 1024
"""Copying so few bytes costs less than what a memoryview adds to every later access."""

_SECONDS = {
    b"H": 3600.0,
    b"M": 60.0,
    b"S": 1.0,
    b"m": 1e-3,
    b"u": 1e-6,
    b"n": 1e-9,
}
_MOST_TIMEOUT_DIGITS = 8
_LONGEST_MESSAGE = 4096
"""Bytes of ``grpc-message``: gRPC clients refuse metadata beyond 8 KiB altogether."""
_NOT_PLAIN = re.compile(rb"[^\x20-\x24\x26-\x7e]")


def unframe(body: Buffer, limit: int, encoding: str | None = None) -> bytes | memoryview:
    """Return the one message in the body of a unary call.

    Args:
        body: the whole body. A large message is returned as a view over it.
        limit: the most bytes that the message may have, before and after decompression.
        encoding: the value of the header ``grpc-encoding``; ``None`` when it is absent.

    Raises:
        InvalidInput: the body is not exactly one frame, or does not decompress.
        MessageTooLarge: the message is longer than ``limit``.
        UnsupportedEncoding: it is compressed in a way other than gzip or deflate.
    """
    size = len(body)
    if size < PREFIX_SIZE:
        raise InvalidInput(
            f"the body has {size} bytes, fewer than the {PREFIX_SIZE} of a gRPC frame's prefix; "
            "send exactly one message"
        )
    length = int.from_bytes(body[1:PREFIX_SIZE], "big")
    if length > limit:
        raise _too_large(f"the message has {length} bytes", limit)
    if size != PREFIX_SIZE + length:
        raise _wrong_length(size - PREFIX_SIZE, length)
    flag = body[0]
    if flag == 0:
        if size < _COPY_BELOW:
            return bytes(body[PREFIX_SIZE:])
        return memoryview(body)[PREFIX_SIZE:]
    if flag != 1:
        raise InvalidInput(
            f"the first byte of the gRPC frame is {flag}; it must be 0, or 1 for a "
            "compressed message"
        )
    return _decompress(memoryview(body)[PREFIX_SIZE:], limit, encoding)


def frame_prefix(length: int) -> bytes:
    """Return what goes before an uncompressed message of ``length`` bytes."""
    return length.to_bytes(PREFIX_SIZE, "big")


def percent_encode(message: str) -> bytes:
    """Return ``message`` as the value of ``grpc-message``.

    Every byte of its UTF-8 form outside of printable ASCII, and ``%`` itself, becomes
    ``%XX``. What would not fit into a client's limit for metadata is cut off.
    """
    whole = len(message) <= _LONGEST_MESSAGE
    message = message[:_LONGEST_MESSAGE]
    encoded = _percent_encode(message)
    while len(encoded) > _LONGEST_MESSAGE or not whole:
        whole = True
        # In proportion first: each round keeps fewer characters, whatever they encode to.
        message = message[: len(message) * _LONGEST_MESSAGE // len(encoded) - 4]
        encoded = _percent_encode(message) + b"..."
    return encoded


def parse_timeout(value: str | bytes) -> float:
    """Return the seconds that the header ``grpc-timeout`` says: ``"250m"`` is 0.25.

    Raises:
        InvalidInput: it is not one to eight digits and one of ``H M S m u n``.
    """
    raw = value.encode("utf-8", "replace") if isinstance(value, str) else value
    digits, unit = raw[:-1], _SECONDS.get(raw[-1:])
    if unit is None or not digits.isdigit() or len(digits) > _MOST_TIMEOUT_DIGITS:
        raise InvalidInput(
            f"the header grpc-timeout is {raw[:64].decode('utf-8', 'replace')!r}; write one to "
            "eight digits and a unit of H, M, S, m, u or n, such as '250m'"
        )
    return int(digits) * unit


def format_timeout(seconds: float) -> str:
    """Return ``seconds`` as the value of ``grpc-timeout``, in the finest unit that fits."""
    for unit, size in (("u", 1e-6), ("m", 1e-3), ("S", 1.0)):
        count = math.ceil(seconds / size)
        if count < 10**_MOST_TIMEOUT_DIGITS:
            return f"{max(count, 1)}{unit}"
    return f"{10**_MOST_TIMEOUT_DIGITS - 1}S"


def _percent_encode(message: str) -> bytes:
    data = message.encode("utf-8", "replace")
    return _NOT_PLAIN.sub(lambda found: b"%%%02X" % found[0][0], data)


def _decompress(data: memoryview, limit: int, encoding: str | None) -> bytes:
    if encoding is None or encoding == "identity":
        raise InvalidInput(
            "the gRPC frame is marked as compressed but the header grpc-encoding is "
            f"{'absent' if encoding is None else repr(encoding)}; name the compression there"
        )
    return decompress(data, encoding, limit=limit)


def _wrong_length(present: int, length: int) -> InvalidInput:
    if present < length:
        return InvalidInput(
            f"the gRPC frame says {length} bytes but only {present} came; send the whole message"
        )
    return InvalidInput(
        f"{present - length} bytes follow the first message of {length} bytes; "
        "a unary call carries exactly one"
    )


def _too_large(what: str, limit: int) -> MessageTooLarge:
    return MessageTooLarge(
        f"{what}, beyond the limit of {limit}; send less at once or raise the server's limit"
    )
