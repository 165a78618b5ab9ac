"""What the connections of one gRPC load have in common: the requests, as bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import hpack

from tidegate.load.response_fields import Fields


@dataclass(frozen=True, slots=True)
class Plan:
    """What every connection of one load sends."""

    fields: Sequence[tuple[str, str]]
    """The header fields of every request, pseudo-header fields first."""
    messages: Sequence[bytes]
    """Each with gRPC's 5-byte head."""
    blocks: dict[bytes, Fields]
    """Header blocks met so far; stateless, so shared by all connections."""

    @classmethod
    def of(
        cls, authority: str, path: str, messages: Sequence[bytes], headers: Mapping[str, str]
    ) -> Plan:
        """Prepare the fields that a gRPC client sends, and the framed messages."""
        fields = [
            (":method", "POST"), (":scheme", "http"), (":path", path), (":authority", authority),
            ("te", "trailers"), ("content-type", "application/grpc"),
            ("user-agent", "tidegate-bench"), *((k.lower(), v) for k, v in headers.items()),
        ]  # fmt: skip
        framed = [b"\0" + len(message).to_bytes(4, "big") + message for message in messages]
        return cls(fields, framed, {})


def request_blocks(
    fields: Sequence[tuple[str, str]], table_size: int
) -> tuple[bytes | None, bytes]:
    """Encode the request's fields: the first block on a connection, and all others.

    The first one enters the fields into the peer's table, so that the others are a few
    bytes, as with every gRPC client. Where they do not fit, no block uses the table.
    """
    encoder = hpack.Encoder()
    encoder.header_table_size = table_size
    first, second, third = (encoder.encode(fields) for _ in range(3))
    if second == third:
        return first, second
    encoder = hpack.Encoder()
    encoder.header_table_size = 0
    encoder.encode([])
    block = encoder.encode([hpack.NeverIndexedHeaderTuple(*field) for field in fields])
    return b"\x20" + block, block
