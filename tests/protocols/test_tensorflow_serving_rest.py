"""Calls of TensorFlow Serving's REST API, as its documentation writes them."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.protocols.tensors import arrays, same
from tidegate.errors import InvalidInput, MethodNotAllowed, MethodNotFound, TidegateError
from tidegate.protocols.dialect import Inference, ModelView, Reply, RestCall
from tidegate.protocols.open_inference import json_numbers
from tidegate.protocols.tensorflow_serving import rest
from tidegate.types import (
    Array,
    DType,
    InferRequest,
    InferResponse,
    ModelMetadata,
    Signature,
    Tensor,
    TensorSpec,
)


def view(*specs: TensorSpec, outputs: tuple[TensorSpec, ...] = ()) -> ModelView:
    metadata = ModelMetadata("m", ("3",), "p", Signature(specs, outputs))
    return ModelView(metadata, "3", labels={"stable": "3", "canary": "4"})


def spec(name: str, dtype: DType = DType.FP32, *shape: int | str | None) -> TensorSpec:
    return TensorSpec(name, dtype, shape or None)


ONE = view(spec("x"))
THREE = view(spec("tag", DType.BYTES), spec("signal", DType.INT64), spec("sensor"))


def call(
    document: object, model: ModelView = ONE, path: str = "/v1/models/m:predict"
) -> Inference:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    found = rest.read_call(RestCall("POST", path, "", {}, body), model)
    assert isinstance(found, Inference)
    return found


def request(document: object, model: ModelView = ONE) -> InferRequest:
    return call(document, model).request


def data_of(document: object, model: ModelView = ONE) -> dict[str, Any]:
    return {t.name: t.data.tolist() for t in request(document, model).inputs}


def answer(reply: Reply) -> Any:
    assert (reply.status, reply.content_type) == (200, b"application/json")
    return json.loads(b"".join(reply.parts))


def answered(document: object, *outputs: Tensor, model: ModelView = ONE) -> Any:
    return answer(call(document, model).encode(InferResponse("m", "3", "", outputs)))


# -- what the documentation shows -----------------------------------------------------------------


def test_rows_of_the_only_input() -> None:
    assert data_of({"instances": ["foo", "bar", "baz"]}, view(spec("t", DType.BYTES))) == {
        "t": [b"foo", b"bar", b"baz"]
    }
    assert data_of({"instances": [[[1, 2]], [[3, 4]]]}) == {"x": [[[1, 2]], [[3, 4]]]}
    assert data_of({"instances": [1.0, 2.0, 5.0]}) == {"x": [1, 2, 5]}


NAMED = {"tag": [b"foo", b"bar"], "signal": [[1, 2, 3, 4, 5], [3, 4, 1, 2, 5]],
         "sensor": [[[1, 2], [3, 4]], [[4, 5], [6, 8]]]}  # fmt: skip


def test_rows_of_named_inputs() -> None:
    rows = [
        {"tag": "foo", "signal": [1, 2, 3, 4, 5], "sensor": [[1, 2], [3, 4]]},
        {"tag": "bar", "signal": [3, 4, 1, 2, 5], "sensor": [[4, 5], [6, 8]]},
    ]
    assert data_of({"instances": rows}, THREE) == NAMED
    assert data_of({"instances": [{"x": 1}, {"x": 2}]}) == {"x": [1, 2]}


def test_columns() -> None:
    columns = {**NAMED, "tag": ["foo", "bar"]}
    assert data_of({"inputs": columns}, THREE) == NAMED
    assert data_of({"inputs": [[1, 2]]}) == {"x": [[1, 2]]}
    assert data_of({"inputs": 7}) == {"x": 7}
    assert data_of({"inputs": {"x": [[1], [2]]}}) == {"x": [[1], [2]]}


def test_bytes() -> None:
    texts = view(spec("t", DType.BYTES))
    image = {"b64": "aW1hZ2UgYnl0ZXM="}
    assert data_of({"instances": [image, "seaside"]}, texts) == {"t": [b"image bytes", b"seaside"]}
    assert data_of({"inputs": image}, texts) == {"t": b"image bytes"}
    assert data_of({"inputs": {"t": [{"b64": "YWI"}]}}, texts) == {"t": [b"ab"]}
    assert data_of({"instances": [{"t": image}]}, texts) == {"t": [b"image bytes"]}


def test_what_json_has_no_number_for() -> None:
    [[a, b, c, d]] = data_of(b'{"instances": [[1.0, NaN, Infinity, -Infinity]]}')["x"]
    assert (a, c, d) == (1, math.inf, -math.inf)
    assert math.isnan(b)


def test_the_name_of_the_signature() -> None:
    found = request({"signature_name": "serving_default", "instances": [1]})
    assert found.signature == "serving_default"
    signatures = {"serving_default": Signature((), ()), "other": Signature((spec("y"),), ())}
    several = ModelMetadata("m", ("3",), "p", Signature((), ()), signatures)
    found = request({"signature_name": "other", "inputs": 1}, ModelView(several, "3"))
    assert found.signature == "other"
    assert found.inputs[0].name == "y"
    with pytest.raises(InvalidInput, match="no signature 'third': it has 'serving_default', 'oth"):
        request({"signature_name": "third", "inputs": 1}, ModelView(several, "3"))


def test_answers() -> None:
    numbers = Tensor.of("y", np.array([[0.2, 1], [math.nan, -math.inf]], np.float32))
    texts = Tensor.of("t", np.array([b"null", b'"\\null'], object))
    binary = Tensor.of("t_bytes", np.array([b"a", b"\xff"], object))
    assert answered({"instances": [0]}, texts) == {"predictions": ["null", '"\\null']}
    assert answered({"inputs": 0}, binary) == {"outputs": [{"b64": "YQ=="}, {"b64": "/w=="}]}
    found = call({"instances": [0]}).encode(InferResponse("m", "3", "", (texts, numbers)))
    assert b"".join(found.parts) == (
        b'{"predictions":[{"t":"null","y":[0.2,1.0]},{"t":"\\"\\\\null","y":[NaN,-Infinity]}]}'
    )
    found = call({"inputs": 0}).encode(InferResponse("m", "3", "", (texts, numbers)))
    assert b"".join(found.parts) == (
        b'{"outputs":{"t":["null","\\"\\\\null"],"y":[[0.2,1.0],[NaN,-Infinity]]}}'
    )
    scalar = Tensor.of("s", np.array(2, np.float32))
    assert answered({"inputs": 0}, scalar) == {"outputs": 2.0}
    with pytest.raises(InvalidInput, match="not a row for each of the instances"):
        answered({"instances": [0]}, scalar)
    with pytest.raises(InvalidInput, match="not a row for each of the instances"):
        answered({"instances": [0]}, numbers, Tensor.of("z", np.zeros(3)))


def test_metadata() -> None:
    model = view(spec("x", DType.FP32, "batch", 4), outputs=(spec("y", DType.BYTES),))
    for method in ("GET", "HEAD"):
        found = rest.read_call(RestCall(method, "/v1/models/m/metadata", "", {}, b""), model)
        assert isinstance(found, Reply)
        described = answer(found)
    dims = [{"size": "-1", "name": ""}, {"size": "4", "name": ""}]
    assert described == {
        "model_spec": {"name": "m", "signature_name": "", "version": "3"},
        "metadata": {
            "signature_def": {
                "signature_def": {
                    "serving_default": {
                        "inputs": {
                            "x": {
                                "dtype": "DT_FLOAT",
                                "tensor_shape": {"dim": dims, "unknown_rank": False},
                                "name": "x",
                            }
                        },
                        "outputs": {
                            "y": {
                                "dtype": "DT_STRING",
                                "tensor_shape": {"dim": [], "unknown_rank": True},
                                "name": "y",
                            }
                        },
                        "method_name": "tensorflow/serving/predict",
                    }
                }
            }
        },
    }


# -- numbers without objects ----------------------------------------------------------------------


@given(st.sampled_from(DType).flatmap(lambda d: arrays(d, text=True)), st.booleans())
def test_round_trip(array: Array, rows: bool) -> None:
    """What goes in comes out, by row and by column."""
    tensor = Tensor("x", DType.of(array.dtype), np.ascontiguousarray(array).reshape(array.shape))
    model = view(spec("x", tensor.dtype))
    response = InferResponse("m", "3", "", (tensor,))
    if rows and array.ndim and array.size:
        parts = call({"instances": [0]}).encode(response).parts
        body = b"".join(parts).replace(b'"predictions"', b'"instances"')
    else:
        body = b"".join(call({"inputs": 0}).encode(response).parts)
        body = body.replace(b'"outputs"', b'"inputs"')
    [found] = request(body, model).inputs
    if array.size:
        assert same(found.data, tensor.data)


def test_rows_of_c_long_longs() -> None:
    """ONNX Runtime answers with these; numpy takes them for its int64, orjson does not."""
    digits = Tensor("digit", DType.INT64, np.array([7, 2], np.longlong))
    scores = Tensor("score", DType.FP32, np.array([0.5, 1], np.float32))
    rows = answered({"instances": [1, 2]}, digits, scores)["predictions"]
    assert rows == [{"digit": 7, "score": 0.5}, {"digit": 2, "score": 1}]
    alone = Tensor("digit", DType.INT64, np.array(7, np.longlong))
    assert answered({"inputs": 1}, alone) == {"outputs": 7}


def listed(shape: tuple[int, ...], dtype: Any = np.float32) -> Array:
    count = math.prod(shape)
    return (np.arange(count) / (8 if dtype is np.float32 else 1)).reshape(shape).astype(dtype)


@pytest.mark.parametrize("shape", [(3000,), (3000, 1), (1, 3000), (6, 5, 200), (2, 3, 5, 7, 11)])
@pytest.mark.parametrize("spread", [None, 1])
def test_long_lists_are_what_the_ordinary_parser_reads(
    shape: tuple[int, ...], spread: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = listed(shape)
    for key in ("instances", "inputs"):
        body = json.dumps({key: data.tolist(), "signature_name": ""}, indent=spread).encode()
        assert len(body) > json_numbers.SHORTEST
        [found] = request(body).inputs
        assert np.array_equal(found.data, data)
        by_name = json.dumps({"inputs": {"x": data.tolist()}}, indent=spread).encode()
        [found] = request(by_name).inputs
        assert np.array_equal(found.data, data)


def test_long_lists_in_rows_of_several_inputs() -> None:
    model = view(spec("x"), spec("n", DType.INT64), spec("t", DType.BYTES))
    x, n = listed((5, 40, 50)), listed((5, 2000), np.int64)
    rows = [{"x": a.tolist(), "n": b.tolist(), "t": 'a":[1,'} for a, b in zip(x, n, strict=True)]
    found = request({"instances": rows}, model).inputs
    assert np.array_equal(found[0].data, x)
    assert np.array_equal(found[1].data, n)
    assert found[2].data.tolist() == [b'a":[1,'] * 5
    rows[3]["x"] = x[3][:20].tolist()
    with pytest.raises(InvalidInput, match="lists of input 'x' at depth 1 are not all of 40"):
        request({"instances": rows}, model)


@pytest.mark.parametrize(
    "spoilt",
    [
        lambda text: text.replace(b"7.0", b'"7.0"'),
        lambda text: text.replace(b"7.0", b"[7.0]"),
        lambda text: text.replace(b"7.0", b""),
        lambda text: text.replace(b"7.0", b"{}"),
        lambda text: text.replace(b"7.0", b"07"),
        lambda text: text.replace(b"7.0, ", b""),
        lambda text: text[:-2] + b"}",
        lambda text: text.replace(b"7.0", b"true"),
        lambda text: text.replace(b"7.0", b"1e99"),
        lambda text: text.replace(b"instances", b"instance"),
        lambda text: text.replace(b'"instances": ', b'"instances": [[], ') [:-1] + b"]}",
        lambda text: text.replace(b'"instances"', b'"signature_name"'),
    ],
)  # fmt: skip
def test_long_lists_that_are_wrong(spoilt: Any) -> None:
    body = json.dumps({"instances": listed((60, 50)).tolist()}).encode()
    request(body)
    with pytest.raises(InvalidInput) as caught:
        request(spoilt(body))
    assert json_numbers._SECRET not in str(caught.value)


def test_special_numbers_in_long_lists() -> None:
    body = json.dumps({"instances": [[1.0, math.nan, math.inf]] * 1000}).encode()
    [found] = request(body).inputs
    assert found.data.shape == (1000, 3)
    assert np.isnan(found.data[:, 1]).all()


# -- what is wrong --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (b"", "the body is not JSON"),
        (b"[]", r"the body is \[\]; send a JSON object"),
        (b'{"instances": [NaN', "the body is not JSON"),
        (b'{"instances": ' + b"[" * 100_000 + b"NaN", "the body is not JSON"),
        ({}, "neither of 'instances'"),
        ({"instances": [1], "inputs": [1]}, "both of 'instances'"),
        ({"instances": 1}, "'instances' is 1; send a list of at least one row"),
        ({"instances": []}, "send a list of at least one row"),
        ({"instances": [1], "signature_name": 1}, "'signature_name' is 1; send a string"),
        ({"instances": [[1, 2], [3]]}, "at depth 1 are not all of 2 elements"),
        ({"instances": [[1, 2], 3]}, "at depth 1 are not all of 2 elements"),
        ({"instances": [1, [2]]}, "send numbers"),
        ({"instances": [{"x": 1}, 2]}, r"instances\[1\] has 2; send an object with 'x'"),
        ({"instances": [{"x": 1}, {"z": 2}]}, r"instances\[1\] has 'z'; send an object with 'x'"),
        ({"inputs": {"x": 1, "z": 1}}, "'inputs' has 'x', 'z'; send 'x'"),
        ({"inputs": {}}, "'inputs' has nothing; send 'x'"),
        ({"inputs": "a"}, "send numbers"),
        ({"inputs": {"b64": "YQ=="}}, "send numbers"),
        ({"inputs": {"x": json.loads("[" * 40 + "]" * 40)}}, "nested more than 32 deep"),
    ],
)
def test_what_is_wrong(document: object, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        request(document)


@pytest.mark.parametrize(
    ("element", "words"),
    [
        ({"b64": "!"}, "not base64"),
        ({"b64": "é"}, "not base64"),
        ({"b64": 1}, "send strings, or bytes"),
        ({"b64": "YQ==", "c": 1}, "send strings, or bytes"),
        (1, "send strings, or bytes"),
        (None, "send strings, or bytes"),
    ],
)
def test_wrong_strings(element: object, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        request({"inputs": {"t": [element]}}, view(spec("t", DType.BYTES)))
    lone = b'{"inputs": {"t": ["\\ud800", "NaN"]}}'
    with pytest.raises(InvalidInput):
        request(lone, view(spec("t", DType.BYTES)))


def test_several_inputs_need_names() -> None:
    with pytest.raises(InvalidInput, match="send objects with these names"):
        request({"instances": [1]}, THREE)
    with pytest.raises(InvalidInput, match="send an object with these names"):
        request({"inputs": [1]}, THREE)


def test_documents_of_very_many_parts() -> None:
    body = b'{"instances":[' + b"{}," * 2**20 + b"{}]}"
    with pytest.raises(InvalidInput, match="lists, objects and members"):
        request(body)


# -- paths ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "version"),
    [("m", ""), ("m/versions/3", "3"), ("m/labels/stable", "3"), ("m/labels/canary", "4")],
)
def test_paths(path: str, version: str) -> None:
    found = call({"inputs": 1}, path=f"/v1/models/{path}:predict").request
    assert (found.model, found.version) == ("m", version)
    metadata = RestCall("GET", f"/v1/models/{path}/metadata", "", {}, b"")
    reply = rest.read_call(metadata, ONE)
    assert isinstance(reply, Reply)
    assert (reply.model, reply.version) == ("m", version)


@pytest.mark.parametrize(
    ("method", "path", "error"),
    [
        ("GET", "m:predict", MethodNotAllowed),
        ("POST", "m/metadata", MethodNotAllowed),
        ("POST", "m:explain", MethodNotFound),
        ("POST", "m:", MethodNotFound),
        ("GET", "m/", MethodNotFound),
        ("GET", "m/versions/3/other", MethodNotFound),
        ("POST", "m/versions/x:predict", InvalidInput),
        ("POST", "-:predict", InvalidInput),
        ("POST", "m/labels/nope:predict", InvalidInput),
        ("POST", "", MethodNotFound),
    ],
)
def test_paths_that_are_none(method: str, path: str, error: type[TidegateError]) -> None:
    with pytest.raises(error):
        rest.read_call(RestCall(method, f"/v1/models/{path}", "", {}, b'{"inputs": 1}'), ONE)


# -- the quick way and the ordinary one -----------------------------------------------------------

VALUES = st.sampled_from(
    ["1", "2.5", "-3e2", "7", "1e99", "null", "true", "NaN", "-Infinity", '"a"', '{"b64": "YQ=="}',
     "01", "", "{}", "18446744073709551616", '"a\\":[1,2"']
)  # fmt: skip
LISTS = st.recursive(
    VALUES | st.just("1"),
    lambda inner: st.lists(inner, max_size=3).map(lambda found: f"[{', '.join(found)}]"),
    max_leaves=12,
)
NAMES = st.sampled_from(["x", "n", "t", "signature_name", "instances", "inputs"])
OBJECTS = st.dictionaries(NAMES, LISTS, max_size=3).map(
    lambda found: "{" + ", ".join(f'"{name}": {value}' for name, value in found.items()) + "}"
)
BODIES = st.dictionaries(
    NAMES,
    LISTS | OBJECTS | st.lists(OBJECTS, max_size=3).map(lambda found: f"[{', '.join(found)}]"),
    max_size=2,
).map(lambda found: "{" + ", ".join(f'"{n}": {v}' for n, v in found.items()) + "}")


def outcome(body: bytes, model: ModelView) -> Any:
    try:
        found = request(body, model)
    except InvalidInput:
        return None
    return [(t.name, t.dtype, t.data.shape, repr(t.data.tolist())) for t in found.inputs]


@given(
    BODIES,
    st.sampled_from(
        [
            ONE,
            view(spec("x", DType.INT64)),
            view(spec("t", DType.BYTES)),
            view(spec("x"), spec("n", DType.INT8)),
        ]
    ),
)
def test_both_ways_read_the_same(body: str, model: ModelView) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_numbers, "SHORTEST", 2)
        patch.setattr(json_numbers, "_PIECE", 3)
        quickly = outcome(body.encode(), model)
        patch.setattr(json_numbers, "SHORTEST", 2**40)
        assert outcome(body.encode(), model) == quickly
