from __future__ import annotations

import hpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tidegate.replica.header_blocks import (
    TRACE_FIELDS,
    BlockReader,
    MalformedBlock,
    encode_block,
    literal_of,
    text_of,
)

Field = tuple[bytes, bytes]
ID = b"x-request-id"
NAMES = st.sampled_from(
    [b":method", b":path", b"content-type", b"te", b"x-a", b"user-agent", b"x-request-ie"]
)
VALUES = st.one_of(
    st.sampled_from([b"", b"POST", b"/", b"application/grpc", b"trailers", ID]),
    st.binary(max_size=200),
)
FIELDS = st.lists(st.tuples(NAMES, VALUES), max_size=8)
IDS = st.binary(min_size=0, max_size=60)


def encoded(fields: list[Field], *, huffman: bool) -> bytes:
    """Write as an edge does that may use no table, but for the update of its size."""
    encoder = hpack.Encoder()
    encoder.header_table_size = 0
    return bytes(encoder.encode(fields, huffman=huffman))


def decoded(block: bytes) -> list[Field]:
    decoder = hpack.Decoder()
    decoder.max_header_list_size = 2**20
    return [(bytes(name), bytes(value)) for name, value in decoder.decode(block, raw=True)]


def raw(value: bytes, *, huffman: bool) -> bytes:
    """Return the string's literal as it is in a block (value of less than 127 bytes)."""
    return encoded([(b"n", value)], huffman=huffman)[-_raw_length(value, huffman) :]


def _raw_length(value: bytes, huffman: bool) -> int:
    with_value = encoded([(b"n", value)], huffman=huffman)
    return len(with_value) - len(encoded([(b"n", b"")], huffman=huffman)) + 1


@given(FIELDS, st.none() | IDS, st.integers(0, 8), st.booleans())
def test_all_fields_are_read_but_the_request_id(
    fields: list[Field], request_id: bytes | None, place: int, huffman: bool
) -> None:
    sent = list(fields)
    if request_id is not None:
        sent.insert(place, (ID, request_id))
    read, raw_id = BlockReader(dict).read(encoded(sent, huffman=huffman))
    assert read == dict(fields)
    if request_id is None:
        assert raw_id is None
        return
    assert raw_id is not None
    assert text_of(raw_id) == request_id.decode("latin-1")
    if not huffman:
        assert raw_id == literal_of(request_id)
    elif _raw_length(request_id, True) <= 127:
        assert raw_id == raw(request_id, huffman=True)


@given(
    st.lists(FIELDS, min_size=1, max_size=3),
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 8), IDS, st.booleans()), max_size=20),
)
def test_a_reader_that_remembers_reads_as_a_fresh_one(
    templates: list[list[Field]], calls: list[tuple[int, int, bytes, bool]]
) -> None:
    reader = BlockReader(dict)
    for which, place, request_id, huffman in calls:
        sent = list(templates[which % len(templates)])
        sent.insert(place, (ID, request_id))
        block = encoded(sent, huffman=huffman)
        assert reader.read(block) == BlockReader(dict).read(block)


CALL = [(b":method", b"POST"), (b":path", b"/a.B/C"), (b"content-type", b"application/grpc")]


@pytest.mark.parametrize("huffman", [False, True])
def test_repeated_blocks_are_looked_up(huffman: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = BlockReader(dict)
    first, _ = reader.read(encoded([*CALL[:1], (ID, b"0" * 36), *CALL[1:]], huffman=huffman))
    monkeypatch.setattr(BlockReader, "_read_all", None)
    for number in range(100):
        request_id = b"%036d" % number
        block = encoded([*CALL[:1], (ID, request_id), *CALL[1:]], huffman=huffman)
        fields, raw_id = reader.read(block)
        assert fields is first
        assert raw_id == raw(request_id, huffman=huffman)


@pytest.mark.parametrize("huffman", [False, True])
def test_a_value_with_the_bytes_of_the_ids_name_does_not_confuse(huffman: bool) -> None:
    trap = encoded([(ID, b"")], huffman=False)[1:-1]
    values = [trap, b"\0" + trap[1:], trap + b"\x03abc", b"q" + trap + b"\x7f" + b"z" * 90]
    values.append(encoded([(ID, b"abc")], huffman=True)[1:])
    reader = BlockReader(dict)
    for _ in range(3):
        for value in values:
            for place in range(4):
                for request_id in (b"one", b"another", trap):
                    sent = [*CALL, (b"x-trap", value)]
                    sent.insert(place, (ID, request_id))
                    sent.append((b"x-after", b"1"))
                    for fields in (sent, [field for field in sent if field[0] != ID]):
                        block = encoded(fields, huffman=huffman)
                        read, raw_id = reader.read(block)
                        assert read == {name: v for name, v in sent if name != ID}
                        assert (raw_id is None) == (fields is not sent)
                        assert BlockReader(dict).read(block) == (read, raw_id)


def test_a_long_id_does_not_pass_for_headers() -> None:
    after = encode_block([(b"x-role", b"admin")])
    reader = BlockReader(dict)
    reader.read(encode_block([(ID, b"short")]) + after)
    # Were its length taken for 127, what is left of this id would be the field above.
    request_id = b"i" * 126 + after
    block = encode_block([(ID, request_id)])
    for _ in range(2):
        fields, raw_id = reader.read(block)
        assert fields == {}
        assert raw_id is not None
        assert raw_id.endswith(request_id)


def test_of_two_ids_a_remembering_reader_takes_the_same() -> None:
    reader = BlockReader(dict)
    for first, second in [(b"a", b"b"), (b"c", b"b"), (b"c", b"d"), (b"c", b"e" * 200)]:
        block = encode_block([(ID, first), *CALL, (ID, second)])
        assert reader.read(block) == BlockReader(dict).read(block)


@given(st.integers(62, 2**28), st.sampled_from([0x80, 0x40, 0x00, 0x10]))
def test_an_index_into_the_dynamic_table_is_malformed(index: int, form: int) -> None:
    prefix = {0x80: 7, 0x40: 6, 0x00: 4, 0x10: 4}[form]
    head = bytearray(hpack.hpack.encode_integer(index, prefix))
    head[0] |= form
    with pytest.raises(MalformedBlock):
        BlockReader(dict).read(bytes(head) + (b"" if form == 0x80 else b"\x01v"))


def test_what_was_added_is_not_in_the_table() -> None:
    reader = BlockReader(dict)
    assert reader.read(b"\x40\x01a\x01b")[0] == {b"a": b"b"}
    with pytest.raises(MalformedBlock):
        reader.read(b"\x40\x01a\x01b\xbe")


@given(FIELDS, st.binary(min_size=1, max_size=150), st.booleans())
@example([], b"abc", False)
def test_a_truncated_block_is_malformed(
    fields: list[Field], request_id: bytes, huffman: bool
) -> None:
    sent = [*fields, (ID, request_id)]
    block = encoded(sent, huffman=huffman)
    begin = len(encoded(sent[:-1], huffman=huffman))
    reader = BlockReader(dict)
    reader.read(block)
    for end in range(begin + 1, len(block)):
        for reads in (reader, BlockReader(dict)):
            if block[begin:end] == b"\x20":
                continue
            with pytest.raises(MalformedBlock):
                reads.read(block[:end])


@settings(max_examples=300)
@given(st.binary(max_size=80), st.booleans())
@example(b"\x80", False)
@example(b"\x7f\xff\xff\xff\xff\xff\x01", False)
@example(b"\x00\xff\xff\xff\xff\x0f", False)
@example(b"\x00\x81\xff\x00", False)
def test_random_bytes_are_read_or_malformed(noise: bytes, after: bool) -> None:
    reader = BlockReader(dict)
    start = encode_block([*CALL, (ID, b"abc")])
    reader.read(start)
    block = start + noise if after else noise
    try:
        read = reader.read(block)
    except MalformedBlock:
        with pytest.raises(MalformedBlock):
            BlockReader(dict).read(block)
    else:
        assert read == BlockReader(dict).read(block)


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=150), st.binary(max_size=300))))
def test_what_is_written_hpack_reads(fields: list[Field]) -> None:
    assert decoded(encode_block(fields)) == fields


@pytest.mark.parametrize("length", [0, 1, 126, 127, 128, 254, 255, 256, 300, 16510, 16511, 20000])
def test_strings_of_any_length_are_written(length: int) -> None:
    fields = [(b"n" * max(1, length), b"v" * length), (b"after", b"1")]
    assert decoded(encode_block(fields)) == fields
    assert BlockReader(dict).read(encode_block(fields)) == (dict(fields), None)


def test_what_is_remembered_is_bounded() -> None:
    reader = BlockReader(dict)
    for number in range(3000):
        reader.read(encode_block([(b"x-n", b"%d" % number), (ID, b"abc")]))
        reader.read(encode_block([(ID, b"%0130d" % number)]))
        assert len(reader._blocks) <= 1024
        assert len(reader._fields) <= 1024
    fields, raw_id = reader.read(encode_block([(b"x-n", b"0"), (ID, b"abc")]))
    assert (fields, raw_id) == ({b"x-n": b"0"}, b"\x03abc")


def test_long_blocks_are_not_remembered() -> None:
    reader = BlockReader(dict)
    for number in range(50):
        head, _ = reader.read(encode_block([(b"x-big", b"%d" % number + b"v" * 50_000)]))
        assert head[b"x-big"].startswith(b"%d" % number)
    assert not reader._blocks
    assert not reader._fields


@pytest.mark.parametrize(
    "literal", [b"", b"\x05abc", b"\xff", b"\x82\xff\xff", b"\x7f\xff\xff\xff\xff\xff"]
)
def test_what_is_no_literal_says_nothing(literal: bytes) -> None:
    assert text_of(literal) == ""


TRACED = st.lists(
    st.tuples(
        st.sampled_from([b"traceparent", b"tracestate", ID, b"x-a", b"te"]),
        st.sampled_from([b"", b"a", b"trailers"]) | st.binary(max_size=140),
    ),
    max_size=6,
)


@given(
    st.lists(TRACED, min_size=1, max_size=3),
    st.lists(st.tuples(st.integers(0, 2), st.binary(max_size=60), st.booleans()), max_size=30),
)
def test_fields_that_are_left_unread_change_nothing_else(
    templates: list[list[Field]], calls: list[tuple[int, bytes, bool]]
) -> None:
    """Whatever was read before, and wherever the fields are that change with each call."""
    reader = BlockReader(dict, TRACE_FIELDS)
    for which, value, huffman in calls:
        changing = (*TRACE_FIELDS, ID)
        sent = [
            (name, value + old if name in changing else old)
            for name, old in templates[which % len(templates)]
        ]
        block = encoded(sent, huffman=huffman)
        fields, request_id = reader.read(block)
        whole, same_id = BlockReader(dict).read(block)
        assert request_id == same_id
        assert fields == {n: v for n, v in whole.items() if n not in TRACE_FIELDS}


@pytest.mark.parametrize("huffman", [False, True])
def test_calls_that_are_traced_are_recognised(
    huffman: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = BlockReader(dict, TRACE_FIELDS)

    def block(number: int) -> bytes:
        trace = b"00-%032x-%016x-01" % (number * 7919**5, number)
        fields = [*CALL, (b"traceparent", trace), (ID, b"%036d" % number), (b"x-n", b"1")]
        return encoded(fields, huffman=huffman)

    first, _ = reader.read(block(0))
    with monkeypatch.context() as patch:
        patch.setattr(BlockReader, "_read_all", None)
        for number in range(100):
            fields, raw_id = reader.read(block(number))
            assert fields is first
            assert raw_id is not None
            assert text_of(raw_id) == f"{number:036d}"
    whole = block(5)
    for end in range(len(whole)):
        try:
            expected = BlockReader(dict, TRACE_FIELDS).read(whole[:end])
        except MalformedBlock:
            with pytest.raises(MalformedBlock):
                reader.read(whole[:end])
        else:
            assert reader.read(whole[:end]) == expected


def test_what_is_remembered_of_traced_calls_is_bounded() -> None:
    reader = BlockReader(dict, TRACE_FIELDS)
    for number in range(2000):
        sent = [(b"x-n", b"%d" % number), (b"traceparent", b"%d" % number), (ID, b"i")]
        assert reader.read(encode_block(sent)) == ({b"x-n": b"%d" % number}, b"\x01i")
    assert len(reader._templates) <= 8
    assert not reader._blocks
    assert len(reader._names) <= 1024
