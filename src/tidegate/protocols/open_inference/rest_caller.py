"""The Open Inference Protocol v2 over REST, seen by who calls: bodies out, answers in.

Source: ``inference_rest.md`` of https://github.com/kserve/open-inference-protocol and Triton's
``extension_binary_data.md``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import orjson

from tidegate.errors import InvalidInput
from tidegate.protocols.grpc_frames import Buffer
from tidegate.protocols.open_inference.answers import (
    invalid_answer,
    reading_output,
    tensor_spec,
)
from tidegate.protocols.open_inference.json_data import from_json, refuse_infinite, to_json
from tidegate.protocols.open_inference.rest import HEADER_LENGTH
from tidegate.protocols.open_inference.tensors import (
    checked_shape,
    dtype_of,
    from_raw,
    shown,
    to_raw,
)
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

_LONGEST_ERROR = 4096
"""Characters of what a server says is wrong that go into a message."""


def encode_infer(
    request: InferRequest, *, binary: bool = True
) -> tuple[list[bytes | memoryview], int | None]:
    """Return the parts of the body, and the length of the JSON if binary data follows it.

    Args:
        request: what to send; its tensors may be large, which are views over their arrays.
        binary: send and ask for raw bytes; ``False`` puts every number into the JSON.

    Raises:
        InvalidInput: a parameter or a tensor cannot be put into JSON.
    """
    document: dict[str, Any] = {"id": request.id} if request.id else {}
    parameters = dict(request.parameters)
    if binary:
        parameters["binary_data_output"] = True
    if parameters:
        document["parameters"] = parameters
    parts: list[bytes | memoryview] = [b""]
    inputs: list[dict[str, Any]] = []
    document["inputs"] = inputs
    for tensor in request.inputs:
        described: dict[str, Any] = {
            "name": tensor.name,
            "shape": tensor.shape,
            "datatype": tensor.dtype.value,
        }
        if binary:
            raw = to_raw(tensor)
            described["parameters"] = {"binary_data_size": len(raw)}
            parts.append(raw)
        else:
            described["data"] = _json_data(tensor)
        inputs.append(described)
    if request.outputs:
        how = {"parameters": {"binary_data": True}} if binary else {}
        document["outputs"] = [{"name": output.name, **how} for output in request.outputs]
    head = _dumped(document)
    parts[0] = head
    return parts, len(head) if binary else None


def decode_infer(body: Buffer, header_length: int | None) -> InferResponse:
    """Return the answer in ``body``; binary outputs lie over it, read-only.

    Args:
        body: the whole body.
        header_length: the value of ``Inference-Header-Content-Length``; ``None`` when absent.

    Raises:
        InvalidAnswer: the body is malformed, or its shapes, types and data do not agree.
    """
    size = len(body)
    position = size if header_length is None else header_length
    if not 0 <= position <= size:
        raise invalid_answer(
            f"the header {HEADER_LENGTH} is {position}, but the body has {size} bytes"
        )
    document = _object(body[:position])
    described = document.get("outputs")
    if not isinstance(described, list):
        raise invalid_answer(f"its 'outputs' are {shown(described)}, not a list")
    view = memoryview(body)
    outputs = []
    for item in described:
        tensor, position = _output(item, view, position)
        outputs.append(tensor)
    if position != size:
        raise invalid_answer(f"{size - position} bytes follow the data of the last output")
    return InferResponse(
        _text(document, "model_name"),
        _text(document, "model_version"),
        _text(document, "id"),
        outputs,
        _answered_parameters(document.get("parameters")),
    )


def decode_model_metadata(body: Buffer) -> ModelMetadata:
    """Return what the body of ``GET /v2/models/NAME`` says.

    Raises:
        InvalidAnswer: the body is malformed.
    """
    document = _object(body)

    def specs(kind: str) -> tuple[TensorSpec, ...]:
        found = document.get(kind)
        if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
            raise invalid_answer(f"the model's '{kind}' are {shown(found)}, not a list of objects")
        return tuple(
            tensor_spec(item.get("name"), item.get("datatype"), item.get("shape"))
            for item in found
        )

    versions = document.get("versions") or []
    if not isinstance(versions, list):
        raise invalid_answer(f"the model's 'versions' are {shown(versions)}, not a list")
    return ModelMetadata(
        _text(document, "name"),
        tuple(map(str, versions)),
        _text(document, "platform"),
        Signature(specs("inputs"), specs("outputs")),
    )


def decode_server_metadata(body: Buffer) -> ServerMetadata:
    """Return what the body of ``GET /v2`` says.

    Raises:
        InvalidAnswer: the body is malformed.
    """
    document = _object(body)
    extensions = document.get("extensions") or []
    if not isinstance(extensions, list):
        raise invalid_answer(f"its 'extensions' are {shown(extensions)}, not a list")
    return ServerMetadata(
        _text(document, "name"), _text(document, "version"), tuple(map(str, extensions))
    )


def decode_error(body: Buffer) -> str:
    """Return what the body of an answer that is an error says is wrong; empty: nothing.

    Servers say it under ``error`` (the specification), ``detail`` (FastAPI's own) or in text.
    """
    found: object
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError:
        found = bytes(body[: 4 * _LONGEST_ERROR]).decode("utf-8", "replace").strip()
    if isinstance(found, dict):
        found = found.get("error") or found.get("detail") or found.get("message") or found
    text = found if isinstance(found, str) else orjson.dumps(found).decode()
    return text if len(text) <= _LONGEST_ERROR else f"{text[: _LONGEST_ERROR - 3]}..."


def _output(item: object, body: memoryview, position: int) -> tuple[Tensor, int]:
    """Return an output, and where the binary data of the next one begins."""
    if not isinstance(item, dict) or not isinstance(item.get("name"), str):
        raise invalid_answer(f"one of its 'outputs' is {shown(item)}, not an object with a name")
    name, dimensions = item["name"], item.get("shape")
    if not isinstance(dimensions, list) or not all(type(d) is int for d in dimensions):
        raise invalid_answer(f"the shape of output {name!r} is {shown(dimensions)}")
    parameters = item.get("parameters")
    size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
    with reading_output(name):
        dtype = dtype_of(name, item.get("datatype"))
        shape = checked_shape(name, dimensions)
        if size is None:
            return Tensor(name, dtype, from_json(name, dtype, shape, item.get("data"))), position
        if type(size) is not int or not 0 <= size <= len(body) - position:
            raise invalid_answer(
                f"the binary_data_size of output {name!r} is {shown(size)}, but "
                f"{len(body) - position} bytes are left"
            )
        end = position + size
        return from_raw(name, dtype, shape, body[position:end]), end


def _object(data: Buffer) -> dict[str, Any]:
    try:
        found = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        found = _lenient(bytes(data), error)
    if not isinstance(found, dict):
        raise invalid_answer(f"it is {shown(found)}, not a JSON object")
    return found


def _lenient(data: bytes, error: orjson.JSONDecodeError) -> object:
    """Parse what orjson does not take: Triton writes bare ``NaN`` and ``Infinity``."""
    if b"NaN" in data or b"Infinity" in data:
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            pass
    raise invalid_answer(f"{shown(data[:80])} is not JSON ({error})") from error


def _text(document: Mapping[str, Any], key: str) -> str:
    found = document.get(key)
    if found is None:
        return ""
    if not isinstance(found, str | int):
        raise invalid_answer(f"its '{key}' is {shown(found)}, not text")
    return str(found)


def _answered_parameters(found: object) -> Mapping[str, Parameter]:
    if not found:
        return NO_PARAMETERS
    if not isinstance(found, dict):
        raise invalid_answer(f"its 'parameters' are {shown(found)}, not an object")
    return MappingProxyType(found)


def _json_data(tensor: Tensor) -> object:
    try:
        refuse_infinite(tensor)
        return to_json(tensor)
    except InvalidInput as error:
        fault = str(error).partition("; ")[0].replace("output ", "input ", 1)
        raise InvalidInput(f"{fault}; send it as binary data (binary=True)") from error


def _dumped(document: Mapping[str, Any]) -> bytes:
    try:
        return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    except TypeError as error:
        raise InvalidInput(
            f"the request does not fit into JSON: {error}; "
            "give parameters that are text, numbers, true or false"
        ) from error
