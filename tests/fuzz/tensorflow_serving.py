"""TensorFlow Serving's protocol for the fuzzer: good messages, and what reads them."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import numpy as np

from tests.protocols.tensors import same
from tidegate.errors import InvalidInput
from tidegate.protocols.dialect import ModelView, RestCall
from tidegate.protocols.tensorflow_serving import calls, grpc, messages, rest, status
from tidegate.protocols.tensorflow_serving.dtypes import FIELDS, NUMBERS
from tidegate.protocols.tensorflow_serving.tensors import write_tensor
from tidegate.types import DType, ModelMetadata, Signature, Tensor, TensorSpec

_LIMIT = 2**16
_SIGNATURE = Signature(
    (TensorSpec("x", DType.FP32, ("batch", "n")), TensorSpec("t", DType.BYTES, None)),
    (TensorSpec("y", DType.FP32, ("batch", 2)),),
)
_ONE = Signature((TensorSpec("x", DType.FP32, ("batch", None)),), _SIGNATURE.outputs)
_SIGNATURES = {"serving_default": _SIGNATURE, "one": _ONE}
_VIEW = ModelView(
    ModelMetadata("m", ("2",), "p", _SIGNATURE, _SIGNATURES), "2", labels={"a": "2"}, limit=_LIMIT
)
_METHODS = (
    lambda data: _read_predict(data),
    lambda data: calls.read_classify(data, _VIEW),
    lambda data: calls.read_regress(data, _VIEW),
    lambda data: calls.read_metadata(data, _VIEW),
    status.decode_status,
    status.decode_reload,
)
_PATHS = (":predict", "/labels/a:predict", "/versions/2:classify", ":regress", "/metadata")


@cache
def good_messages() -> tuple[bytes, ...]:
    """One byte: which method; then its message."""
    found = []
    for dtype in DType:
        data = np.array([[b"a", b""]], object) if dtype is DType.BYTES else np.ones((1, 2))
        tensor = Tensor("x", dtype, data.astype(dtype.numpy))
        head, values = write_tensor(tensor)
        request = messages.PredictRequest()
        request.model_spec.name = "m"
        request.inputs["x"].ParseFromString(head + bytes(values))
        request.output_filter.append("y")
        found.append(b"\0" + request.SerializeToString())
    proto = request.inputs["x"]
    proto.Clear()
    proto.dtype, proto.tensor_content = NUMBERS[DType.FP64], bytes(16)
    proto.tensor_shape.dim.add(size=2)
    request.model_spec.version_label = "a"
    found.append(b"\0" + request.SerializeToString())
    assert FIELDS[DType.FP64].name == "double_val"
    for number, kind in ((1, messages.ClassificationRequest), (2, messages.RegressionRequest)):
        found.append(bytes((number,)) + _examples(kind))
    asked = messages.GetModelMetadataRequest(metadata_field=["signature_def"])
    asked.model_spec.name = "m"
    asked.model_spec.version.value = 2
    found.append(b"\3" + asked.SerializeToString())
    reload = messages.ReloadConfigRequest(metric_names=["a"])
    config = reload.config.model_config_list.config.add(name="m", base_path="/m")
    config.model_version_policy.specific.versions.append(2)
    config.version_labels["a"] = 2
    wanted = messages.GetModelStatusRequest()
    wanted.model_spec.name = "m"
    return (*found, b"\4" + wanted.SerializeToString(), b"\5" + reload.SerializeToString())


def _examples(kind: Any) -> bytes:
    request = kind()
    request.model_spec.name, request.model_spec.signature_name = "m", "one"
    listed = request.input.example_list_with_context
    listed.context.features.feature["t"].bytes_list.value.append(b"a")
    for _ in range(2):
        features = listed.examples.add().features
        features.feature["x"].float_list.value.extend((1, 2))
        features.feature["i"].int64_list.value.append(3)
    return bytes(request.SerializeToString())


def read_message(data: bytes) -> None:
    _METHODS[(data or b"\0")[0] % len(_METHODS)](data[1:])


def _read_predict(data: bytes) -> None:
    """What is read quickly is what protobuf's parser reads."""
    try:
        spec, tensors, outputs = grpc._parse(data, _LIMIT)
    except InvalidInput:
        grpc.decode_predict(data, _LIMIT, _VIEW.labels)
        raise AssertionError("protobuf's parser found a fault") from None
    if len(set(outputs)) != len(outputs):
        grpc.decode_predict(data, _LIMIT, _VIEW.labels)
        raise AssertionError("an output is there twice")
    request = grpc.decode_predict(data, _LIMIT, {spec.label: "2"} if spec.label else {})
    assert (request.model, request.signature) == (spec.model, spec.signature)
    assert request.version == ("2" if spec.label else spec.version)
    assert [output.name for output in request.outputs] == outputs
    expected = {tensor.name: tensor for tensor in tensors}
    assert expected.keys() == {tensor.name for tensor in request.inputs}
    for tensor in request.inputs:
        other = expected[tensor.name]
        assert tensor.dtype is other.dtype
        assert same(tensor.data, other.data)


@cache
def good_bodies() -> tuple[bytes, ...]:
    """One byte: which path; then the body."""
    long = [[0.125] * 30] * 40
    predicts = (
        {"signature_name": "one", "instances": [[1, 2.5], [3e2, -1]]},
        {"signature_name": "one", "inputs": long},
        {"signature_name": "one", "instances": [{"x": row * 30} for row in long[:2]]},
        {"instances": [{"x": [1], "t": "a"}, {"x": [2], "t": {"b64": "YQ=="}}]},
        {"inputs": {"x": [[1]], "t": ['a\\"', "é"]}},
    )
    examples = {"signature_name": "one", "context": {"t": ["a", {"b64": "YQ=="}]},
                "examples": [{"x": [1.5, 2]}, {"x": [1, True]}]}  # fmt: skip
    found = [bytes((n,)) + json.dumps(d).encode() for n in (0, 1) for d in predicts]
    found += [bytes((n,)) + json.dumps(examples).encode() for n in (2, 3)]
    return (*found, b'\0{"signature_name":"one","instances":[[NaN,-Infinity]]}', b"\4")


def read_body(data: bytes) -> None:
    path = _PATHS[(data or b"\0")[0] % len(_PATHS)]
    method = "GET" if path == "/metadata" else "POST"
    rest.read_call(RestCall(method, f"/v1/models/m{path}", "", {}, data[1:]), _VIEW)
