from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from tidegate.errors import InvalidInput, Unsupported
from tidegate.protocols.open_inference import grpc, messages, rest, shared_memory
from tidegate.protocols.open_inference.places import Place
from tidegate.protocols.open_inference.shared_memory import Region
from tidegate.types import InferResponse, Parameter, Tensor

X = np.arange(4, dtype=np.float32).reshape(1, 4)
IN_MEMORY: dict[str, Parameter] = {
    "shared_memory_region": "r",
    "shared_memory_offset": 8,
    "shared_memory_byte_size": 16,
}


class Memory:
    """A reader that notes what was read."""

    def __init__(self) -> None:
        self.places: list[Place] = []

    def read(self, place: Place) -> bytes:
        self.places.append(place)
        return X.tobytes()


def as_message(
    parameters: dict[str, Any],
    *,
    raw: bytes | None = None,
    output: dict[str, Any] | None = None,
) -> bytes:
    message = messages.ModelInferRequest(model_name="m")
    fill(message.inputs.add(name="x", datatype="FP32", shape=(1, 4)), parameters)
    if output is not None:
        fill(message.outputs.add(name="y"), output)
    if raw is not None:
        message.inputs.add(name="b", datatype="FP32", shape=(1, 4))
        message.raw_input_contents.append(raw)
    return bytes(message.SerializeToString())


def fill(target: Any, parameters: dict[str, Any]) -> None:
    for key, value in parameters.items():
        kind = "string_param" if isinstance(value, str) else "int64_param"
        setattr(target.parameters[key], kind, value)


def as_body(parameters: dict[str, Any], **more: Any) -> bytes:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "parameters": parameters}
    return json.dumps({"inputs": [{**tensor, **more}]}).encode()


def test_inputs_are_read_where_they_lie() -> None:
    memory = Memory()
    for request in (
        grpc.decode_infer(as_message(IN_MEMORY), memory),
        rest.decode_infer("m", "", as_body(IN_MEMORY), reader=memory),
    ):
        assert np.array_equal(request.inputs[0].data, X)
    assert memory.places == [Place("r", 8, 16)] * 2


def test_others_are_in_the_message() -> None:
    request = grpc.decode_infer(as_message(IN_MEMORY, raw=(X + 1).tobytes()), Memory())
    assert [t.name for t in request.inputs] == ["x", "b"]
    assert np.array_equal(request.inputs[1].data, X + 1)
    # What was remembered of the message's head must not depend on who asks.
    with pytest.raises(Unsupported, match="input 'x' asks for shared memory"):
        grpc.decode_infer(as_message(IN_MEMORY, raw=(X + 1).tobytes()))


def test_without_a_reader_there_is_no_shared_memory() -> None:
    with pytest.raises(Unsupported, match="input 'x' asks for shared memory"):
        grpc.decode_infer(as_message(IN_MEMORY))
    with pytest.raises(Unsupported, match="input 'x' asks for shared memory"):
        rest.decode_infer("m", "", as_body(IN_MEMORY))
    with pytest.raises(Unsupported, match="output 'y' asks for shared memory"):
        grpc.decode_infer(as_message({}, output=IN_MEMORY))
    wanted = {"inputs": [], "outputs": [{"name": "y", "parameters": IN_MEMORY}]}
    with pytest.raises(Unsupported, match="output 'y' asks for shared memory"):
        rest.decode_infer("m", "", json.dumps(wanted).encode())


@pytest.mark.parametrize(
    "change",
    [
        {"shared_memory_offset": -1},
        {"shared_memory_offset": "0"},
        {"shared_memory_byte_size": 2**63 - 1, "shared_memory_offset": -(2**62)},
        {"shared_memory_region": 5},
    ],
)
def test_places_that_cannot_be(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="shared_memory_"):
        grpc.decode_infer(as_message({**IN_MEMORY, **change}), Memory())
    with pytest.raises(InvalidInput, match="shared_memory_"):
        rest.decode_infer("m", "", as_body({**IN_MEMORY, **change}), reader=Memory())


def test_data_comes_once() -> None:
    with pytest.raises(InvalidInput, match="send one"):
        rest.decode_infer("m", "", as_body(IN_MEMORY, data=[1, 2, 3, 4]), reader=Memory())
    message = messages.ModelInferRequest.FromString(as_message(IN_MEMORY))
    message.inputs[0].contents.fp32_contents.extend([1, 2, 3, 4])
    with pytest.raises(InvalidInput, match="send one"):
        grpc.decode_infer(message.SerializeToString(), Memory())


def test_what_lies_there_must_fit() -> None:
    short = {**IN_MEMORY, "shared_memory_byte_size": 12}

    class Short(Memory):
        def read(self, place: Place) -> bytes:
            return bytes(place.byte_size)

    with pytest.raises(InvalidInput, match="has 12 bytes of data"):
        grpc.decode_infer(as_message(short), Short())


def test_outputs_that_were_placed_have_no_data() -> None:
    response = InferResponse("m", "1", "id", (Tensor.of("y", X), Tensor.of("z", X + 1)))
    placed = {"y": IN_MEMORY}
    message = messages.ModelInferResponse.FromString(grpc.encode_infer_placed(response, placed))
    assert list(message.raw_output_contents) == [b"", (X + 1).tobytes()]
    assert message.outputs[0].parameters["shared_memory_byte_size"].int64_param == 16
    assert not message.outputs[1].parameters
    request = rest.decode_infer("m", "", b'{"inputs": []}')
    (body,), length = rest.encode_infer(response, request, placed)
    outputs = json.loads(bytes(body))["outputs"]
    assert length is None
    assert outputs[0]["parameters"] == IN_MEMORY
    assert "data" not in outputs[0]
    assert outputs[1]["data"] == [[1, 2, 3, 4]] or outputs[1]["data"] == [1, 2, 3, 4]


def test_regions_in_both_forms() -> None:
    from tritonclient.grpc import service_pb2

    region = Region("r", "k", 4, 8)
    asked = service_pb2.SystemSharedMemoryRegisterRequest(
        name="r", key="/k", offset=4, byte_size=8
    )
    assert shared_memory.decode_register(asked.SerializeToString()) == region
    body = b'{"key": "k", "offset": 4, "byte_size": 8}'
    assert shared_memory.decode_register_body("r", body) == region
    status = service_pb2.SystemSharedMemoryStatusResponse.FromString(
        shared_memory.encode_status([region])
    )
    assert status.regions["r"].byte_size == 8
    assert json.loads(shared_memory.encode_status_body([region])) == [
        {"name": "r", "key": "k", "offset": 4, "byte_size": 8}
    ]
