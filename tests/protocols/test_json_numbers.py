"""What is read without objects is what the ordinary parser gives, to the last bit and word."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.protocols.tensors import same
from tidegate.errors import InvalidInput, RequestError
from tidegate.protocols.open_inference import json_numbers, rest
from tidegate.types import DType

pytest.importorskip("simdjson")

NUMBERS = [
    *("0", "-0", "-0.0", "1", "-1", "127", "128", "255", "256", "65536", "2147483647"),
    *("2147483648", "-2147483649", "9007199254740993", "9223372036854775807"),
    *("9223372036854775808", "18446744073709551615", "18446744073709551616"),
    *("-9223372036854775808", "-9223372036854775809", "123456789012345678901234567890"),
    *("1.5", "1.0", "1e5", "0.1", "1E-400", "1e400", "3.4028235e38", "3.4028236e38", "3.5e38"),
    *("65504", "65520", "2.2250738585072011e-308", "5e-324", "1.7976931348623157e308"),
    *("0.30000000000000004", "7.0064923216240854e-46"),
]
STRANGE = [
    *("null", "true", "false", "NaN", "Infinity", "01", "+1", ".5", "1.", "1e", "0x1", "1_0"),
    *("-", "''", '"1"', "{}", "[]", "[1]", "1,,1", "1#"),
]
SPACES = st.sampled_from(["", "", "", " ", "\n\t", "\r  "])
NUMERIC = st.sampled_from([d.value for d in DType])


@pytest.fixture(autouse=True)
def small() -> Iterator[None]:
    """Take the shortest of lists, in the shortest of pieces."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_numbers, "SHORTEST", 1)
        patch.setattr(json_numbers, "_PIECE", 3)
        yield


def outcome(body: bytes) -> Any:
    try:
        request = rest.decode_infer("m", "", body)
    except RequestError as error:
        return type(error), str(error)
    return [(t.name, t.dtype, t.data) for t in request.inputs], request.parameters, request.id


def ordinary(body: bytes) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_numbers, "simdjson", None)
        return outcome(body)


def agree(body: bytes) -> Any:
    ours, theirs = outcome(body), ordinary(body)
    if isinstance(ours[0], type) or isinstance(theirs[0], type):
        assert ours == theirs
        return ours
    assert ours[1:] == theirs[1:]
    assert [found[:2] for found in ours[0]] == [found[:2] for found in theirs[0]]
    for (*_, left), (*_, right) in zip(ours[0], theirs[0], strict=True):
        assert same(left, right)
        if left.dtype.kind == "f":
            assert (np.signbit(left) == np.signbit(right)).all()
    return ours


@st.composite
def lists(draw: st.DrawFn, shape: tuple[int, ...], element: st.SearchStrategy[str]) -> str:
    if not shape:
        return draw(element)
    rows = [draw(lists(shape[1:], element)) for _ in range(shape[0])]
    comma = f"{draw(SPACES)},{draw(SPACES)}"
    return f"[{draw(SPACES)}{comma.join(rows)}{draw(SPACES)}]"


@st.composite
def documents(draw: st.DrawFn) -> bytes:
    """An inference request: well formed, or with a strange thing or a slip in its data."""
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    numbers = st.sampled_from(draw(st.lists(st.sampled_from(NUMBERS), min_size=1, max_size=6)))
    if draw(st.booleans()):
        numbers |= st.integers().map(str) | st.floats(
            allow_nan=False, allow_infinity=False, width=32
        ).map(repr)
    text = draw(lists(shape if draw(st.booleans()) else (int(np.prod(shape)),), numbers))
    for _ in range(draw(st.integers(0, 2))):
        place = draw(st.integers(0, len(text)))
        cut = place + draw(st.integers(0, 2))
        text = text[:place] + draw(st.sampled_from([*"[],: \n0-.e", *STRANGE, ""])) + text[cut:]
    dtype = draw(NUMERIC)
    before = draw(
        st.sampled_from(["", '"parameters": {"a": 1},', '"data": [1, 2],', '"x": "}]",'])
    )
    after = draw(st.sampled_from(["", ', "parameters": {}', ',"data": [7]', ", 5"]))
    item = (
        f'{{"name": "x", "datatype": "{dtype}", "shape": {list(shape)}, {before} '
        f'"data"{draw(SPACES)}:{draw(SPACES)}{text}{after}}}'
    )
    return f'{{"id": "é", "inputs": [{item}{draw(SPACES)}]{draw(SPACES)}}}'.encode()


@settings(max_examples=2000)
@given(documents())
def test_it_agrees_with_the_ordinary_parser(document: bytes) -> None:
    agree(document)


@pytest.mark.parametrize("number", [*NUMBERS, *STRANGE])
@pytest.mark.parametrize("dtype", [d.value for d in DType])
def test_every_number_in_every_type(dtype: str, number: str) -> None:
    for data in (f"[{number}]", f"[1, {number}]", f"[{number},1,1,1]", f"[[1,{number}],[1,1]]"):
        for shape in ([1], [2], [4], [2, 2]):
            item = f'{{"name":"x","datatype":"{dtype}","shape":{shape},"data":{data}}}'
            agree(f'{{"inputs":[{item}]}}'.encode())


@pytest.mark.parametrize(
    ("shape", "data"),
    [
        ([2, 2], "[[1,2],3[,4]]"),
        ([2, 2], "[[1,2]3,[4,5]]"),
        ([2, 2], "[[1,2,3],[4]]"),
        ([2, 2], "[[1,2],[3,4],]"),
        ([2, 2], "[[1,2],,[3,4]]"),
        ([2, 1], "[[],[1]]"),
        ([2, 1], "[[1],[]]"),
        ([2, 1], "[[1,2],[]]"),
        ([2, 1], "[[[1],[2]]]"),
        ([4], "[1,2,3,4,]"),
        ([4], "[1,2,3,4],[5]"),
        ([4], "[1,2],[3,4]"),
        ([4], "[[1,2,3,4]"),
        ([4], "[1,2,3,4]]"),
        ([4], "[1,2]3,4]"),
        ([4], "[]"),
        ([], "[5]"),
        ([], "[[5]]"),
        ([3, 1, 1], "[ [ [1] ] , [[2] ],[[3]\n]\n]"),
        ([1, 1, 1, 3], "[[[[1, 2, 3]]]]"),
        ([2**40], "[1,2,3,4]"),
        ([2, 0], "[[],[]]"),
    ],
)
def test_brackets_in_odd_places(shape: list[int], data: str) -> None:
    for dtype in ("FP32", "INT64"):
        item = f'{{"name":"x","datatype":"{dtype}","shape":{shape},"data":{data}}}'
        agree(f'{{"inputs":[{item}]}}'.encode())


@pytest.mark.parametrize(
    "document",
    [
        r'{"inputs":[],"parameters":{"data":[1,2,3]}}',
        r'{"inputs":[],"id":{"data":[1,2,3]}}',
        r'{"inputs":[],"x\"data":[1,2,3]}',
        r'{"inputs":[],"id":"\"data\":[1,2,3]"}',
        r'{"inputs":[],"id":"\\"data":[1,2,3]}',
        r'{"inputs":[{"name":{"data":[1,2,3]}}]}',
        r'{"inputs":[{"name":"\"data\":[1]","datatype":"FP32","shape":[2],"data":[1,2]}]}',
        r'{"inputs":[{"name":"data","datatype":"BYTES","shape":[2],"data":["data",":[1]"]}]}',
        r'{"inputs":[{"data":[1],"data":[2],"name":"x","datatype":"FP32","shape":[1]}]}',
        r'{"inputs":[{"data":[1],"data":null,"name":"x","datatype":"FP32","shape":[1]}]}',
        r'{"inputs":[{"data":[1],"name":"x","datatype":"FP32","shape":[1]}],"data":[1]}',
        r'{"inputs":[{"data":[1],"name":"x","datatype":"FP32","shape":[1]},{"data":[1,null],'
        r'"name":"y","datatype":"FP32","shape":[2]}]}',
        r'{"inputs":[{"data":[true],"name":"x","datatype":"BOOL","shape":[1]}]}',
        r'{"inputs":[{"data":[1],"name":"x","datatype":"FP32","shape":[1],'
        r'"parameters":{"binary_data_size":4}}]}',
        r'{"data":[1]',
        r'{"data":[',
        r'"data":[1]',
        "\ufeff" r'{"inputs":[{"data":[1],"name":"x","datatype":"FP32","shape":[1]}]}',
    ],
)
def test_the_word_data_in_odd_places(document: str) -> None:
    agree(document.encode())


@given(st.binary(max_size=30), st.integers(0, 100), st.integers(0, 20))
@example(b'"data":[1]', 10, 0)
def test_bytes_in_the_midst(junk: bytes, place: int, cut: int) -> None:
    item = b'{"name":"x","datatype":"FP32","shape":[2,2],"data":[[1,2.5],[3e2,null]]}'
    agree(b'{"inputs":[' + item[:place] + junk + item[place + cut :] + b"]}")


def test_a_mark_cannot_be_sent() -> None:
    [mark] = json_numbers.cut_out(b'{"data":[1,2]}')[1]
    document = {"inputs": [{"name": "x", "datatype": "BYTES", "shape": [1], "data": ["0"]}]}
    assert len(mark) > 32
    with pytest.raises(InvalidInput, match="send a list"):
        rest.decode_infer("m", "", orjson.dumps(document).replace(b'["0"]', b'{"data":[1,2]}'))


def test_many_lists_are_left_to_the_ordinary_parser() -> None:
    short, texts = json_numbers.cut_out(b'"data":[1],' * 100)
    assert len(texts) == 64
    assert short.count(b'"data":[1]') == 36


def test_what_a_shape_claims_is_not_allocated() -> None:
    assert json_numbers.read(DType.FP64, (2**50,), b"[1,2]") is None
    assert json_numbers.read(DType.FP64, (2**20, 1, 1, 1), b"[[[[1]]]]") is None


def test_one_list_of_a_megabyte_nested_or_flat() -> None:
    values = np.random.default_rng(0).standard_normal((50, 3, 700)).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.undo()
        patch.setattr(json_numbers, "_PIECE", 2**16)
        for array in (values, values.reshape(-1), values.reshape(-1, 1), values.reshape(-1, 7)):
            text = orjson.dumps(array, option=orjson.OPT_SERIALIZE_NUMPY)
            found = json_numbers.read(DType.FP32, array.shape, text)
            assert found is not None
            assert same(found, array)
            spaced = text.replace(b",", b" ,\n  ")
            assert json_numbers.read(DType.FP32, array.shape, spaced) is not None


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=5).map(tuple),
    st.sampled_from([None, 1]),
)
def test_the_shape_of_a_list(shape: tuple[int, ...], indent: int | None) -> None:
    array = np.zeros(shape)
    text = json.dumps(array.tolist(), indent=indent).encode()
    assert json_numbers.shape_of(text) == shape


@given(st.text("[],1 ", max_size=12))
def test_the_shape_of_anything(text: str) -> None:
    """What has no shape is no list of numbers; what has one is that, or none of `read`'s."""
    data = f"[{text}".encode()
    shape = json_numbers.shape_of(data)
    try:
        found = np.array(orjson.loads(data), np.float64)
    except ValueError:
        found = None
    if found is not None and found.size:
        assert shape == found.shape
    elif shape is not None:
        assert json_numbers.read(DType.FP64, shape, data) is None
