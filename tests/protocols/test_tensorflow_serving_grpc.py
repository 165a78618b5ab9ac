"""Predict of TensorFlow Serving over gRPC, against protobuf's own classes and numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.protocols.tensors import arrays, same
from tidegate.errors import InvalidInput, TidegateError
from tidegate.protocols.tensorflow_serving import grpc, messages
from tidegate.protocols.tensorflow_serving.dtypes import FIELDS, NUMBERS
from tidegate.protocols.varints import write_length
from tidegate.types import Array, DType, InferResponse, Tensor

LIMIT = 2**20
NUMERIC = [dtype for dtype in DType if dtype is not DType.BYTES]
COUNT = 2**20 + 1
ANY = st.sampled_from(DType).flatmap(arrays)


def of(array: Array, name: str = "x") -> Tensor:
    return Tensor(name, DType.of(array.dtype), np.ascontiguousarray(array).reshape(array.shape))


def _field(tag: int, data: bytes) -> bytes:
    return bytes((tag,)) + write_length(len(data)) + data


def request(name: str = "x") -> tuple[Any, Any]:
    """A request for ``m``, and its tensor ``name``."""
    message = messages.PredictRequest()
    message.model_spec.name = "m"
    return message, message.inputs[name]


def describe(proto: Any, dtype: DType, shape: tuple[int, ...]) -> None:
    proto.dtype = NUMBERS[dtype]
    proto.tensor_shape.SetInParent()
    for size in shape:
        proto.tensor_shape.dim.add(size=size)


def values_of(tensor: Tensor) -> list[Any]:
    """The elements as protobuf's classes take them."""
    flat = tensor.data.reshape(-1)
    if tensor.dtype in (DType.FP16, DType.BF16):
        flat = flat.view(np.uint16)
    found: list[Any] = flat.tolist()
    return found


def content_of(tensor: Tensor) -> bytes:
    if tensor.dtype is not DType.BYTES:
        return tensor.data.tobytes()
    elements = tensor.data.reshape(-1).tolist()
    lengths = messages.TensorProto(uint64_val=map(len, elements)).SerializeToString()
    skipped = len(lengths) - sum(max(1, (len(e).bit_length() + 6) // 7) for e in elements)
    return bytes(lengths[skipped:]) + b"".join(elements)


def decode(message: Any) -> Tensor:
    data = message.SerializeToString()
    [tensor] = grpc.decode_predict(data, LIMIT).inputs
    [again] = grpc.decode_predict(memoryview(data), LIMIT).inputs
    assert tensor.dtype is again.dtype
    assert same(tensor.data, again.data)
    return tensor


@given(ANY)
def test_typed_fields(array: Array) -> None:
    tensor = of(array)
    message, proto = request()
    describe(proto, tensor.dtype, array.shape)
    getattr(proto, FIELDS[tensor.dtype].name).extend(values_of(tensor))
    found = decode(message)
    assert found.dtype is tensor.dtype
    assert same(found.data, array)


@given(ANY)
def test_tensor_content(array: Array) -> None:
    tensor = of(array)
    message, proto = request()
    describe(proto, tensor.dtype, array.shape)
    proto.tensor_content = content_of(tensor)
    found = decode(message)
    assert found.dtype is tensor.dtype
    assert same(found.data, array)


@given(st.lists(ANY, max_size=3))
def test_answers(sent: list[Array]) -> None:
    outputs = [of(array, f"y{index}") for index, array in enumerate(sent)]
    parts = grpc.encode_predict(InferResponse("m", "12", "", outputs), "signature")
    answer = messages.PredictResponse.FromString(b"".join(parts))
    assert answer.model_spec.name == "m"
    assert answer.model_spec.version.value == 12
    assert answer.model_spec.signature_name == "signature"
    assert answer.outputs.keys() == {tensor.name for tensor in outputs}
    for tensor in outputs:
        proto = answer.outputs[tensor.name]
        assert proto.dtype == NUMBERS[tensor.dtype]
        assert tuple(d.size for d in proto.tensor_shape.dim) == tensor.data.shape
        fields = {field.name for field, _ in proto.ListFields()}
        assert fields <= {"dtype", "tensor_shape", FIELDS[tensor.dtype].name}
        message, _ = request()
        message.inputs["x"].CopyFrom(proto)
        assert same(decode(message).data, tensor.data)
        expected = messages.TensorProto()
        getattr(expected, FIELDS[tensor.dtype].name).extend(values_of(tensor))
        proto.ClearField("dtype")
        proto.ClearField("tensor_shape")
        assert proto.SerializeToString() == expected.SerializeToString() or has_nan(tensor)


def has_nan(tensor: Tensor) -> bool:
    """Whether there is a NaN, which Python may write with other bits."""
    kind = tensor.dtype.numpy.kind
    return kind == "f" and bool(np.isnan(tensor.data).any())


@pytest.mark.parametrize("dtype", NUMERIC)
def test_the_last_value_stands_for_those_that_are_missing(dtype: DType) -> None:
    for values, expected in (
        ([1], [1, 1, 1, 1]),
        ([0, 1], [0, 1, 1, 1]),
        ([], [0, 0, 0, 0]),
    ):
        message, proto = request()
        describe(proto, dtype, (2, 2))
        bits = np.array(values, dtype.numpy)
        getattr(proto, FIELDS[dtype].name).extend(values_of(Tensor("x", dtype, bits)))
        found = decode(message).data
        assert np.array_equal(found, np.array(expected, dtype.numpy).reshape(2, 2))


def test_strings_are_repeated_as_well() -> None:
    message, proto = request()
    describe(proto, DType.BYTES, (3,))
    assert decode(message).data.tolist() == [b"", b"", b""]
    proto.string_val.append(b"a")
    assert decode(message).data.tolist() == [b"a", b"a", b"a"]


def test_what_few_values_stand_for_is_bounded() -> None:
    for dtype in DType:
        message, proto = request()
        describe(proto, dtype, (2**40,))
        for values in ([], [b"1" if dtype is DType.BYTES else 1]):
            getattr(proto, FIELDS[dtype].name).extend(values)
            with pytest.raises(InvalidInput, match="so few stand for at most 1048576"):
                decode(message)


@pytest.mark.parametrize("dtype", NUMERIC)
def test_unpacked_and_split_fields(dtype: DType) -> None:
    """What no serializer writes, but every parser must take."""
    data = np.array([[1, 0], [1, 1]], dtype.numpy)
    described = messages.TensorProto()
    describe(described, dtype, (2, 2))
    head = described.SerializeToString()
    field = FIELDS[dtype]
    wire = {"float_val": 5, "double_val": 1}.get(field.name, 0)
    split, unpacked = [], []
    for value in values_of(Tensor("x", dtype, data)):
        piece = messages.TensorProto(**{field.name: [value]}).SerializeToString()
        split.append(piece)
        tag = bytes((field.tag[0] & ~7 | wire,)) + field.tag[1:]
        unpacked.append(tag + piece[len(field.tag) + 1 :])
    for pieces in (split, unpacked, [*split[:1], *unpacked[1:]]):
        for body in (head + b"".join(pieces), b"".join(pieces) + head):
            entry = _field(0x0A, b"x") + _field(0x12, body)
            message = _field(0x0A, b"\x0a\x01m") + _field(0x12, entry)
            [tensor] = grpc.decode_predict(message, LIMIT).inputs
            assert np.array_equal(tensor.data, data)


def test_what_is_set_twice() -> None:
    """The last one counts, messages are merged, as protobuf says."""
    one, proto = request()
    describe(proto, DType.FP32, (1,))
    proto.float_val.append(1)
    other, proto = request()
    other.model_spec.ClearField("name")
    other.model_spec.version.value = 3
    describe(proto, DType.FP32, (1,))
    proto.float_val.append(2)
    found = grpc.decode_predict(one.SerializeToString() + other.SerializeToString(), LIMIT)
    assert (found.model, found.version) == ("m", "3")
    assert found.inputs[0].data.tolist() == [2]


def test_unknown_fields_are_skipped() -> None:
    message, proto = request()
    describe(proto, DType.INT32, (1,))
    proto.int_val.append(-5)
    for extra in (b"\x2a\x02\x08\x01", b"\x28\x07", b"\x3a\x03abc", b"\xc3\x3e\xc4\x3e"):
        found = grpc.decode_predict(message.SerializeToString() + extra, LIMIT)
        assert found.inputs[0].data.tolist() == [-5]


def test_the_model_spec() -> None:
    message, _ = request()
    message.ClearField("inputs")
    spec = message.model_spec
    spec.signature_name = "other"
    found = grpc.decode_predict(message.SerializeToString(), LIMIT)
    assert (found.model, found.version, found.signature) == ("m", "", "other")
    spec.version.value = 7
    assert grpc.decode_predict(message.SerializeToString(), LIMIT).version == "7"
    spec.version_label = "stable"
    labels = {"stable": "2"}
    assert grpc.decode_predict(message.SerializeToString(), LIMIT, labels).version == "2"
    with pytest.raises(InvalidInput, match="has the label 'stable': there is none"):
        grpc.decode_predict(message.SerializeToString(), LIMIT)


def test_output_filter() -> None:
    message, _ = request()
    message.ClearField("inputs")
    message.output_filter.extend(["b", "a"])
    found = grpc.decode_predict(message.SerializeToString(), LIMIT)
    assert [output.name for output in found.outputs] == ["b", "a"]
    message.output_filter.append("b")
    with pytest.raises(InvalidInput, match="'b' is requested twice"):
        grpc.decode_predict(message.SerializeToString(), LIMIT)


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 3), st.binary(max_size=3)), max_size=6))
def test_messages_in_a_row_do_not_mix(calls: list[tuple[bool, int, bytes]]) -> None:
    """What is remembered of one message never shows in another."""
    for content, rows, name in calls:
        message, _ = request()
        message.ClearField("inputs")
        proto = message.inputs[name.hex() or "x"]
        data = np.arange(rows * 2, dtype=np.float32).reshape(rows, 2) + len(name)
        describe(proto, DType.FP32, (rows, 2))
        if content:
            proto.tensor_content = data.tobytes()
        else:
            proto.float_val.extend(data.reshape(-1).tolist())
        message.model_spec.signature_name = name.hex()
        found = grpc.decode_predict(message.SerializeToString(), LIMIT)
        assert found.inputs[0].name == (name.hex() or "x")
        assert found.signature == name.hex()
        assert np.array_equal(found.inputs[0].data, data)


def broken(dtype: int, shape: tuple[int, ...] = (2,), **fields: Any) -> bytes:
    message, proto = request()
    proto.dtype = dtype
    for size in shape:
        proto.tensor_shape.dim.add(size=size)
    for name, value in fields.items():
        if isinstance(value, list):
            getattr(proto, name).extend(value)
        else:
            setattr(proto, name, value)
    return bytes(message.SerializeToString())


FP32, INT8, BYTES = 1, 6, 7


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (b"", "no model name"),
        (b"\x0a\x05\x0a\x03../", "cannot be the name of a model"),
        (b"\x0a\x07\x0a\x01m\x12\x02\x08\x00", "is not a version"),
        (b"\x0a\xff", "not a valid tensorflow.serving.PredictRequest"),
        (b"\x0a\x03\x0a\x01\xff", "not a valid tensorflow.serving"),
        (broken(0, float_val=[1.0, 2.0]), "has the dtype DT_INVALID; use one of DT_FLOAT"),
        (broken(8, scomplex_val=[1.0, 2.0]), "has the dtype DT_COMPLEX64"),
        (broken(99), "has the dtype 99"),
        (broken(FP32, (-1,), float_val=[1.0]), "every dimension must be 0 or more"),
        (broken(FP32, (1,) * 33), "33 dimensions"),
        (broken(FP32, (2**62, 2**62), float_val=[1.0]), "more elements than any memory"),
        (broken(FP32, float_val=[1.0, 2.0, 3.0]), "has 3 elements in float_val"),
        (broken(FP32, int_val=[1, 2]), "its elements are in int_val; put them into float_val"),
        (broken(BYTES, float_val=[1.0, 2.0]), "is DT_STRING but its elements are in float_val"),
        (broken(FP32, tensor_content=b"1234567"), "has 7 bytes of data"),
        (broken(INT8, int_val=[1, 128]), "has the value 128, which DT_INT8 cannot hold"),
        (broken(10, tensor_content=b"\x00\x02"), "a byte of 2"),
        (broken(BYTES, tensor_content=b"\x01\x01a"), "are not the 2 strings"),
        (broken(BYTES, tensor_content=b"\xff\xff\xff\xff\xff\xff"), "are not the 2 strings"),
    ],
)
def test_what_is_wrong(message: bytes, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        grpc.decode_predict(message, LIMIT)


def test_long_specs_and_names_are_not_remembered() -> None:
    """What callers make up must not fill the memory."""
    message, proto = request()
    describe(proto, DType.FP32, (1,))
    grpc._spec.cache_clear()
    message.model_spec.signature_name = "s" * 5000
    with pytest.raises(InvalidInput, match="the signature has 5000 characters"):
        decode(message)
    message.model_spec.signature_name = ""
    grpc.decode_predict(message.SerializeToString() + b"\x0a\x03\x0a\x01m", LIMIT)
    long = (
        message.SerializeToString() + b"\x0a" + write_length(5003) + b"\x7a" + write_length(5000)
    )
    found = grpc.decode_predict(long + bytes(5000), LIMIT)
    assert found.model == "m"
    assert grpc._spec.cache_info().currsize <= 1


def test_an_unknown_rank() -> None:
    message, proto = request()
    proto.dtype, proto.tensor_shape.unknown_rank = FP32, True
    with pytest.raises(InvalidInput, match="unknown rank"):
        decode(message)


@given(st.binary(max_size=60))
def test_malformed_numbers(packed: bytes) -> None:
    """Integers that protobuf refuses are refused, all others are what it reads."""
    inner = b"\x08\x09\x12\x04\x12\x02\x08\x01\x52" + bytes((len(packed),)) + packed
    entry = b"\x0a\x01x\x12" + bytes((len(inner),)) + inner
    message = b"\x0a\x03\x0a\x01m\x12" + bytes((len(entry),)) + entry
    try:
        values = list(messages.PredictRequest.FromString(message).inputs["x"].int64_val)
    except Exception:
        values = None
    try:
        found: Array | None = grpc.decode_predict(message, LIMIT).inputs[0].data
    except InvalidInput:
        found = None
    if values is None or len(values) > 1:
        assert found is None
    else:
        assert found is not None
        assert found.tolist() == (values or [0])


@pytest.mark.parametrize(
    "message",
    [
        b"\x12\0" * COUNT,
        b"\x1a\0" * COUNT,
        _field(0x12, b"\x0a\x01x" + _field(0x12, _field(0x12, b"\x12\0" * COUNT))),
        _field(0x12, b"\x0a\x01x" + _field(0x12, b"\x08\x07" + b"\x42\0" * COUNT)),
    ],
)
def test_messages_of_very_many_parts_are_refused_unparsed(message: bytes) -> None:
    with pytest.raises(TidegateError, match="more than 1048576 fields"):
        grpc.decode_predict(b"\x0a\x03\x0a\x01m" + message, LIMIT)
