from __future__ import annotations

import contextlib
import json
import tracemalloc
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.http import InferInput, InferRequestedOutput, InferResult
from tritonclient.http._utils import _get_inference_request

from tests.protocols.tensors import arrays, same
from tidegate.errors import InferenceFailed, InvalidInput, Unsupported
from tidegate.protocols.open_inference import metadata, rest
from tidegate.protocols.open_inference.tensors import shown
from tidegate.types import (
    DType,
    InferRequest,
    InferResponse,
    ModelMetadata,
    RequestedOutput,
    Signature,
    Tensor,
    TensorSpec,
)

ALL = st.sampled_from(DType)
IN_JSON_BY_TRITON = st.sampled_from([d for d in DType if d is not DType.BF16])


def triton_body(inputs: list[Any], **keywords: Any) -> tuple[bytes, int | None]:
    options: dict[str, Any] = {
        "inputs": inputs,
        "request_id": "",
        "outputs": None,
        "sequence_id": 0,
        "sequence_start": False,
        "sequence_end": False,
        "priority": 0,
        "timeout": None,
        "custom_parameters": None,
    }
    body, length = _get_inference_request(**(options | keywords))
    return body, length


def decode(document: object, tail: bytes | None = None) -> InferRequest:
    head = document if isinstance(document, bytes) else json.dumps(document).encode()
    if tail is None:
        return rest.decode_infer("m", "", head)
    return rest.decode_infer("m", "", head + tail, len(head))


def tensor(datatype: str, shape: object, data: object = None, **more: object) -> dict[str, Any]:
    found: dict[str, Any] = {"name": "x", "datatype": datatype, "shape": shape}
    if data is not None:
        found["data"] = data
    return found | more


def one(datatype: str, shape: object, data: object = None, **more: object) -> dict[str, Any]:
    return {"inputs": [tensor(datatype, shape, data, **more)]}


@given(st.data(), ALL, st.sampled_from([bytes, memoryview, bytearray]))
def test_binary_requests_of_tritonclient(data: st.DataObject, dtype: DType, kind: type) -> None:
    array = data.draw(arrays(dtype))
    other = np.arange(2000, dtype=np.int64)
    inputs = [
        InferInput("x", list(array.shape), dtype.value).set_data_from_numpy(array),
        InferInput("y", [2000], "INT64").set_data_from_numpy(other),
    ]
    body, length = triton_body(
        inputs,
        request_id="é",
        priority=7,
        outputs=[InferRequestedOutput("a"), InferRequestedOutput("b", binary_data=False)],
        custom_parameters={"flag": True, "factor": 1.5},
    )
    request = rest.decode_infer("m", "3", kind(body), length)
    assert (request.model, request.version, request.id) == ("m", "3", "é")
    assert request.outputs == (
        RequestedOutput("a", {"binary_data": True}),
        RequestedOutput("b", {"binary_data": False}),
    )
    assert dict(request.parameters) == {"priority": 7, "flag": True, "factor": 1.5}
    first, second = request.inputs
    assert (first.name, first.dtype) == ("x", dtype)
    assert same(first.data, array)
    assert same(second.data, other)


@given(st.data(), IN_JSON_BY_TRITON)
def test_json_requests_of_tritonclient(data: st.DataObject, dtype: DType) -> None:
    array = data.draw(arrays(dtype, finite=True, text=True))
    item = InferInput("x", list(array.shape), dtype.value)
    body, length = triton_body([item.set_data_from_numpy(array, binary_data=False)])
    assert length is None
    request = rest.decode_infer("m", "", body)
    assert same(request.inputs[0].data, array)
    assert request.parameters == {"binary_data_output": True}


@given(st.data(), ALL)
def test_nested_json(data: st.DataObject, dtype: DType) -> None:
    array = data.draw(arrays(dtype, finite=True, text=True))
    if dtype is DType.BYTES:
        decoded = np.array([e.decode() for e in array.reshape(-1)] + [None], np.object_)
        nested = decoded[:-1].reshape(array.shape).tolist()
    else:
        nested = array.tolist()
    if not array.shape:
        nested = [nested]
    request = decode(one(dtype.value, list(array.shape), nested))
    assert same(request.inputs[0].data, array)


@given(st.data(), ALL, st.booleans(), st.booleans())
def test_tritonclient_reads_our_responses(
    data: st.DataObject, dtype: DType, binary: bool, identity: bool
) -> None:
    array = data.draw(arrays(dtype, finite=not binary, text=not binary))
    response = InferResponse(
        "m",
        "2",
        "i" if identity else "",
        (Tensor("a", dtype, array), Tensor("b", DType.INT32, np.arange(3, dtype=np.int32))),
        {"p": 1},
    )
    wishes = (RequestedOutput("a", {"binary_data": binary}), RequestedOutput("b"))
    parts, length = rest.encode_infer(response, InferRequest("m", outputs=wishes))
    assert (length is not None) == binary
    result = InferResult.from_response_body(b"".join(parts), header_length=length)
    document = result.get_response()
    assert (document["model_name"], document["model_version"]) == ("m", "2")
    assert document.get("id") == ("i" if identity else None)
    assert document["parameters"] == {"p": 1}
    assert ("data" in document["outputs"][0]) != binary
    assert document["outputs"][0]["datatype"] == dtype.value
    found = result.as_numpy("a")
    if dtype is DType.BYTES and not binary:
        assert [str(e).encode() for e in found.reshape(-1)] == array.reshape(-1).tolist()
    elif array.size or not binary:
        assert same(found, array)
    assert result.as_numpy("b").tolist() == [0, 1, 2]


def outputs_of(request: InferRequest) -> list[str]:
    array = np.zeros(2, np.float32)
    tensors = tuple(Tensor(name, DType.FP32, array) for name in "abc")
    parts, length = rest.encode_infer(InferResponse("m", "1", "", tensors), request)
    document = orjson.loads(parts[0])
    kinds = ["json" if "data" in output else "binary" for output in document["outputs"]]
    assert (length is None) == ("binary" not in kinds)
    assert length in (None, len(parts[0]))
    assert len(parts) == 1 + kinds.count("binary")
    return kinds


def test_which_outputs_are_binary() -> None:
    some = (RequestedOutput("a", {"binary_data": True}), RequestedOutput("b"))
    all_but = (RequestedOutput("a", {"binary_data": False}),)
    default = {"binary_data_output": True}
    assert outputs_of(InferRequest("m")) == ["json"] * 3
    assert outputs_of(InferRequest("m", parameters=default)) == ["binary"] * 3
    assert outputs_of(InferRequest("m", outputs=some)) == ["binary", "json", "json"]
    assert outputs_of(InferRequest("m", outputs=all_but, parameters=default)) == [
        "json",
        "binary",
        "binary",
    ]


def test_large_data_is_not_copied() -> None:
    array = np.arange(100_000, dtype=np.float32)
    item = InferInput("x", [100_000], "FP32").set_data_from_numpy(array)
    body, length = triton_body([item])
    request = rest.decode_infer("m", "", body, length)
    assert np.shares_memory(request.inputs[0].data, np.frombuffer(body, np.uint8))
    response = InferResponse("m", "1", "", (Tensor("y", DType.FP32, array),))
    parts, _ = rest.encode_infer(response, request)
    assert np.shares_memory(np.frombuffer(parts[1], np.uint8), array)


def test_null_is_nan_both_ways_and_infinity_needs_binary() -> None:
    for name in ("FP16", "FP32", "FP64", "BF16"):
        [found] = decode(one(name, [2], [1.5, None])).inputs
        assert np.isnan(found.data.astype(np.float64)).tolist() == [False, True]
        parts, _ = rest.encode_infer(InferResponse("m", "1", "", (found,)), InferRequest("m"))
        assert orjson.loads(parts[0])["outputs"][0]["data"] == [1.5, None]
        if name != "BF16":  # tritonclient has no null there
            assert np.isnan(InferResult.from_response_body(parts[0]).as_numpy("x")[1])
        infinite = Tensor("y", found.dtype, np.array([np.inf], found.dtype.numpy))
        response = InferResponse("m", "1", "", (infinite,))
        with pytest.raises(InvalidInput, match=r"'y'.*infinite.*binary"):
            rest.encode_infer(response, InferRequest("m"))
        rest.encode_infer(response, InferRequest("m", parameters={"binary_data_output": True}))


@pytest.mark.parametrize("dtype", [DType.BF16, DType.FP16])
def test_every_number_of_sixteen_bits_goes_through_json_and_back(dtype: DType) -> None:
    every = np.arange(2**16, dtype=np.uint16).view(dtype.numpy)
    with np.errstate(invalid="ignore"):
        every = every[~np.isinf(every)]
    response = InferResponse("m", "1", "", (Tensor("y", dtype, every),))
    parts, _ = rest.encode_infer(response, InferRequest("m"))
    [output] = orjson.loads(parts[0])["outputs"]
    assert same(decode({"inputs": [output]}).inputs[0].data, every)


def test_the_word_null_elsewhere_is_no_matter() -> None:
    name = Tensor("null", DType.BYTES, np.array([b"null"], np.object_))
    parts, _ = rest.encode_infer(InferResponse("null", "1", "", (name,)), InferRequest("m"))
    assert orjson.loads(parts[0])["outputs"][0]["data"] == ["null"]


def test_bytes_that_are_no_text_need_binary() -> None:
    output = Tensor("y", DType.BYTES, np.array([b"a", b"\xff\xfe"], np.object_))
    response = InferResponse("m", "1", "", (output,))
    with pytest.raises(InvalidInput, match=r"'y'.*xff.*UTF-8.*binary_data"):
        rest.encode_infer(response, InferRequest("m"))
    parts, _ = rest.encode_infer(
        response, InferRequest("m", outputs=(RequestedOutput("y", {"binary_data": True}),))
    )
    assert parts[1] == b"\1\0\0\0a\2\0\0\0\xff\xfe"


def test_absent_and_null_members_are_the_same() -> None:
    found = decode(
        {
            "id": None,
            "parameters": None,
            "outputs": None,
            "inputs": [tensor("FP32", [1], [1], parameters=None)],
        }
    )
    assert found.id == ""
    assert found.outputs == ()
    assert found.parameters == {}


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff", "not JSON"),
        (b'{"id": "\xff"}', "not JSON"),
        (b'{"id": "\\ud800"}', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"inputs":[{"data":[NaN]}]}', "null for NaN"),
        (b'{"inputs":[{"data":[1e999]}]}', "not JSON"),
        ([], r"\[\].*JSON object"),
        ({}, "'inputs' is None"),
        ({"inputs": {}}, "'inputs'"),
        ({"inputs": [1]}, r"inputs\[0\] is 1"),
        ({"inputs": [{}]}, r"name of inputs\[0\]"),
        ({"inputs": [{"name": 5}]}, "is 5"),
        ({"inputs": [], "id": 5}, "'id' is 5"),
        ({"inputs": [], "outputs": {}}, "'outputs'"),
        ({"inputs": [], "outputs": [None]}, r"outputs\[0\]"),
        ({"inputs": [], "outputs": [{"name": "y"}, {"name": "y"}]}, "requested twice"),
        ({"inputs": [], "parameters": []}, "parameters of the request"),
        ({"inputs": [], "parameters": 0}, "parameters of the request"),
        ({"inputs": [], "parameters": {"a": [1]}}, "'a' of the request"),
        ({"inputs": [], "parameters": {"binary_data_output": 1}}, "binary_data_output"),
        (
            {"inputs": [], "outputs": [{"name": "y", "parameters": {"binary_data": "yes"}}]},
            "binary_data of output 'y' is 'yes'",
        ),
        ({"inputs": [tensor("FP32", [1], [1])] * 2}, "'x' comes twice"),
        (one("FP32", [1]), "data of input 'x' is None"),
        (one("FP32", [1], 1.0), "data of input 'x' is 1.0"),
        (one("FP32", [1], {"a": 1}), "data of input 'x'"),
        (one("FP99", [1], [1]), "'FP99'"),
        (one(None, [1], [1]), "datatype None"),  # type: ignore[arg-type]
        (one([], [1], [1]), "datatype"),  # type: ignore[arg-type]
        (one("FP32", None, [1]), "shape.*None"),
        (one("FP32", [1.0], [1]), r"shape.*\[1.0\]"),
        (one("FP32", [True], [1]), r"shape.*\[True\]"),
        (one("FP32", ["1"], [1]), "shape"),
        (one("FP32", [-1], [1]), "0 or more"),
        (one("FP32", [2**63], [1]), "more elements"),
        (one("FP32", [2**40, 2**40, 0], []), "more elements"),
        (one("FP32", [1] * 33, [1]), "33 dimensions"),
        (one("FP32", [2], [1]), "1 elements.*takes 2"),
        (one("FP32", [2, 2], [[1, 2], [3]]), "not all"),
        (one("FP32", [2, 2], [[1, 2], 3]), "not all"),
        (one("FP32", [2, 2], [1, [2], 3, 4]), "element 1.*numbers"),
        (one("FP32", [3, 2], [[1, 2, 3], [4, 5, 6]]), r"nested as \[2, 3\].*\[3, 2\]"),
        (one("FP32", [2], [[1, 2]]), "nested as"),
        (one("FP32", [1, 2, 1], [[1, 2]]), "nested as"),
        (one("FP32", [1], ["1.5"]), "element 0.*'1.5'.*numbers"),
        (one("FP32", [1], [True]), "True.*numbers"),
        (one("FP32", [1], [1e39]), r"1e\+39.*FP32"),
        (one("FP16", [2], [1, -70000]), "-70000.*FP16"),
        (one("BF16", [1], [3.4e38]), "BF16"),
        (one("INT32", [1], [1.0]), "1.0.*integers"),
        (one("INT32", [1], [None]), "None.*integers"),
        (one("INT32", [1], [True]), "True.*integers"),
        (one("UINT8", [2], [1, 300]), "300.*0 to 255"),
        (one("UINT64", [1], [-1]), "-1.*UINT64"),
        (one("INT64", [1], [2**63]), "INT64"),
        (one("BOOL", [1], [1]), "1; send true or false"),
        (one("BOOL", [1], ["true"]), "true or false"),
        (one("BYTES", [1], [1]), "strings"),
        (one("BYTES", [1], [None]), "strings"),
        (one("FP32", [1], [1], parameters=5), "parameters of input 'x'"),
        (one("FP32", [1], [1], parameters={"binary_data_size": 4}), "both"),
        (one("FP32", [1], parameters={"binary_data_size": -4}), "is -4"),
        (one("FP32", [1], parameters={"binary_data_size": 4.0}), "is 4.0"),
        (one("FP32", [1], parameters={"binary_data_size": True}), "is True"),
        (one("FP32", [1], parameters={"binary_data_size": 4}), "end at byte"),
        (one("FP32", [1], parameters={"binary_data_size": 2**62}), "end at byte"),
    ],
)
def test_what_does_not_agree_is_refused(document: object, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        decode(document)


def deep(levels: int) -> list[Any]:
    found: list[Any] = [1]
    for _ in range(levels):
        found = [found]
    return found


@pytest.mark.parametrize("levels", [5, 40, 500])
def test_deep_nesting_is_refused(levels: int) -> None:
    with pytest.raises(InvalidInput, match=r"nested|JSON"):
        decode(one("FP32", [1], deep(levels)))


@pytest.mark.parametrize(
    ("size", "tail", "words"),
    [
        (4, b"abc", "end at byte"),
        (4, b"abcde", "1 bytes follow"),
        (3, b"abc", "3 bytes of data.*takes 4"),
        (0, b"", "0 bytes of data"),
    ],
)
def test_binary_data_of_the_wrong_length_is_refused(size: int, tail: bytes, words: str) -> None:
    document = one("FP32", [1], parameters={"binary_data_size": size})
    for _ in range(2):  # the second time from what is remembered
        with pytest.raises(InvalidInput, match=words):
            decode(document, tail)


@pytest.mark.parametrize("length", [-1, 3, 2**70])
def test_a_header_length_outside_of_the_body_is_refused(length: int) -> None:
    with pytest.raises(InvalidInput, match="Inference-Header-Content-Length"):
        rest.decode_infer("m", "", b"{}", length)


def test_json_and_binary_inputs_mix() -> None:
    document = {
        "inputs": [
            tensor("INT16", [2], parameters={"binary_data_size": 4}),
            tensor("INT32", [2], [7, 8]) | {"name": "j"},
            tensor("BYTES", [1], parameters={"binary_data_size": 5}) | {"name": "b"},
        ]
    }
    tail = np.array([1, 2], np.int16).tobytes() + b"\1\0\0\0z"
    for _ in range(2):
        found = [t.data.tolist() for t in decode(document, tail).inputs]
        assert found == [[1, 2], [7, 8], [b"z"]]


def test_shared_memory_and_classification_are_unsupported() -> None:
    body, _ = triton_body([InferInput("x", [1], "FP32").set_shared_memory("r", 4)])
    with pytest.raises(Unsupported, match="shared memory"):
        rest.decode_infer("m", "", body)
    body, _ = triton_body([], outputs=[InferRequestedOutput("y", class_count=3)])
    with pytest.raises(Unsupported, match="classification"):
        rest.decode_infer("m", "", body)


@pytest.mark.parametrize(("value", "length"), [("0", 0), (b"17", 17)])
def test_header_lengths(value: str | bytes, length: int) -> None:
    assert rest.parse_header_length(value) == length


@pytest.mark.parametrize("value", ["", "-1", "x", "1.0", " 1", "1" * 5000, "٣", b"\xff"])
def test_malformed_header_lengths_are_refused(value: str | bytes) -> None:
    with pytest.raises(InvalidInput, match="Inference-Header-Content-Length"):
        rest.parse_header_length(value)


def bare(dtype: DType, shape: tuple[int | str | None, ...] | None, body: bytes) -> InferRequest:
    signature = Signature((TensorSpec("x", dtype, shape),), ())
    return rest.decode_infer("m", "", body, 0, signature)


@pytest.mark.parametrize(
    ("dtype", "shape", "size", "expected"),
    [
        (DType.FP32, (2, 2), 16, (2, 2)),
        (DType.FP32, (None, 2), 16, (2, 2)),
        (DType.FP32, ("batch", 4), 16, (1, 4)),
        (DType.FP32, ("batch", "n"), 16, (1, 4)),
        (DType.FP32, ("batch", 2, "n"), 16, (1, 2, 2)),
        (DType.FP32, (), 4, ()),
        (DType.FP32, (None,), 0, (0,)),
        (DType.BYTES, (1,), 16, (1,)),
        (DType.BYTES, (None, 1), 0, (1, 1)),
    ],
)
def test_a_body_without_json(
    dtype: DType, shape: tuple[int | str | None, ...], size: int, expected: tuple[int, ...]
) -> None:
    body = bytes(range(size))
    request = bare(dtype, shape, body)
    assert request.inputs[0].shape == expected
    assert b"".join(
        request.inputs[0].data.tolist() if dtype is DType.BYTES and len(expected) == 1 else []
    ) in (b"", body)
    assert request.parameters == {"binary_data_output": True}


@pytest.mark.parametrize(
    ("dtype", "shape", "size"),
    [
        (DType.FP32, (2, 2), 12),
        (DType.FP32, (None, 2), 12),
        (DType.FP32, (None, 0), 12),
        (DType.FP32, (3, None, None), 12),
        (DType.FP32, (None, None, None), 12),
        (DType.FP32, None, 12),
        (DType.BYTES, (2,), 12),
    ],
)
def test_a_body_without_json_whose_shape_is_unclear_is_refused(
    dtype: DType, shape: tuple[int | None, ...] | None, size: int
) -> None:
    with pytest.raises(InvalidInput, match="'x'"):
        bare(dtype, shape, bytes(size))


def test_a_body_without_json_needs_a_model_with_one_input() -> None:
    spec = TensorSpec("x", DType.FP32, (1,))
    for signature in (None, Signature((), ()), Signature((spec, spec), ())):
        with pytest.raises(InvalidInput, match="only input"):
            rest.decode_infer("m", "", bytes(4), 0, signature)


def test_parameters_that_json_cannot_hold_are_the_models_fault() -> None:
    response = InferResponse("m", "1", parameters={"a": b"x"})  # type: ignore[dict-item]
    with pytest.raises(InferenceFailed):
        rest.encode_infer(response, InferRequest("m"))


def test_the_small_bodies() -> None:
    signature = Signature(
        (TensorSpec("x", DType.FP32, ("batch", None, 3)),), (TensorSpec("y", DType.BYTES, None),)
    )
    assert orjson.loads(
        metadata.encode_metadata_body(ModelMetadata("m", ("1",), "onnx", signature))
    ) == {
        "name": "m",
        "versions": ["1"],
        "platform": "onnx",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, -1, 3]}],
        "outputs": [{"name": "y", "datatype": "BYTES", "shape": []}],
    }
    assert metadata.encode_server_metadata_body("t", "1", ("a",)) == (
        b'{"name":"t","version":"1","extensions":["a"]}'
    )
    assert metadata.encode_ready_body("m", True) == b'{"name":"m","ready":true}'
    assert rest.encode_error('a "b" é') == '{"error":"a \\"b\\" é"}'.encode()
    assert rest.encode_error("\ud800") == b'{"error":"?"}'


def refused_or_decoded(body: bytes, length: int | None) -> None:
    with contextlib.suppress(InvalidInput, Unsupported):
        rest.decode_infer("m", "", body, length)


@given(st.binary(max_size=200), st.none() | st.integers(-2, 300))
def test_arbitrary_bytes_raise_nothing_but_invalid_input(body: bytes, length: int | None) -> None:
    refused_or_decoded(body, length)


ANY_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**64), 2**65)
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["x", "FP32", "BYTES", "INT8"]),
    lambda children: (
        st.lists(children, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["name", "shape", "data", "parameters", "binary_data_size", "datatype", "id"]
            ),
            children,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(st.data(), ALL, ANY_JSON, st.binary(max_size=8))
def test_documents_with_one_thing_replaced(
    data: st.DataObject, dtype: DType, value: Any, tail: bytes
) -> None:
    array = data.draw(arrays(dtype, finite=True, text=True))
    flat = array.reshape(-1).tolist()
    item = tensor(
        dtype.value,
        list(array.shape),
        [e.decode() if isinstance(e, bytes) else e for e in flat],
    )
    document: dict[str, Any] = {"inputs": [item], "outputs": [{"name": "y"}], "parameters": {}}
    where = data.draw(st.sampled_from(["top", "input", "output", "element", "parameters"]))
    if where == "top":
        document[data.draw(st.sampled_from(["inputs", "outputs", "parameters", "id"]))] = value
    elif where == "input":
        key = data.draw(st.sampled_from(["name", "shape", "data", "datatype", "parameters"]))
        item[key] = value
    elif where == "output":
        document["outputs"][0][data.draw(st.sampled_from(["name", "parameters"]))] = value
    elif where == "parameters":
        del item["data"]
        item["parameters"] = {"binary_data_size": value}
    elif item["data"]:
        item["data"][data.draw(st.integers(0, len(item["data"]) - 1))] = value
    head = json.dumps(document).encode()
    refused_or_decoded(head, None)
    refused_or_decoded(head + tail, len(head))


def test_the_words_of_an_error_have_a_bound() -> None:
    said = orjson.loads(rest.encode_error("é" * 100_000))["error"]
    assert said == "é" * 4096 + "..."


def test_names_have_a_bound() -> None:
    long = "n" * 1025
    with pytest.raises(InvalidInput, match=r"inputs\[0\] has 1025 characters") as caught:
        decode(one("FP32", [1], [1], name=long))
    assert len(str(caught.value)) < 300
    with pytest.raises(InvalidInput, match=r"outputs\[0\] has 1025 characters"):
        decode({"inputs": [], "outputs": [{"name": long}]})
    assert decode(one("FP32", [1], [1], name=long[1:])).inputs[0].name == long[1:]


@pytest.mark.parametrize("value", ["x" * 10**7, [1] * 10**7, {str(i): i for i in range(10**5)}])
def test_what_is_shown_of_a_value_is_little_work(value: object) -> None:
    tracemalloc.start()
    try:
        assert len(shown(value)) <= 100
        assert tracemalloc.get_traced_memory()[1] < 2**20 * 8
    finally:
        tracemalloc.stop()
