"""The Open Inference Protocol v2 over gRPC, seen by who calls: requests out, answers in.

Source: ``inference_grpc.md`` of https://github.com/kserve/open-inference-protocol. The data of
the tensors goes last and raw, the way that servers read fastest.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from tidegate.errors import InvalidInput
from tidegate.protocols.open_inference import messages
from tidegate.protocols.open_inference.answers import (
    invalid_answer,
    read_message,
    reading_output,
    tensor_spec,
)
from tidegate.protocols.open_inference.tensors import (
    checked_shape,
    dtype_of,
    from_raw,
    shown,
    to_raw,
)
from tidegate.protocols.open_inference.typed_contents import typed_data, write_parameter
from tidegate.protocols.varints import write_length
from tidegate.types import (
    NO_PARAMETERS,
    InferRequest,
    InferResponse,
    ModelMetadata,
    Parameter,
    ServerMetadata,
    Signature,
    Tensor,
    TensorSpec,
)


def encode_infer(request: InferRequest) -> bytes:
    """Return ``request`` as a ``ModelInferRequest`` with ``raw_input_contents``.

    Raises:
        InvalidInput: a parameter is no value that the protocol can hold, or the message would
            be beyond the 2 GiB that protobuf allows.
    """
    parts: list[bytes | memoryview] = [_model_head(request.model, request.version)]
    if request.id:
        identity = request.id.encode()
        parts += (b"\x1a", write_length(len(identity)), identity)
    if request.parameters:
        parts.append(_parameters("the request", request.parameters))
    parts += [_input_head(t.name, t.dtype.value, t.shape) for t in request.inputs]
    for output in request.outputs:
        parts.append(_output_head(output.name))
    for tensor in request.inputs:
        raw = to_raw(tensor)
        parts += (b"\x3a", write_length(len(raw)), raw)
    size = sum(map(len, parts))
    if size >= 2**31:
        raise InvalidInput(
            f"the request has {size} bytes, but a gRPC message holds less than 2 GiB; "
            "send it in parts, or over http://"
        )
    return b"".join(parts)


def decode_infer(message: bytes) -> InferResponse:
    """Return the answer in a ``ModelInferResponse``; arrays lie over its bytes, read-only.

    Raises:
        InvalidAnswer: the message is malformed, or its shapes, types and data do not agree.
    """
    response = read_message(messages.ModelInferResponse, message)
    raws = response.raw_output_contents
    if raws and len(raws) != len(response.outputs):
        raise invalid_answer(
            f"it has {len(raws)} raw_output_contents for {len(response.outputs)} outputs"
        )
    outputs = []
    for index, found in enumerate(response.outputs):
        name = found.name
        with reading_output(name):
            dtype = dtype_of(name, found.datatype)
            shape = checked_shape(name, found.shape[:])
            if raws:
                tensor = from_raw(name, dtype, shape, raws[index])
            else:
                tensor = Tensor(name, dtype, typed_data(name, dtype, shape, found.contents))
        outputs.append(tensor)
    return InferResponse(
        response.model_name,
        response.model_version,
        response.id,
        outputs,
        _decoded_parameters(response.parameters),
    )


def encode_model(name: str, version: str) -> bytes:
    """Return a ``ModelReadyRequest`` or a ``ModelMetadataRequest``."""
    return _model_head(name, version)


def decode_ready(message: bytes) -> bool:
    """Return what a ``ServerLiveResponse``, a ``ServerReadyResponse`` or a ``ModelReady`` says.

    Raises:
        InvalidAnswer: the message is malformed.
    """
    return bool(read_message(messages.ModelReadyResponse, message).ready)


def decode_model_metadata(message: bytes) -> ModelMetadata:
    """Return what a ``ModelMetadataResponse`` says.

    Raises:
        InvalidAnswer: the message is malformed.
    """
    found = read_message(messages.ModelMetadataResponse, message)

    def specs(tensors: Sequence[Any]) -> tuple[TensorSpec, ...]:
        return tuple(tensor_spec(t.name, t.datatype, t.shape[:]) for t in tensors)

    signature = Signature(specs(found.inputs), specs(found.outputs))
    return ModelMetadata(found.name, tuple(found.versions), found.platform, signature)


def decode_server_metadata(message: bytes) -> ServerMetadata:
    """Return what a ``ServerMetadataResponse`` says.

    Raises:
        InvalidAnswer: the message is malformed.
    """
    found = read_message(messages.ServerMetadataResponse, message)
    return ServerMetadata(found.name, found.version, tuple(found.extensions))


def _decoded_parameters(entries: Any) -> Mapping[str, Parameter]:
    if not entries:
        return NO_PARAMETERS
    chosen = {key: value.WhichOneof("parameter_choice") for key, value in entries.items()}
    return MappingProxyType(
        {key: getattr(entries[key], choice) for key, choice in chosen.items() if choice}
    )


def _parameters(where: str, parameters: Mapping[str, Parameter]) -> bytes:
    message = messages.ModelInferRequest()
    for key, value in parameters.items():
        try:
            write_parameter(message.parameters[key], value)
        except (TypeError, ValueError) as error:
            raise InvalidInput(
                f"the parameter {shown(key)} of {where} is {shown(value)}; "
                "give a bool, a 64-bit integer, a float or text"
            ) from error
    return bytes(message.SerializeToString())


@functools.lru_cache(maxsize=256)
def _model_head(model: str, version: str) -> bytes:
    return bytes(messages.ModelReadyRequest(name=model, version=version).SerializeToString())


@functools.lru_cache(maxsize=1024)
def _input_head(name: str, datatype: str, shape: tuple[int, ...]) -> bytes:
    message = messages.ModelInferRequest()
    message.inputs.add(name=name, datatype=datatype, shape=shape)
    return bytes(message.SerializeToString())


@functools.lru_cache(maxsize=256)
def _output_head(name: str) -> bytes:
    message = messages.ModelInferRequest()
    message.outputs.add(name=name)
    return bytes(message.SerializeToString())
