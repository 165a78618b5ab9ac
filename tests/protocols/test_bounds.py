"""Requests of very many parts are refused before a parser makes something of each."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.errors import InvalidInput
from tidegate.protocols.open_inference import bounds, grpc, messages, rest
from tidegate.protocols.varints import write_length

COUNT = 2**20 + 1
TENSOR = b'{"name":"x","datatype":"FP32","shape":[1,4],"data":[1,2,3,4]}'


def listed(item: bytes) -> bytes:
    return b"[" + b",".join([item] * COUNT) + b"]"


def field(tag: int, data: bytes) -> bytes:
    return bytes((tag,)) + write_length(len(data)) + data


DOCUMENTS = {
    "empty objects for inputs": b'{"inputs":' + listed(b"{}") + b"}",
    "empty lists for data": TENSOR.join((b'{"inputs":[', b"]}")).replace(
        b"[1,2,3,4]", listed(b"[]")
    ),
    "members": b'{"inputs":[],"parameters":{'
    + b",".join(b'"%x":1' % i for i in range(COUNT))
    + b"}}",
    "behind a text with quotes": b'{"id":"\\"\\\\","inputs":' + listed(b"{}") + b"}",
}
MESSAGES = {
    "empty inputs": b"\x2a\0" * COUNT,
    "empty outputs": b"\x32\0" * COUNT,
    "empty parameters": b"\x22\0" * COUNT,
    "empty raw contents": b"\x3a\0" * COUNT,
    "tags that are longer than they must be": b"\xaa\0\0" * COUNT,
    "behind a group": b"\x7b\x7c" + b"\x2a\0" * COUNT,
    "parameters of an input": field(0x2A, b"\x22\0" * COUNT),
    "dimensions one by one": field(0x2A, b"\x18\1" * COUNT),
    "dimensions": field(0x2A, field(0x1A, b"\1" * COUNT)) + b"\x3a\0",
    "parameters of two inputs": field(0x2A, b"\x22\0" * 10_000) * 4,
}


def refused(decode: Callable[[bytes], object], data: bytes, words: str) -> int:
    """Expect these words, and return the bytes that it took to find them."""
    tracemalloc.start()
    try:
        with pytest.raises(InvalidInput, match=words):
            decode(data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_document_of_very_many_parts_is_refused_unparsed(name: str) -> None:
    document = DOCUMENTS[name]
    took = refused(lambda body: rest.decode_infer("m", "", body), document, "at most 1048576")
    assert took < 2 * len(document) + 2**24


@pytest.mark.parametrize("name", MESSAGES)
def test_a_message_of_very_many_fields_is_refused_unparsed(name: str) -> None:
    took = refused(grpc.decode_infer, MESSAGES[name], "more than 16384 fields")
    assert took < 2**20


@pytest.mark.parametrize("where", ["inputs", "outputs"])
def test_there_are_only_so_many_tensors(where: str) -> None:
    many = b"[" + b",".join(b'{"name":"%x"}' % i for i in range(bounds.MOST_TENSORS + 1)) + b"]"
    document = b'{"inputs":[' + TENSOR + b'],"outputs":[]}'
    if where == "inputs":
        document = b'{"inputs":' + many + b"}"
    document = document.replace(b'"outputs":[]', b'"outputs":' + many)
    with pytest.raises(InvalidInput, match=f"there are 16385 {where}; at most 16384"):
        rest.decode_infer("m", "", document)


def test_what_lies_in_texts_is_no_part() -> None:
    text = '{[:"\\' * (COUNT // 2)
    tensor = {"name": "x", "datatype": "BYTES", "shape": [1], "data": [text]}
    body = json.dumps({"inputs": [tensor]}).encode()
    request = rest.decode_infer("m", "", body)
    assert request.inputs[0].data.tolist() == [text.encode()]


def test_large_data_is_no_part() -> None:
    request = messages.ModelInferRequest(model_name="m")
    request.inputs.add(name="x", datatype="BYTES", shape=(COUNT,))
    request.inputs[0].contents.bytes_contents.extend([b""] * COUNT)
    found = grpc.decode_infer(request.SerializeToString())
    assert found.inputs[0].data.shape == (COUNT,)


_JSON = st.recursive(
    st.none() | st.text('\\"[{:a', max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text('\\"[{:a'), inner, max_size=4)
    ),
    max_leaves=20,
)


def parts(value: object) -> int:
    if isinstance(value, dict):
        return 1 + len(value) + sum(map(parts, value.values()))
    return 1 + sum(map(parts, value)) if isinstance(value, list) else 0


@given(_JSON, st.integers(1, 9))
def test_parts_are_those_that_a_parser_finds(value: object, piece: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bounds, "_PIECE", piece)
        assert bounds._parts(json.dumps(value).encode()) == parts(value)
