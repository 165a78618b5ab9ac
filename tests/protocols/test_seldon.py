from __future__ import annotations

import contextlib
import json
from typing import Any

import numpy as np
import orjson
import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tidegate.errors import InvalidInput, MethodNotAllowed, MethodNotFound
from tidegate.protocols.dialect import Inference, ModelView, Reply, RestCall
from tidegate.protocols.seldon import grpc, messages, rest
from tidegate.protocols.seldon.content import Form
from tidegate.protocols.varints import write_length
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

SPEC = TensorSpec("x", DType.FP64, (None, None))


def view(*inputs: TensorSpec, takes_payload: bool = False) -> ModelView:
    metadata = ModelMetadata("m", ("1",), "p", Signature(inputs or (SPEC,), ()))
    return ModelView(metadata, "1", takes_payload=takes_payload)


def message(**fields: Any) -> bytes:
    return bytes(json_format.ParseDict(fields, messages.SeldonMessage()).SerializeToString())


def tensor(array: Array, **more: Any) -> bytes:
    sent = messages.SeldonMessage.FromString(message(**more))
    sent.data.tensor.shape.extend(array.shape)
    sent.data.tensor.values.extend(array.reshape(-1).tolist())
    return bytes(sent.SerializeToString())


def as_json(found: Any) -> Any:
    return json_format.MessageToDict(found)


def answer(form: Form, *outputs: Tensor, request: Any = None, **more: Any) -> Any:
    """Return the answer over gRPC, which over REST must be the same."""
    if request is None:
        request = grpc.read_predict(tensor(np.ones((1, 1))), view()).request
    response = InferResponse("m", "1", request.id, outputs, **more)
    parts = grpc.encode(request, form, response)
    found = messages.SeldonMessage.FromString(b"".join(bytes(part) for part in parts))
    told = json.loads(rest.encode(request, form, response))
    status, want = told.pop("status"), as_json(found)
    assert (status["code"], want.pop("status")) == (200, {"code": 200})
    # Protobuf's own JSON leaves out what is empty.
    want["meta"].setdefault("tags", {})
    if "tensor" in want.get("data", {}):
        want["data"]["tensor"].setdefault("values", [])
    assert told == want
    return found


@given(hnp.arrays(np.float64, hnp.array_shapes(min_dims=2, max_dims=2, min_side=0)))
def test_a_tensor_is_read_from_bytes(array: Array) -> None:
    inference = grpc.read_predict(tensor(array, meta={"puid": "p", "tags": {"a": [1]}}), view())
    request = inference.request
    (found,) = request.inputs
    assert np.array_equal(found.data, array, equal_nan=True)
    assert (request.id, request.tags) == ("p", {"a": [1.0]})


def test_every_layout_of_a_tensor() -> None:
    packed = tensor(np.array([[1.5, 2.5]]))
    unpacked = b"\x1a\x18\x12\x16\x08\x01\x08\x02" + b"".join(
        b"\x11" + np.float64(value).tobytes() for value in (1.5, 2.5)
    )
    twice = message(strData="x") + packed
    for sent in (packed, unpacked, twice):
        (found,) = grpc.read_predict(sent, view()).request.inputs
        assert found.data.tolist() == [[1.5, 2.5]]


TFTENSOR = {
    "dtype": "DT_DOUBLE",
    "tensorShape": {"dim": [{"size": 1}, {"size": 2}]},
    "doubleVal": [1, 2],
}
FORMS: list[tuple[dict[str, Any], Form, Any]] = [
    ({"data": {"tensor": {"shape": [1, 2], "values": [1, 2]}}}, Form.TENSOR, [[1, 2]]),
    ({"data": {"ndarray": [[1, 2.5]]}}, Form.NDARRAY, [[1, 2.5]]),
    ({"data": {"tftensor": TFTENSOR}}, Form.TFTENSOR, [[1, 2]]),
    ({"jsonData": {"x": [[3, 4]]}}, Form.JSON, [[3, 4]]),
    ({"jsonData": [[3, 4]]}, Form.JSON, [[3, 4]]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("document", "form", "values"), FORMS, ids=lambda v: getattr(v, "value", "")
)
def test_every_form(document: dict[str, Any], form: Form, values: Any) -> None:
    by_grpc = grpc.decode(message(**document), 999)
    by_rest = rest.decode(document, 999)
    for content in (by_grpc, by_rest):
        assert content.form is form
        body = orjson.dumps(document)
    call = RestCall("POST", "/predict", "", {}, body)
    for inference in (
        grpc.read_predict(message(**document), view()),
        rest.read_call(call, view()),
    ):
        assert isinstance(inference, Inference)
        (found,) = inference.request.inputs
        assert found.data.dtype == np.float64
        assert (found.name, found.data.tolist()) == ("x", values)


@pytest.mark.parametrize(
    ("document", "payload"),
    [
        ({"binData": "/wA="}, b"\xff\0"),
        ({"strData": "ž"}, "ž"),
        ({"jsonData": {"a": [1.5, None, True, {"b": "c"}]}}, {"a": [1.5, None, True, {"b": "c"}]}),
    ],
)
def test_what_is_no_array(document: dict[str, Any], payload: Any) -> None:
    hooked = view(takes_payload=True)
    assert grpc.read_predict(message(**document), hooked).request.payload == payload
    found = rest.read_call(RestCall("POST", "/predict", "", {}, orjson.dumps(document)), hooked)
    assert isinstance(found, Inference)
    assert found.request.payload == payload


def test_bytes_for_a_model_of_tensors() -> None:
    text = view(TensorSpec("t", DType.BYTES, (1, 1)))
    (found,) = grpc.read_predict(message(strData="ž"), text).request.inputs
    assert found.data.tolist() == [["ž".encode()]]
    with pytest.raises(InvalidInput, match=r"hooks\.py"):
        grpc.read_predict(message(binData="AA=="), view())


def test_answers_come_in_the_form_of_the_request() -> None:
    floats = Tensor.of("y", np.array([[1.5, 2]], np.float32))
    data = answer(Form.TENSOR, floats).data
    assert (list(data.tensor.shape), list(data.tensor.values)) == ([1, 2], [1.5, 2])
    assert as_json(answer(Form.NDARRAY, floats).data.ndarray) == [[1.5, 2]]
    assert list(answer(Form.TFTENSOR, floats).data.tftensor.float_val) == [1.5, 2]
    assert answer(Form.JSON, floats).data.WhichOneof("data_oneof") == "tensor"
    texts = np.empty((1,), np.object_)
    texts[0] = "ž".encode()
    written = answer(Form.TENSOR, Tensor("y", DType.BYTES, texts)).data.ndarray
    assert as_json(written) == ["ž"]
    empty = answer(Form.TENSOR, Tensor.of("y", np.empty((0, 3)))).data.tensor
    assert (list(empty.shape), list(empty.values)) == ([0, 3], [])


def test_several_outputs_are_an_object() -> None:
    two = (Tensor.of("a", np.array([1.0])), Tensor.of("b", np.array([[2]])))
    assert as_json(answer(Form.TENSOR, *two).jsonData) == {"a": [1], "b": [[2]]}


def test_payloads_and_tags_go_back() -> None:
    assert answer(Form.TENSOR, payload=b"\xff").binData == b"\xff"
    assert answer(Form.TENSOR, payload="ž").strData == "ž"
    request = grpc.read_predict(
        message(strData="", meta={"tags": {"a": 1}}), view(takes_payload=True)
    ).request
    found = answer(Form.TEXT, request=request, payload={"k": [1, None]}, tags={"b": "x"})
    assert as_json(found.jsonData) == {"k": [1, None]}
    assert as_json(found.meta)["tags"] == {"a": 1, "b": "x"}
    assert found.meta.puid == request.id != ""
    listed = answer(Form.TEXT, payload=[{"label": "a", "score": 0.5}, "x"])
    assert as_json(listed.data.ndarray) == [{"label": "a", "score": 0.5}, "x"]
    assert answer(Form.JSON, payload=[]).WhichOneof("data_oneof") == "data"


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (b"\xff", "not a valid seldon.protos.SeldonMessage"),
        (b"", "has no data"),
        (message(data={}), "no tensor, ndarray or tftensor"),
        (message(data={"tensor": {"shape": [2, 2], "values": [1]}}), "has 1 values"),
        (message(data={"tensor": {"shape": [-1], "values": [1]}}), "none of them negative"),
        (message(data={"tensor": {"shape": [1] * 99, "values": [1]}}), "at most"),
        (message(data={"ndarray": [[1], [1, 2]]}), "not regular"),
        (message(data={"tftensor": {}}), "DT_INVALID"),
    ],
)
def test_malformed_messages(sent: bytes, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        grpc.read_predict(sent, view())


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not JSON"),
        (b"[]", "a SeldonMessage, an object"),
        (b"{}", "has no data"),
        (b'{"strData": "", "binData": ""}', "strData and binData"),
        (b'{"strData": 1}', "send a string"),
        (b'{"binData": "?"}', "no base64"),
        (b'{"strData": "", "meta": [1]}', "send an object"),
        (b'{"strData": "", "meta": {"puid": 1}}', "puid that is no string"),
        (b'{"data": []}', "send an object with one of"),
        (b'{"data": {"tensor": {}, "ndarray": []}}', "send an object with one of"),
        (b'{"data": {"tensor": {"values": 1}}}', "send an object with shape and values"),
        (b'{"data": {"tensor": {"values": [[1]]}}}', "a flat list of numbers"),
        (b'{"data": {"tensor": {"shape": [1.5], "values": [1]}}}', "no list of integers"),
        (b'{"data": {"ndarray": 1}}', "send nested lists"),
        (b'{"data": {"names": [1], "ndarray": []}}', "a list of strings"),
        (b'{"data": {"tftensor": {"dtype": "x"}}}', "no TensorProto"),
        (b'{"data": {"tftensor": 1}}', "no TensorProto"),
    ],
)
def test_malformed_documents(body: bytes, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        rest.read_call(RestCall("POST", "/predict", "", {}, body), view())


def test_the_ways_to_send_json() -> None:
    form = {b"content-type": b"application/x-www-form-urlencoded; charset=utf-8"}
    quoted = "json=%7B%22data%22%3A%7B%22ndarray%22%3A%5B%5B1%5D%5D%7D%7D"
    for call in (
        RestCall("POST", "/seldon/space/m/api/v1.0/predictions", "", form, quoted.encode()),
        RestCall("POST", "/api/v0.1/predictions", "", form, b"a=&" + quoted.encode()),
        RestCall("GET", "/predict", quoted, {}, b""),
    ):
        found = rest.read_call(call, view())
        assert isinstance(found, Inference)
        assert found.request.inputs[0].data.tolist() == [[1]]
    for body, words in ((b"a=b", "no field 'json'"), (b"&".join([b"a=b"] * 99), "cannot be read")):
        with pytest.raises(InvalidInput, match=words):
            rest.read_call(RestCall("POST", "/predict", "", form, body), view())


def test_feedback_and_other_paths() -> None:
    for path in ("/seldon/a/m/api/v1.0/feedback", "/send-feedback"):
        assert isinstance(rest.read_call(RestCall("POST", path, "", {}, b"{}"), view()), Reply)
    feedback = messages.Feedback(reward=1).SerializeToString()
    assert isinstance(grpc.read_feedback(feedback, view()), Reply)
    with pytest.raises(InvalidInput):
        grpc.read_feedback(b"\xff", view())
    with pytest.raises(MethodNotFound):
        rest.read_call(RestCall("POST", "/seldon/a/m", "", {}, b"{}"), view())
    with pytest.raises(MethodNotAllowed):
        rest.read_call(RestCall("GET", "/api/v1.0/predictions", "", {}, b""), view())


def test_an_infinite_answer_has_no_json() -> None:
    request = grpc.read_predict(tensor(np.ones((1, 1))), view()).request
    response = InferResponse("m", "1", "", [Tensor.of("y", np.array([np.inf]))])
    with pytest.raises(InvalidInput, match="call over gRPC"):
        rest.encode(request, Form.TENSOR, response)


@pytest.mark.parametrize("count", [1, 2])
def test_bytes_that_are_no_text_have_no_array(count: int) -> None:
    """It is the caller who can ask for another form: no fault of the server."""
    data = np.array([b"\xff"], np.object_)
    found = InferResponse("m", "1", "", [Tensor(f"y{i}", DType.BYTES, data) for i in range(count)])
    for encode in (grpc.encode, rest.encode):
        with pytest.raises(InvalidInput, match="bytes that are no text"):
            encode(InferRequest("m"), Form.NDARRAY, found)


def test_errors_are_statuses() -> None:
    assert orjson.loads(rest.encode_error(400, "é"))["status"] == {
        "code": 400, "info": "é", "reason": "", "status": "FAILURE",
    }  # fmt: skip
    assert rest.encode_error(400, "\ud800").endswith(b'"FAILURE"}}')


def nested(depth: int) -> bytes:
    """Return a JSON value of lists in lists."""
    found = b""
    for _ in range(depth):
        found = b"\x0a" + write_length(len(found)) + found
        found = b"\x32" + write_length(len(found)) + found
    return found


def field(tag: int, content: bytes) -> bytes:
    return bytes([tag]) + write_length(len(content)) + content


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (field(0x1A, field(0x1A, b"\x0a\x00" * 2**21)), "more than"),
        (field(0x1A, b"\x0a\x00" * 2**21), "more than"),
        (field(0x12, b"\x12\x00" * 2**21), "more than"),
        (field(0x32, nested(9000)), "nested too deep"),
    ],
    ids=["values", "names", "tags", "depth"],
)
def test_messages_of_too_many_parts(sent: bytes, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        grpc.read_predict(sent, view(takes_payload=True))
    with pytest.raises(InvalidInput, match=words):
        grpc.read_feedback(field(0x0A, sent), view())


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_refused(sent: bytes) -> None:
    for read in (grpc.read_predict, grpc.read_feedback):
        with contextlib.suppress(InvalidInput):
            read(sent, view())
