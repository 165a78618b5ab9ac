"""Compressed messages: gzip and deflate, as gRPC and HTTP both name them.

Sources: https://github.com/grpc/grpc/blob/master/doc/compression.md and RFC 9110, section 8.4.1;
``deflate`` is the zlib format (RFC 1950).
"""

from __future__ import annotations

import zlib

from tidegate.errors import InvalidInput, MessageTooLarge, UnsupportedEncoding

ENCODINGS = ("gzip", "deflate")
"""What :func:`decompress` can read."""

_WINDOW_BITS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}


def decompress(data: bytes | memoryview, encoding: str, *, limit: int) -> bytes:
    """Return ``data`` decompressed; never more than ``limit`` bytes are unpacked.

    Raises:
        InvalidInput: the data is not what ``encoding`` says.
        MessageTooLarge: it has more than ``limit`` bytes when decompressed.
        UnsupportedEncoding: ``encoding`` is neither gzip nor deflate.
    """
    bits = _WINDOW_BITS.get(encoding)
    if bits is None:
        raise UnsupportedEncoding(
            f"the message is compressed with {encoding!r}; use gzip, deflate or identity"
        )
    inflater = zlib.decompressobj(bits)
    try:
        # One byte beyond the limit tells "too large" from "just fits" without unpacking a bomb.
        message = inflater.decompress(data, limit + 1)
    except zlib.error as error:
        raise InvalidInput(
            f"the message is not what its encoding {encoding!r} says: {error}; "
            "compress it anew or send it uncompressed"
        ) from error
    if len(message) > limit:
        raise MessageTooLarge(
            f"the message does not fit when decompressed, beyond the limit of {limit}; "
            "send less at once or raise the server's limit"
        )
    if not inflater.eof or inflater.unused_data:
        what = "bytes follow the compressed data" if inflater.eof else "it ends too early"
        raise InvalidInput(
            f"the message does not decompress with {encoding!r}: {what}; "
            "compress it anew or send it uncompressed"
        )
    return message
