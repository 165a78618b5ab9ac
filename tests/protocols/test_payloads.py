"""Answers that are no tensors, in protocols of tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pytest

from tidegate.errors import InferenceFailed
from tidegate.protocols.open_inference import grpc, messages, rest
from tidegate.protocols.payloads import as_tensors
from tidegate.types import DType, InferRequest, InferResponse, Tensor


@pytest.mark.parametrize(
    ("payload", "sent"),
    [
        (b"\xff\x00", b"\xff\x00"),
        ("grün", "grün".encode()),
        ({"label": "cat", "scores": [0.5, 1]}, b'{"label":"cat","scores":[0.5,1]}'),
        (["a"], b'["a"]'),
        ("", b""),
    ],
)
def test_a_payload_is_one_bytes_tensor_of_one_element(payload: Any, sent: bytes) -> None:
    response = InferResponse("m", "1", payload=payload)
    (tensor,) = as_tensors(response)
    assert (tensor.name, tensor.dtype, tensor.shape) == ("payload", DType.BYTES, (1,))
    assert tensor.data[0] == sent
    message = messages.ModelInferResponse.FromString(grpc.encode_infer(response))
    assert [(o.name, o.datatype, list(o.shape)) for o in message.outputs] == [
        ("payload", "BYTES", [1])
    ]
    assert message.raw_output_contents[0] == len(sent).to_bytes(4, "little") + sent


def test_json_in_rest_is_a_text() -> None:
    parts, _ = rest.encode_infer(InferResponse("m", "1", payload={"a": 1}), InferRequest("m"))
    (output,) = orjson.loads(b"".join(parts))["outputs"]
    assert output == {"name": "payload", "datatype": "BYTES", "shape": [1], "data": ['{"a":1}']}


def test_tensors_go_before_the_payload() -> None:
    tensor = Tensor("y", DType.FP32, np.ones(2, np.float32))
    assert as_tensors(InferResponse("m", "1", outputs=[tensor], payload="text")) == [tensor]


@pytest.mark.parametrize("payload", [{"a": {1}}, "\ud800", {"a": "\ud800"}, [2**70]])
def test_what_is_no_json_is_the_models_fault(payload: Any) -> None:
    with pytest.raises(InferenceFailed, match="no JSON"):
        as_tensors(InferResponse("m", "1", payload=payload))
