"""The Open Inference Protocol v2 over gRPC: messages to domain types and back.

Source: ``inference_grpc.md`` of https://github.com/kserve/open-inference-protocol; the
messages are those of ``open_inference.proto`` beside this file.

Clients write the data of the tensors (``raw_input_contents``) after everything else, and
everything else but the id is the same from call to call. So :func:`decode_infer` looks only
at where the fields begin, finds what was understood of the same bytes before, and takes the
data from where it lies. Any message that is laid out otherwise goes through protobuf's own
parser, which has the last word on what is malformed.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np

from tidegate.errors import InferenceFailed, InvalidInput
from tidegate.protocols.descriptors import parsed
from tidegate.protocols.grpc_frames import Buffer
from tidegate.protocols.open_inference import messages
from tidegate.protocols.open_inference.bounds import check_message
from tidegate.protocols.open_inference.places import (
    Placed,
    Reader,
    read_tensor,
)
from tidegate.protocols.open_inference.request_message import (
    InSharedMemory,
    RequestPlan,
    places_in,
    plan_of,
    read_again,
    refuse_mixture,
)
from tidegate.protocols.open_inference.tensors import (
    from_raw,
    shown,
    to_raw,
)
from tidegate.protocols.open_inference.typed_contents import typed_data, write_parameter
from tidegate.protocols.payloads import as_tensors
from tidegate.protocols.varints import read_length, write_length
from tidegate.types import (
    NO_PARAMETERS,
    Array,
    InferRequest,
    InferResponse,
    Parameter,
    Tensor,
)

_ID, _RAW_INPUT = 0x1A, 0x3A
_OTHERS = frozenset((0x0A, 0x12, 0x22, 0x2A, 0x32))
"""Tags of a request's other fields: name, version, parameters, inputs, outputs."""
_LONGEST_PLAN = 4096
"""Bytes of a request's head that are worth remembering; bounds the memory of the cache."""


def decode_infer(message: Buffer, reader: Reader | None = None) -> InferRequest:
    """Return the request in a ``ModelInferRequest``.

    Raw data is not copied: the tensors lie over ``message`` (and need not be aligned). ``reader``
    reads shared memory; ``None`` where there is none.

    Raises:
        InvalidInput: the message is malformed, or its shapes, types and data do not agree.
        Unsupported: it asks for shared memory without a reader, or for a classification.
    """
    check_message(message)
    try:
        return _decode_usual(message) or _decode_any(message, reader)
    except (IndexError, UnicodeDecodeError, InSharedMemory):
        return _decode_any(message, reader)


def encode_infer(response: InferResponse) -> bytes:
    """Return ``response`` as a ``ModelInferResponse`` with ``raw_output_contents``.

    Raises:
        InferenceFailed: a parameter of the response is no value that the protocol can hold.
    """
    return b"".join(encode_infer_parts(response))


def encode_infer_parts(response: InferResponse) -> list[bytes | memoryview]:
    """Return what :func:`encode_infer` joins; large tensors are views over their arrays.

    Raises:
        InferenceFailed: a parameter of the response is no value that the protocol can hold.
    """
    outputs = response.outputs or as_tensors(response)
    if len(outputs) == 1:
        # One look-up for all that repeats; protobuf's fields may come in any order.
        tensor = outputs[0]
        raw = to_raw(tensor)
        # Not `value`, which Enum reads through a descriptor that is written in Python.
        dtype = tensor.dtype._value_
        parts: list[bytes | memoryview] = [
            _head(
                response.model, response.version, tensor.name, dtype, tensor.data.shape, len(raw)
            ),
            raw,
        ]
    else:
        parts = [_model_head(response.model, response.version)]
        parts += [_output_head(t.name, t.dtype._value_, t.data.shape) for t in outputs]
        for tensor in outputs:
            raw = to_raw(tensor)
            parts.append(_raw_output_head(len(raw)))
            parts.append(raw)
    if response.id:
        parts.append(_field(0x1A, response.id.encode()))
    if response.parameters:
        parts.append(_encode_parameters(response.parameters))
    return parts


def encode_infer_placed(response: InferResponse, placed: Mapping[str, Placed]) -> bytes:
    """Return a ``ModelInferResponse`` of which some outputs were ``placed`` in shared memory.

    Each has its parameters, and an empty place among the raw contents: clients count these.
    """
    message = messages.ModelInferResponse(
        model_name=response.model, model_version=response.version, id=response.id
    )
    for tensor in as_tensors(response):
        output = message.outputs.add(
            name=tensor.name, datatype=tensor.dtype._value_, shape=tensor.data.shape
        )
        for key, value in placed.get(tensor.name, NO_PARAMETERS).items():
            if isinstance(value, str):
                output.parameters[key].string_param = value
            else:
                output.parameters[key].int64_param = value
        raw = b"" if tensor.name in placed else bytes(to_raw(tensor))
        message.raw_output_contents.append(raw)
    return bytes(message.SerializeToString())


_last: list[tuple[bytes, bytes, RequestPlan]] = [
    (b"\0", b"", RequestPlan("", "", NO_PARAMETERS, (), ()))
]
"""What the last message said before and after its id, and what that means: the first guess."""


def _decode_usual(message: Buffer) -> InferRequest | None:
    """Decode a message whose raw data comes last; ``None`` when it is laid out otherwise."""
    before, after, plan = _last[0]
    at = len(before)
    if message[:at] == before:
        identity = ""
        if message[at] == _ID and (size := message[at + 1]) <= 0x7F:
            identity = str(message[at + 2 : at + 2 + size], "utf-8")
            at += 2 + size
        end = at + len(after)
        if message[at:end] == after and message[end] == _RAW_INPUT:
            return _with_data(plan, identity, message, end)
    return _decode_fields(message)


def _decode_fields(message: Buffer) -> InferRequest | None:
    """Decode such a message by where its fields begin."""
    position = id_at = id_start = id_end = 0
    while True:
        at = position
        tag = message[at]
        if tag == _RAW_INPUT:
            break
        size = message[at + 1]
        position += 2
        if size > 0x7F:
            size, position = read_length(message, at + 1)
        if tag not in _OTHERS:
            if tag != _ID or id_end:
                return None
            id_at, id_start, id_end = at, position, position + size
        position += size
    if id_end:
        identity = str(message[id_start:id_end], "utf-8")
    else:
        identity, id_at, id_end = "", position, position
    before, after = bytes(message[:id_at]), bytes(message[id_end:position])
    head = before + after
    if len(head) > _LONGEST_PLAN:
        plan = read_again.__wrapped__(head)
    else:
        plan = read_again(head)
        _last[0] = before, after, plan
    return _with_data(plan, identity, message, position)


def _with_data(
    plan: RequestPlan, identity: str, message: Buffer, position: int
) -> InferRequest | None:
    """Return the request when nothing but one raw field for each input follows."""
    model, version, parameters, inputs, outputs, signature = plan
    end = len(message)
    tensors = []
    for name, dtype, shape, numpy, expected in inputs:
        size = message[position + 1]
        start = position + 2
        if size > 0x7F:
            size, start = read_length(message, position + 1)
        if message[position] != _RAW_INPUT or start + size > end:
            return None
        position = start + size
        if size == expected:
            data: Array = np.ndarray(shape, numpy, message, start)
            tensors.append(Tensor(name, dtype, data))
        else:
            tensors.append(from_raw(name, dtype, shape, message[start:position]))
    if position != end:
        return None
    return InferRequest(
        model,
        version,
        identity,
        tuple(tensors),
        outputs,
        parameters,
        None,
        NO_PARAMETERS,
        NO_PARAMETERS,
        signature,
    )


def _decode_any(message: Buffer, reader: Reader | None = None) -> InferRequest:
    """Decode a message however it is laid out, by protobuf's own parser."""
    request = parsed(messages.ModelInferRequest, message)
    plan = plan_of(request, shared=reader is not None)
    places = {} if reader is None else places_in(request)
    # The contents or raw data of those that are in the message.
    sent = [(s, t) for s, t in zip(plan.inputs, request.inputs) if s.name not in places]
    raws = request.raw_input_contents
    if raws:
        for _, tensor in sent:
            if tensor.contents.ByteSize():
                refuse_mixture(tensor.name)
        if len(raws) != len(sent):
            raise InvalidInput(
                f"there are {len(raws)} raw_input_contents for {len(sent)} inputs; "
                "send exactly one for each input, in their order"
            )
        found = {
            spec.name: from_raw(spec.name, spec.dtype, spec.shape, raw)
            for (spec, _), raw in zip(sent, raws)
        }
    else:
        found = {
            spec.name: Tensor(
                spec.name,
                spec.dtype,
                typed_data(spec.name, spec.dtype, spec.shape, tensor.contents),
            )
            for spec, tensor in sent
        }
    tensors = tuple(
        found.get(s.name) or read_tensor(s.name, s.dtype, s.shape, places[s.name], reader)
        for s in plan.inputs
    )
    return InferRequest(
        plan.model,
        plan.version,
        request.id,
        tensors,
        plan.outputs,
        plan.parameters,
        signature=plan.signature,
    )


def _encode_parameters(parameters: Mapping[str, Parameter]) -> bytes:
    message = messages.ModelInferResponse()
    for key, value in parameters.items():
        try:
            write_parameter(message.parameters[key], value)
        except (TypeError, ValueError) as error:
            raise InferenceFailed(
                f"the model answered with the parameter {shown(key)} = {shown(value)}, which is "
                f"no bool, 64-bit integer, float or text: {error}; change what the model returns"
            ) from error
    return bytes(message.SerializeToString())


def _field(tag: int, data: bytes) -> bytes:
    return bytes((tag,)) + write_length(len(data)) + data


@functools.lru_cache(maxsize=1024)
def _head(
    model: str, version: str, name: str, datatype: str, shape: tuple[int, ...], size: int
) -> bytes:
    """Return all of a response of one output that comes before its data."""
    return (
        _model_head(model, version) + _output_head(name, datatype, shape) + _raw_output_head(size)
    )


@functools.lru_cache(maxsize=256)
def _model_head(model: str, version: str) -> bytes:
    message = messages.ModelInferResponse(model_name=model, model_version=version)
    return bytes(message.SerializeToString())


@functools.lru_cache(maxsize=1024)
def _output_head(name: str, datatype: str, shape: tuple[int, ...]) -> bytes:
    message = messages.ModelInferResponse()
    message.outputs.add(name=name, datatype=datatype, shape=shape)
    return bytes(message.SerializeToString())


@functools.lru_cache(maxsize=1024)
def _raw_output_head(size: int) -> bytes:
    return b"\x32" + write_length(size)
