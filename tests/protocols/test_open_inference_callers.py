"""The caller's side of both transports, against the server's side and against tritonclient."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2
from tritonclient.http import InferResult

from tests.protocols.tensors import arrays, same
from tidegate.errors import InvalidAnswer, InvalidInput
from tidegate.protocols.open_inference import (
    extension_callers,
    grpc,
    grpc_caller,
    metadata,
    rest,
    rest_caller,
)
from tidegate.protocols.open_inference.repository import (
    IndexEntry,
    State,
    encode_index,
    encode_index_body,
)
from tidegate.protocols.open_inference.statistics import (
    Times,
    VersionStatistics,
    encode_statistics,
    encode_statistics_body,
)
from tidegate.types import (
    DType,
    InferRequest,
    InferResponse,
    ModelMetadata,
    RequestedOutput,
    ServerMetadata,
    Signature,
    Tensor,
    TensorSpec,
)

NUMERIC = [d for d in DType if d is not DType.BYTES]
PARAMETERS = st.dictionaries(
    st.text(max_size=8),
    st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(),
    max_size=3,
)
IN_JSON = st.dictionaries(
    st.text(max_size=8).filter(lambda key: key != "binary_data_output"),
    st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(),
    max_size=3,
)


@st.composite
def tensors(draw: st.DrawFn, /, **how: bool) -> tuple[Tensor, ...]:
    names = draw(st.lists(st.text(max_size=5), max_size=3, unique=True))
    return tuple(
        Tensor(name, dtype := draw(st.sampled_from(DType)), draw(arrays(dtype, **how)))
        for name in names
    )


@st.composite
def requests(draw: st.DrawFn, /, parameters: Any, **how: bool) -> InferRequest:
    outputs = draw(st.lists(st.text(max_size=5), max_size=2, unique=True))
    return InferRequest(
        draw(st.text(min_size=1, max_size=8)),
        draw(st.sampled_from(["", "3"])),
        draw(st.text(max_size=8)),
        draw(tensors(**how)),
        tuple(RequestedOutput(name) for name in outputs),
        draw(parameters),
    )


def assert_same(found: Any, sent: Any) -> None:
    assert [t.name for t in found] == [t.name for t in sent]
    assert [t.dtype for t in found] == [t.dtype for t in sent]
    for one, other in zip(found, sent, strict=True):
        assert same(one.data, other.data)


# -- requests -----------------------------------------------------------------------------------


@given(requests(PARAMETERS))
def test_a_grpc_request_is_what_a_server_reads(request: InferRequest) -> None:
    message = grpc_caller.encode_infer(request)
    found = grpc.decode_infer(message)
    assert (found.model, found.version, found.id) == (request.model, request.version, request.id)
    assert_same(found.inputs, request.inputs)
    assert [o.name for o in found.outputs] == [o.name for o in request.outputs]
    assert dict(found.parameters) == dict(request.parameters)


@given(requests(PARAMETERS))
def test_a_grpc_request_is_what_protobuf_reads(request: InferRequest) -> None:
    found = service_pb2.ModelInferRequest.FromString(grpc_caller.encode_infer(request))
    assert (found.model_name, found.model_version, found.id) == (
        request.model,
        request.version,
        request.id,
    )
    for spec, raw, tensor in zip(
        found.inputs, found.raw_input_contents, request.inputs, strict=True
    ):
        assert (spec.name, spec.datatype, tuple(spec.shape)) == (
            tensor.name,
            tensor.dtype.value,
            tensor.shape,
        )
        if tensor.dtype is not DType.BYTES:
            assert raw == tensor.data.tobytes()
    assert [o.name for o in found.outputs] == [o.name for o in request.outputs]
    assert found.parameters.keys() == request.parameters.keys()


@given(requests(IN_JSON))
def test_a_binary_body_is_what_a_server_reads(request: InferRequest) -> None:
    parts, length = rest_caller.encode_infer(request)
    found = rest.decode_infer(request.model, request.version, b"".join(parts), length)
    assert found.id == request.id
    assert_same(found.inputs, request.inputs)
    assert dict(found.parameters) == {**request.parameters, "binary_data_output": True}
    assert [o.name for o in found.outputs] == [o.name for o in request.outputs]
    assert all(o.parameters == {"binary_data": True} for o in found.outputs)


@given(requests(IN_JSON, finite=True, text=True))
def test_a_body_in_json_is_what_a_server_reads(request: InferRequest) -> None:
    parts, length = rest_caller.encode_infer(request, binary=False)
    assert length is None
    found = rest.decode_infer(request.model, request.version, b"".join(parts))
    assert_same(found.inputs, request.inputs)
    assert dict(found.parameters) == dict(request.parameters)


@pytest.mark.parametrize("data", [np.array([np.inf], np.float32), np.array([b"\xff"], object)])
def test_what_json_cannot_hold_is_refused_before_it_is_sent(data: Any) -> None:
    request = InferRequest("m", inputs=(Tensor("x", DType.of(data.dtype), data),))
    with pytest.raises(InvalidInput, match=r"input 'x'.*binary=True"):
        rest_caller.encode_infer(request, binary=False)


@pytest.mark.parametrize("value", [object(), 2**64, -(2**63) - 1, None, [1]])
def test_parameters_that_no_message_holds(value: Any) -> None:
    with pytest.raises(InvalidInput, match="the parameter 'key' of the request"):
        grpc_caller.encode_infer(InferRequest("m", parameters={"key": value}))


def test_a_message_beyond_protobufs_limit_is_refused_before_it_is_made() -> None:
    # Never written to, so that it takes no memory.
    half = Tensor("x", DType.UINT8, np.zeros(2**30, np.uint8))
    with pytest.raises(InvalidInput, match="less than 2 GiB"):
        grpc_caller.encode_infer(InferRequest("m", inputs=(half, half)))


# -- answers ------------------------------------------------------------------------------------


@given(tensors(), PARAMETERS, st.text(max_size=8))
def test_a_grpc_answer_is_what_a_server_wrote(
    outputs: tuple[Tensor, ...], parameters: dict[str, Any], identity: str
) -> None:
    response = InferResponse("m", "1", identity, outputs, parameters)
    found = grpc_caller.decode_infer(grpc.encode_infer(response))
    assert (found.model, found.version, found.id) == ("m", "1", identity)
    assert_same(found.outputs, outputs)
    assert dict(found.parameters) == parameters


@given(tensors(), IN_JSON)
def test_a_binary_answer_is_what_a_server_wrote(
    outputs: tuple[Tensor, ...], parameters: dict[str, Any]
) -> None:
    response = InferResponse("m", "1", "7", outputs, parameters)
    request = InferRequest("m", parameters={"binary_data_output": True})
    parts, length = rest.encode_infer(response, request)
    body = b"".join(parts)
    found = rest_caller.decode_infer(body, length)
    assert_same(found.outputs, outputs)
    assert dict(found.parameters) == parameters
    triton = InferResult.from_response_body(body, header_length=length)
    for tensor in found.outputs:
        if tensor.dtype is not DType.BF16:
            assert same(triton.as_numpy(tensor.name).reshape(tensor.shape), tensor.data)


@given(tensors(finite=True, text=True))
def test_an_answer_in_json_is_what_a_server_wrote(outputs: tuple[Tensor, ...]) -> None:
    parts, length = rest.encode_infer(InferResponse("m", "1", "", outputs), InferRequest("m"))
    found = rest_caller.decode_infer(b"".join(parts), length)
    assert_same(found.outputs, outputs)


@pytest.mark.parametrize(
    ("datatype", "field", "values"),
    [
        ("BOOL", "bool_contents", [True, False]),
        ("INT8", "int_contents", [-128, 127]),
        ("INT64", "int64_contents", [-(2**63), 2**63 - 1]),
        ("UINT16", "uint_contents", [0, 65535]),
        ("UINT64", "uint64_contents", [0, 2**64 - 1]),
        ("FP32", "fp32_contents", [0.5, -2.0]),
        ("FP64", "fp64_contents", [0.1, 1e300]),
        ("BYTES", "bytes_contents", [b"", b"\xff"]),
    ],
)
def test_typed_contents_as_other_servers_write_them(
    datatype: str, field: str, values: list[Any]
) -> None:
    message = service_pb2.ModelInferResponse(model_name="m")
    output = message.outputs.add(name="y", datatype=datatype, shape=[2, 1])
    getattr(output.contents, field).extend(values)
    (found,) = grpc_caller.decode_infer(message.SerializeToString()).outputs
    assert found.data.tolist() == [[value] for value in values]


def test_bare_nan_as_triton_writes_it() -> None:
    body = (
        b'{"model_name":"m","outputs":'
        b'[{"name":"y","datatype":"FP32","shape":[3],"data":[NaN,Infinity,1]}]}'
    )
    (found,) = rest_caller.decode_infer(body, None).outputs
    assert np.isnan(found.data[0])
    assert found.data[1:].tolist() == [np.inf, 1]


# -- metadata -----------------------------------------------------------------------------------

METADATA = ModelMetadata(
    "m",
    ("1", "2"),
    "onnx",
    Signature(
        (TensorSpec("x", DType.FP32, (None, 4)), TensorSpec("s", DType.BYTES, ())),
        (TensorSpec("y", DType.BF16, (1, None)),),
    ),
)


def test_metadata_is_what_a_server_wrote() -> None:
    assert grpc_caller.decode_model_metadata(metadata.encode_model_metadata(METADATA)) == METADATA
    assert rest_caller.decode_model_metadata(metadata.encode_metadata_body(METADATA)) == METADATA
    said = ("t", "1", ["a", "b"])
    expected = ServerMetadata("t", "1", ("a", "b"))
    assert grpc_caller.decode_server_metadata(metadata.encode_server_metadata(*said)) == expected
    assert (
        rest_caller.decode_server_metadata(metadata.encode_server_metadata_body(*said)) == expected
    )


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"inputs": [], "outputs": 3}, "'outputs' are 3"),
        ({"inputs": [3], "outputs": []}, "not a list of objects"),
        ({"inputs": [{"name": 3}], "outputs": []}, "the name 3"),
        ({"inputs": [{"name": "x", "datatype": "FP8"}], "outputs": []}, "datatype 'FP8'"),
        ({"inputs": [{"name": "x", "datatype": "FP32"}], "outputs": []}, "the shape None"),
        ({"inputs": [], "outputs": [], "versions": 3}, "'versions' are 3"),
        ({"name": [], "inputs": [], "outputs": []}, "'name' is \\[\\]"),
        ([], "not a JSON object"),
    ],
)
def test_metadata_that_is_none(body: Any, words: str) -> None:
    with pytest.raises(InvalidAnswer, match=words):
        rest_caller.decode_model_metadata(orjson.dumps(body))


# -- odd answers --------------------------------------------------------------------------------


def output(**changes: Any) -> bytes:
    described = {"name": "y", "datatype": "FP32", "shape": [2], "data": [1, 2], **changes}
    return orjson.dumps({"outputs": [{k: v for k, v in described.items() if v is not None}]})


@pytest.mark.parametrize(
    ("body", "length", "words"),
    [
        (b"", None, "is not JSON"),
        (b"<html>", None, "is not JSON"),
        (b"[1]", None, r"it is \[1\], not a JSON object"),
        (b"{}", None, "'outputs' are None"),
        (b'{"outputs":[NaN', None, "is not JSON"),
        (b'{"outputs":[3]}', None, "is 3, not an object"),
        (b'{"outputs":[{"name":3}]}', None, "not an object with a name"),
        (output(shape="2"), None, "shape of output 'y'"),
        (output(shape=[-2]), None, r"shape of output 'y' is \[-2\]"),
        (output(shape=[2**40, 2**40]), None, "more elements than any memory"),
        (output(shape=[3]), None, "output 'y' has 2 elements"),
        (output(datatype="FP8"), None, "output 'y' has the datatype 'FP8'"),
        (output(data=["a", 1]), None, "'a'"),
        (output(data=None), None, "the data of output 'y' is None"),
        (output(parameters={"binary_data_size": 8}, data=None), None, "0 bytes are left"),
        (output(parameters={"binary_data_size": -1}, data=None), None, "is -1"),
        (output(parameters={"binary_data_size": "8"}, data=None), None, "is '8'"),
        (output() + b"12345678", len(output()), "8 bytes follow"),
        (output(), len(output()) + 1, "Inference-Header-Content-Length"),
        (b'{"outputs":[],"parameters":3}', None, "'parameters' are 3"),
        (b'{"outputs":[],"id":[]}', None, "'id' is"),
        (b"[" * 10_000 + b"NaN", None, "is not JSON"),
    ],
)
def test_odd_bodies(body: bytes, length: int | None, words: str) -> None:
    with pytest.raises(InvalidAnswer, match=words) as caught:
        rest_caller.decode_infer(body, length)
    assert len(str(caught.value)) < 500


def test_binary_data_that_is_too_short() -> None:
    head = output(parameters={"binary_data_size": 4}, data=None)
    with pytest.raises(InvalidAnswer, match="output 'y'"):
        rest_caller.decode_infer(head + b"1234", len(head))


def test_odd_messages() -> None:
    with pytest.raises(InvalidAnswer, match=r"are no inference\.ModelInferResponse"):
        grpc_caller.decode_infer(b"\xff\xff")
    message = service_pb2.ModelInferResponse()
    message.outputs.add(name="y", datatype="FP32", shape=[2])
    with pytest.raises(InvalidAnswer, match="output 'y' has 0 elements"):
        grpc_caller.decode_infer(message.SerializeToString())
    message.raw_output_contents.extend([b"1234", b""])
    with pytest.raises(InvalidAnswer, match="2 raw_output_contents for 1 outputs"):
        grpc_caller.decode_infer(message.SerializeToString())


@given(st.data(), tensors())
def test_a_spoilt_answer_is_read_or_refused(
    data: st.DataObject, outputs: tuple[Tensor, ...]
) -> None:
    request = InferRequest("m", parameters={"binary_data_output": True})
    parts, length = rest.encode_infer(InferResponse("m", "1", "", outputs), request)
    for whole, decode in (
        (b"".join(parts), lambda body: rest_caller.decode_infer(body, length)),
        (grpc.encode_infer(InferResponse("m", "1", "", outputs)), grpc_caller.decode_infer),
    ):
        spoilt = bytearray(whole)
        if spoilt:
            at = data.draw(st.integers(0, len(spoilt) - 1))
            spoilt[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
        with contextlib.suppress(InvalidAnswer):
            decode(bytes(spoilt))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"error": "why"}', "why"),
        (b'{"detail": [{"msg": "missing"}]}', "missing"),
        (b'{"message": "why"}', "why"),
        (b'{"other": 1}', '{"other":1}'),
        (b"upstream connect error", "upstream connect error"),
        (b"", ""),
        (b"\xff" * 10, "\ufffd"),
        (json.dumps({"error": "x" * 10**6}).encode(), "xxx..."),
    ],
)
def test_errors_however_a_server_says_them(body: bytes, words: str) -> None:
    found = rest_caller.decode_error(body)
    assert words in found
    assert len(found) <= 4096


# -- extensions ---------------------------------------------------------------------------------

INDEX = (
    IndexEntry("a", "1", State.READY),
    IndexEntry("b", "", State.UNAVAILABLE, "its file is empty"),
)
STATISTICS = (
    VersionStatistics(
        "a",
        "1",
        17,
        5,
        4,
        {name: Times(n, n * 10) for n, name in enumerate(extension_callers._REQUESTS)},
        {4: {name: Times(1, 2) for name in extension_callers._BATCHES}},
    ),
)


def test_the_index_is_what_a_server_wrote() -> None:
    assert extension_callers.decode_index(encode_index(INDEX)) == INDEX
    assert extension_callers.decode_index_body(encode_index_body(INDEX)) == INDEX
    never_loaded = extension_callers.decode_index_body(b'[{"name":"a"}]')
    assert never_loaded == (IndexEntry("a", "", State.UNAVAILABLE),)


def test_statistics_are_what_a_server_wrote() -> None:
    assert extension_callers.decode_statistics(encode_statistics(STATISTICS)) == STATISTICS
    body = encode_statistics_body(STATISTICS)
    assert extension_callers.decode_statistics_body(body) == STATISTICS


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"3",
        b'"ab"',
        b"{}",
        b"[3]",
        b'[{"name":[]}]',
        b'[{"name":"a","state":"ASLEEP"}]',
        b'{"model_stats":3}',
        b'{"model_stats":[3]}',
        b'{"model_stats":[{"inference_count":"1"}]}',
        b'{"model_stats":[{"inference_stats":3}]}',
        b'{"model_stats":[{"batch_stats":{"a":1}}]}',
        b'{"model_stats":[{"batch_stats":[{"batch_size":1.5}]}]}',
    ],
)
def test_extensions_that_answer_oddly(body: bytes) -> None:
    with pytest.raises(InvalidAnswer):
        extension_callers.decode_index_body(body)
    if b"model_stats" in body or b"{" not in body:
        with pytest.raises(InvalidAnswer):
            extension_callers.decode_statistics_body(body)
    with pytest.raises(InvalidAnswer):
        extension_callers.decode_index(b"\xff")
    with pytest.raises(InvalidAnswer):
        extension_callers.decode_statistics(b"\xff")
