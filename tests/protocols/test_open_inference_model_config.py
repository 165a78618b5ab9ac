from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tidegate.errors import InvalidInput
from tidegate.protocols.open_inference.model_config import (
    ModelConfiguration,
    encode_model_config,
    encode_model_config_body,
)
from tidegate.protocols.open_inference.schedule_policy import schedule
from tidegate.types import DType, ModelMetadata, Parameter, Signature, TensorSpec

SIGNATURE = Signature(
    (TensorSpec("x", DType.FP32, ("batch", 3, None)), TensorSpec("text", DType.BYTES, ("batch",))),
    (TensorSpec("y", DType.BF16, ("batch", 2)),),
)
BATCHED = ModelConfiguration(
    metadata=ModelMetadata("m", ("1", "2"), "onnxruntime_onnx", SIGNATURE),
    backend="onnx",
    device="cuda:1",
    replicas=3,
    max_batch_size=32,
    max_queue_delay=0.002,
    max_queue_size=64,
    timeout=1.5,
    versions=(1, 2),
)


def test_a_batched_model() -> None:
    found = json.loads(encode_model_config_body(BATCHED))
    assert found["input"] == [
        {"name": "x", "data_type": "TYPE_FP32", "dims": [3, -1]},
        {"name": "text", "data_type": "TYPE_STRING", "dims": []},
    ]
    assert found["output"] == [{"name": "y", "data_type": "TYPE_BF16", "dims": [2]}]
    assert found["max_batch_size"] == 32
    assert found["version_policy"] == {"specific": {"versions": [1, 2]}}
    assert found["instance_group"] == [
        {"name": "m_0", "kind": "KIND_GPU", "count": 3, "gpus": [1]},
    ]
    batching = found["dynamic_batching"]
    assert batching["max_queue_delay_microseconds"] == 2000
    assert batching["default_queue_policy"]["default_timeout_microseconds"] == 1_500_000


def test_a_model_whose_requests_run_alone() -> None:
    alone = replace(BATCHED, max_batch_size=0, versions=None, device="cpu")
    found = json.loads(encode_model_config_body(alone))
    assert found["input"][0]["dims"] == [-1, 3, -1]
    assert "dynamic_batching" not in found
    assert found["version_policy"] == {"all": {}}
    assert found["instance_group"][0]["kind"] == "KIND_CPU"


@pytest.mark.parametrize("versions", [2, (1, 2), None])
def test_the_message_says_what_the_json_says(versions: int | tuple[int, ...] | None) -> None:
    from google.protobuf import json_format
    from tritonclient.grpc import service_pb2

    configuration = replace(BATCHED, versions=versions)
    theirs = service_pb2.ModelConfigResponse.FromString(encode_model_config(configuration))
    expected = service_pb2.ModelConfigResponse()
    json_format.Parse(b'{"config": %s}' % encode_model_config_body(configuration), expected)
    assert theirs == expected


@pytest.mark.parametrize(
    ("parameters", "scheduled"),
    [
        ({}, (5, None)),
        ({"priority": 0, "timeout": 0}, (5, None)),
        ({"priority": 1, "timeout": 250_000}, (1, 0.25)),
        ({"priority": 2**64 - 1, "other": "x"}, (10, None)),
    ],
)
def test_schedules(parameters: dict[str, Parameter], scheduled: tuple[int, float | None]) -> None:
    assert schedule(parameters) == scheduled


@pytest.mark.parametrize("value", [-1, True, 1.0, "1", 2**64])
@pytest.mark.parametrize("key", ["priority", "timeout"])
def test_what_is_no_schedule(key: str, value: Parameter) -> None:
    with pytest.raises(InvalidInput, match=f"the parameter {key} is"):
        schedule({key: value})
