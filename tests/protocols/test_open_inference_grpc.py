from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import InferInput, InferRequestedOutput, InferResult, service_pb2
from tritonclient.grpc._utils import _get_inference_request

from tests.protocols.tensors import arrays, same
from tidegate.errors import InferenceFailed, InvalidInput, RequestError, Unsupported
from tidegate.protocols.open_inference import grpc, metadata
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

ALL = st.sampled_from(DType)
FIELDS = {
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "BOOL": "bool_contents",
    "INT64": "int64_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


def triton_input(name: str, dtype: DType, data: Array) -> Any:
    return InferInput(name, list(data.shape), dtype.value).set_data_from_numpy(data)


def triton_request(inputs: list[Any], **keywords: Any) -> Any:
    options: dict[str, Any] = {
        "model_name": "digits",
        "inputs": inputs,
        "model_version": "",
        "request_id": "",
        "outputs": None,
        "sequence_id": 0,
        "sequence_start": False,
        "sequence_end": False,
        "priority": 0,
        "timeout": None,
        "parameters": None,
    }
    return _get_inference_request(**(options | keywords))


def typed_request(dtype: str, shape: list[int], values: list[Any], field: str) -> bytes:
    request = service_pb2.ModelInferRequest(model_name="digits")
    tensor = request.inputs.add(name="x", datatype=dtype, shape=shape)
    getattr(tensor.contents, field).extend(values)
    return bytes(request.SerializeToString())


def raw_request(dtype: str, shape: list[int], *raws: bytes) -> bytes:
    request = service_pb2.ModelInferRequest(model_name="digits")
    request.inputs.add(name="x", datatype=dtype, shape=shape)
    request.raw_input_contents.extend(raws)
    return bytes(request.SerializeToString())


@given(st.data(), ALL, st.sampled_from([bytes, memoryview, bytearray]), st.text(max_size=5))
def test_raw_requests_of_tritonclient(
    data: st.DataObject, dtype: DType, kind: type, identity: str
) -> None:
    array = data.draw(arrays(dtype))
    other = np.arange(40, dtype=np.int64)
    message = triton_request(
        [triton_input("x", dtype, array), triton_input("y", DType.INT64, other)],
        request_id=identity,
        model_version="3",
        outputs=[InferRequestedOutput("a"), InferRequestedOutput("b")],
        priority=7,
        timeout=1000,
        parameters={"flag": True, "name": "é", "factor": 1.5},
    ).SerializeToString()
    request = grpc.decode_infer(kind(message))
    assert (request.model, request.version, request.id) == ("digits", "3", identity)
    assert [output.name for output in request.outputs] == ["a", "b"]
    assert request.parameters["flag"] is True
    assert request.parameters["name"] == "é"
    assert request.parameters["priority"] == 7
    first, second = request.inputs
    assert (first.name, first.dtype) == ("x", dtype)
    assert same(first.data, array)
    assert same(second.data, other)


@given(st.lists(st.sampled_from(["", "a", "b", "i" * 127, "i" * 128, "ü"]), max_size=6))
def test_requests_that_differ_in_their_ids_alone(identities: list[str]) -> None:
    for number, identity in enumerate(identities):
        array = np.array([[number]], np.int64)
        request = triton_request([triton_input("x", DType.INT64, array)], request_id=identity)
        decoded = grpc.decode_infer(request.SerializeToString())
        assert decoded.id == identity
        assert same(decoded.inputs[0].data, array)


@pytest.mark.parametrize("name", ["INT64", "UINT64"])
def test_many_integers_of_every_length(name: str) -> None:
    dtype = DType(name)
    limits = np.iinfo(dtype.numpy)
    edges = [sign * (2**bit + more) for bit in range(64) for sign in (1, -1) for more in (-1, 0)]
    some = [edge for edge in edges if limits.min <= edge <= limits.max]
    array = np.random.default_rng(3).choice(np.array(some, dtype.numpy), 50_000)
    message = typed_request(name, [50_000], array.tolist(), FIELDS[name])
    assert same(grpc.decode_infer(message).inputs[0].data, array)


@given(st.data(), st.sampled_from(sorted(FIELDS)))
def test_typed_requests(data: st.DataObject, name: str) -> None:
    dtype = DType(name)
    array = data.draw(arrays(dtype))
    message = typed_request(name, list(array.shape), array.reshape(-1).tolist(), FIELDS[name])
    [tensor] = grpc.decode_infer(message).inputs
    assert tensor.dtype is dtype
    assert same(tensor.data, array)


@given(st.data(), ALL, st.text(max_size=5))
def test_tritonclient_reads_our_responses(
    data: st.DataObject, dtype: DType, identity: str
) -> None:
    array = data.draw(arrays(dtype))
    many = np.arange(10_000, dtype=np.float32).reshape(10, 1000)
    response = InferResponse(
        "digits",
        "2",
        identity,
        (Tensor("a", dtype, array), Tensor("b", DType.FP32, many)),
        {"flag": True, "n": -5, "big": 2**64 - 1, "x": 0.5, "s": "é"},
    )
    message = service_pb2.ModelInferResponse.FromString(grpc.encode_infer(response))
    assert (message.model_name, message.model_version, message.id) == ("digits", "2", identity)
    assert message.parameters["flag"].bool_param is True
    assert message.parameters["n"].int64_param == -5
    assert message.parameters["big"].uint64_param == 2**64 - 1
    assert message.parameters["x"].double_param == 0.5
    assert message.parameters["s"].string_param == "é"
    result = InferResult(message)
    assert [o.datatype for o in message.outputs] == [dtype.value, "FP32"]
    if array.size:  # for an empty array tritonclient's flat type differs
        assert same(result.as_numpy("a"), array)
    assert list(message.outputs[0].shape) == list(array.shape)
    assert same(result.as_numpy("b"), many)


def test_large_data_is_not_copied() -> None:
    array = np.arange(100_000, dtype=np.float32)
    message = triton_request([triton_input("x", DType.FP32, array)]).SerializeToString()
    [tensor] = grpc.decode_infer(memoryview(message)).inputs
    assert np.shares_memory(tensor.data, np.frombuffer(message, np.uint8))
    assert not tensor.data.flags.writeable
    parts = grpc.encode_infer_parts(InferResponse("m", "1", "", (Tensor("y", DType.FP32, array),)))
    assert np.shares_memory(np.frombuffer(parts[-1], np.uint8), array)


@pytest.mark.parametrize("size", [20_000, 1])
def test_an_array_that_is_not_contiguous_is_encoded_in_row_major_order(size: int) -> None:
    array = np.arange(2 * size, dtype=np.float32).reshape(2, size).T
    response = InferResponse("m", "1", "", (Tensor("y", DType.FP32, array),))
    message = service_pb2.ModelInferResponse.FromString(grpc.encode_infer(response))
    assert message.raw_output_contents[0] == array.tobytes()


@pytest.mark.parametrize(
    "arrange",
    [
        # Everything that protobuf allows and a usual client does not write.
        lambda head, raw: raw + head,
        lambda head, raw: head[:5] + head[5:] + raw + b"\x1a\x02id",
        lambda head, raw: b"\x1a\x01x" + head + b"\x1a\x02id" + raw,
        lambda head, raw: b"\x0a\x05wrong" + head + b"\x1a\x02id" + raw,
        lambda head, raw: b"\xfa\x01\x03abc" + head + raw,  # an unknown field
        lambda head, raw: b"\x1a\x82\x80\x00id" + head + raw,  # a longer length than needed
        lambda head, raw: b"\x08\x01" + head + raw,  # the name's number with another type
    ],
)
def test_messages_that_are_laid_out_otherwise(arrange: Any) -> None:
    array = np.arange(4, dtype=np.float32)
    message = raw_request("FP32", [4], array.tobytes())
    head, raw = message[:-18], message[-18:]
    odd = arrange(head, raw)
    theirs = service_pb2.ModelInferRequest.FromString(odd)
    request = grpc.decode_infer(odd)
    assert (request.model, request.id) == ("digits", theirs.id)
    assert same(request.inputs[0].data, array)


def test_typed_contents_may_be_unpacked_and_split() -> None:
    message = typed_request("FP32", [3], [], "fp32_contents")
    inner = b"".join(b"\x35" + np.float32(v).tobytes() for v in (1, 2))  # one by one
    inner += b"\x32\x04" + np.float32(3).tobytes()
    tensor = b"\x0a\x01x\x12\x04FP32\x1a\x01\x03\x2a" + bytes((len(inner),)) + inner
    message = b"\x0a\x06digits\x2a" + bytes((len(tensor),)) + tensor
    assert grpc.decode_infer(message).inputs[0].data.tolist() == [1, 2, 3]


def test_an_empty_message_and_one_without_inputs() -> None:
    assert grpc.decode_infer(b"") == InferRequest("")
    assert grpc.decode_infer(b"\x0a\x01m\x1a\x01i") == InferRequest("m", id="i")


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (raw_request("FP32", [2, 3], bytes(20)), "20 bytes.*takes 24"),
        (raw_request("FP32", [2**40, 2**40], bytes(20)), "more elements"),
        (raw_request("FP32", [2**40], bytes(20)), "20 bytes.*takes"),
        (raw_request("FP32", [0, 2**62], b""), "more elements"),
        (raw_request("FP32", [-1, 5], bytes(20)), r"\[-1, 5\].*0 or more"),
        (raw_request("FP32", [1] * 33, bytes(4)), "33 dimensions"),
        (raw_request("FP33", [5], bytes(20)), "'FP33'.*FP32"),
        (raw_request("", [5], bytes(20)), "datatype ''"),
        (raw_request("fp32", [5], bytes(20)), "'fp32'"),
        (raw_request("FP32", [5], bytes(20), bytes(20)), "2 raw_input_contents for 1 inputs"),
        (raw_request("BOOL", [2], b"\x00\x02"), "byte of 2"),
        (raw_request("BYTES", [2], b"\1\0\0\0a\1\0\0\0"), "element 1.*end at byte 10 of 9"),
        (raw_request("BYTES", [2], b"\1\0\0\0a"), "too few"),
        (raw_request("BYTES", [2], b"\4\0\0\0abcd\0\0"), "element 1"),
        (raw_request("BYTES", [1], b"\1\0\0\0ab"), "1 bytes of data after"),
        (raw_request("BYTES", [1], b"\xff\xff\xff\xffab"), "element 0"),
        (raw_request("BYTES", [2**30], b"\xff\xff\xff\xffab"), "too few"),
        (typed_request("UINT8", [1], [300], "uint_contents"), "300.*UINT8.*0 to 255"),
        (typed_request("INT8", [2], [5, -129], "int_contents"), "-129.*INT8"),
        (typed_request("UINT16", [1], [2**32 - 1], "uint_contents"), "4294967295"),
        (typed_request("FP32", [2], [1.0], "fp32_contents"), "1 elements.*takes 2"),
        (typed_request("FP32", [2], [], "fp32_contents"), "0 elements.*takes 2"),
        (typed_request("FP32", [2**50], [1.0], "fp32_contents"), "1 elements"),
        (typed_request("FP32", [1], [1], "int_contents"), "int_contents.*put.*fp32_contents"),
        (typed_request("FP16", [1], [1.0], "fp32_contents"), "FP16.*raw_input_contents"),
        (typed_request("BF16", [1], [1.0], "fp32_contents"), "BF16.*raw_input_contents"),
        (b"\x0a\x02\xff\xff", "not a valid inference.ModelInferRequest"),
        (b"\x0a\x01m\x1a\x02\xff\xff" + raw_request("FP32", [1], bytes(4)), "not a valid"),
        (raw_request("FP32", [1], bytes(4))[:-1], "not a valid"),
        (b"garbage", "not a valid"),
    ],
)
def test_what_does_not_agree_is_refused(message: bytes, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        grpc.decode_infer(message)


def test_raw_and_typed_together_are_refused() -> None:
    request = service_pb2.ModelInferRequest(model_name="digits")
    tensor = request.inputs.add(name="x", datatype="FP32", shape=[1])
    tensor.contents.fp32_contents.append(1.0)
    request.raw_input_contents.append(bytes(4))
    message = request.SerializeToString()
    for candidate in (message, message + b"\x1a\x01i"):
        with pytest.raises(InvalidInput, match="one way or every input the other"):
            grpc.decode_infer(candidate)


def test_two_inputs_or_outputs_of_one_name_are_refused() -> None:
    request = service_pb2.ModelInferRequest()
    for _ in range(2):
        request.inputs.add(name="x", datatype="FP32", shape=[0])
    with pytest.raises(InvalidInput, match="'x' comes twice"):
        grpc.decode_infer(request.SerializeToString())
    request = service_pb2.ModelInferRequest()
    for _ in range(2):
        request.outputs.add(name="y")
    with pytest.raises(InvalidInput, match="'y' is requested twice"):
        grpc.decode_infer(request.SerializeToString())


def test_a_parameter_without_a_value_is_refused() -> None:
    request = service_pb2.ModelInferRequest()
    request.parameters["p"].SetInParent()
    with pytest.raises(InvalidInput, match="'p' has no value"):
        grpc.decode_infer(request.SerializeToString())


def test_shared_memory_and_classification_are_unsupported() -> None:
    request = triton_request([InferInput("x", [1], "FP32").set_shared_memory("r", 4)])
    with pytest.raises(Unsupported, match="shared memory"):
        grpc.decode_infer(request.SerializeToString())
    outputs = [InferRequestedOutput("y", class_count=3)]
    with pytest.raises(Unsupported, match="classification"):
        grpc.decode_infer(triton_request([], outputs=outputs).SerializeToString())


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, None, [1], "\ud800"])
def test_a_parameter_that_the_protocol_cannot_hold_is_the_models_fault(value: Any) -> None:
    with pytest.raises(InferenceFailed, match="'p'"):
        grpc.encode_infer(InferResponse("m", "1", parameters={"p": value}))


def test_the_small_messages() -> None:
    message = service_pb2.ModelReadyRequest(name="m", version="2").SerializeToString()
    assert metadata.decode_model(message) == ("m", "2")
    assert metadata.decode_model(memoryview(b"")) == ("", "")
    with pytest.raises(InvalidInput):
        metadata.decode_model(b"\x0a\x05m")
    for flag in (True, False):
        assert (
            service_pb2.ServerLiveResponse.FromString(metadata.encode_server_live(flag)).live
            is flag
        )
        ready = service_pb2.ServerReadyResponse.FromString(metadata.encode_server_ready(flag))
        assert ready.ready is flag
        assert (
            service_pb2.ModelReadyResponse.FromString(metadata.encode_model_ready(flag)).ready
            is flag
        )
    server = metadata.encode_server_metadata("tidegate", "1.0", ["binary_tensor_data"])
    assert service_pb2.ServerMetadataResponse.FromString(
        server
    ) == service_pb2.ServerMetadataResponse(
        name="tidegate", version="1.0", extensions=["binary_tensor_data"]
    )


def test_model_metadata() -> None:
    signature = Signature(
        (TensorSpec("x", DType.FP32, ("batch", None, 3)),), (TensorSpec("y", DType.BYTES, None),)
    )
    encoded = metadata.encode_model_metadata(ModelMetadata("m", ("1", "2"), "onnx", signature))
    kind = service_pb2.ModelMetadataResponse
    assert kind.FromString(encoded) == kind(
        name="m",
        versions=["1", "2"],
        platform="onnx",
        inputs=[kind.TensorMetadata(name="x", datatype="FP32", shape=[-1, -1, 3])],
        outputs=[kind.TensorMetadata(name="y", datatype="BYTES", shape=[])],
    )


def refused_or_decoded(message: bytes) -> InferRequest | None:
    try:
        return grpc.decode_infer(message)
    except (InvalidInput, Unsupported):
        return None


@given(st.binary(max_size=300))
def test_arbitrary_bytes_raise_nothing_but_invalid_input(message: bytes) -> None:
    refused_or_decoded(message)


@st.composite
def mutated(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """Return a message that a client would send, and what became of it."""
    dtype = draw(ALL)
    array = draw(arrays(dtype))
    request = triton_request(
        [triton_input("x", dtype, array)],
        request_id=draw(st.sampled_from(["", "id", "x" * 200])),
        outputs=draw(st.sampled_from([None, [InferRequestedOutput("y")]])),
        parameters=draw(st.sampled_from([None, {"a": 1, "b": "x"}])),
    )
    if dtype.value in FIELDS and draw(st.booleans()):
        del request.raw_input_contents[:]
        contents = getattr(request.inputs[0].contents, FIELDS[dtype.value])
        contents.extend(array.reshape(-1).tolist())
    original = bytes(request.SerializeToString())
    message = bytearray(original)
    for _ in range(draw(st.integers(1, 4))):
        if not message:
            break
        at = draw(st.integers(0, len(message) - 1))
        match draw(st.sampled_from(["flip", "drop", "insert", "cut"])):
            case "flip":
                message[at] = draw(st.integers(0, 255))
            case "drop":
                del message[at]
            case "insert":
                message.insert(at, draw(st.integers(0, 255)))
            case _:
                del message[at:]
    return original, bytes(message)


@given(mutated())
def test_mutated_messages_are_refused_or_mean_what_protobuf_says(
    messages: tuple[bytes, bytes],
) -> None:
    original, message = messages
    grpc.decode_infer(original)  # what is remembered of it must not pass for what this one says
    request = refused_or_decoded(message)
    try:
        by_protobuf: InferRequest | None = grpc._decode_any(message)
    except RequestError:
        by_protobuf = None
    assert (request is None) == (by_protobuf is None)
    if request is None or by_protobuf is None:
        return
    assert (request.model, request.version, request.id) == (
        by_protobuf.model,
        by_protobuf.version,
        by_protobuf.id,
    )
    assert request.outputs == by_protobuf.outputs
    assert str(request.parameters) == str(by_protobuf.parameters)
    for left, right in zip(request.inputs, by_protobuf.inputs, strict=True):
        assert left.name == right.name
        assert same(left.data, right.data)


@pytest.mark.parametrize("raw", [b"1234", b""], ids=["raw", "typed"])
def test_names_have_a_bound(raw: bytes) -> None:
    for inputs, outputs, words in ((1025, 1, "an input"), (1, 1025, "an output")):
        request = service_pb2.ModelInferRequest(model_name="m")
        tensor = request.inputs.add(name="n" * inputs, datatype="FP32", shape=[1])
        request.outputs.add(name="n" * outputs)
        if raw:
            request.raw_input_contents.append(raw)
        else:
            tensor.contents.fp32_contents.append(1)
        with pytest.raises(InvalidInput, match=f"the name of {words} has 1025") as caught:
            grpc.decode_infer(request.SerializeToString())
        assert len(str(caught.value)) < 300
