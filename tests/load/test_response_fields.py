"""Header blocks, against the encoder of the package ``hpack``."""

from __future__ import annotations

import hpack
from hypothesis import given
from hypothesis import strategies as st

from tidegate.load.response_fields import decode, read_block

NAMES = st.sampled_from(
    ["grpc-status", "grpc-message", "content-type", "date", "x-request-id", "server", "é" * 200]
)
VALUES = st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=300)


@given(
    fields=st.dictionaries(NAMES, VALUES),
    status=st.sampled_from([100, 200, 204, 404, 429, 503]),
    huffman=st.booleans(),
    sensitive=st.booleans(),
)
def test_blocks(fields: dict[str, str], status: int, huffman: bool, sensitive: bool) -> None:
    kind = hpack.NeverIndexedHeaderTuple if sensitive else hpack.HeaderTuple
    pairs = [(":status", str(status)), *fields.items()]
    encoder = hpack.Encoder()
    encoder.header_table_size = 0
    block = encoder.encode([kind(*pair) for pair in pairs], huffman=huffman)
    assert decode(block) == pairs
    read = read_block(block)
    assert read.http == status
    code = fields.get("grpc-status", "")
    assert read.grpc == (int(code) if code.isdecimal() else None)
    is_grpc = fields.get("content-type", "").startswith("application/grpc")
    assert (read.is_grpc, read.opens) == (is_grpc, is_grpc and status == 200)
    assert read.succeeds == (read.grpc == 0)
    if "%" not in fields.get("grpc-message", ""):
        assert read.message == fields.get("grpc-message", "")


def test_what_does_not_matter_is_not_remembered() -> None:
    encoder = hpack.Encoder()
    encoder.header_table_size = 0
    blocks = [
        encoder.encode([(":status", "200"), ("grpc-status", "0"), ("x-request-id", str(n))])
        for n in range(100)
    ]
    assert len({id(read_block(block)) for block in blocks}) == 1
