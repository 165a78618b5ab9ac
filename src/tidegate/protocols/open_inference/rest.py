"""The Open Inference Protocol v2 over REST: bodies to domain types and back.

Source: ``inference_rest.md`` of https://github.com/kserve/open-inference-protocol and
Triton's ``extension_binary_data.md``. A body is a JSON object; with binary tensors it is
followed by their bytes, and the header ``Inference-Header-Content-Length`` says how long the
JSON is. :mod:`tidegate.protocols.open_inference.json_data` says how numbers are written.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from tidegate.errors import InferenceFailed, InvalidInput
from tidegate.protocols.grpc_frames import Buffer
from tidegate.protocols.open_inference import bare_body, json_numbers
from tidegate.protocols.open_inference.json_data import refuse_infinite, to_json
from tidegate.protocols.open_inference.places import (
    Placed,
    Reader,
    places_of,
    read_tensor,
    switched_off,
)
from tidegate.protocols.open_inference.request_json import (
    LONGEST_REMEMBERED,
    RequestPlan,
    read,
    read_again,
)
from tidegate.protocols.open_inference.tensors import (
    from_raw,
    shown,
    to_raw,
)
from tidegate.protocols.payloads import as_tensors
from tidegate.types import (
    NO_PARAMETERS,
    InferRequest,
    InferResponse,
    Parameter,
    Signature,
    Tensor,
)

HEADER_LENGTH = bare_body.HEADER_LENGTH
"""The header that gives the bytes of JSON before binary tensors."""

_LONGEST_ERROR = 4096
"""Characters."""


def parse_header_length(value: str | bytes) -> int:
    """Return the value of ``Inference-Header-Content-Length`` in bytes.

    Raises:
        InvalidInput: it is not a decimal number.
    """
    raw = value.encode("utf-8", "replace") if isinstance(value, str) else value
    if not raw.isdigit() or len(raw) > len(str(2**63)):
        raise InvalidInput(
            f"the header {HEADER_LENGTH} is {shown(raw.decode('utf-8', 'replace'))}; "
            "write the number of bytes of the JSON object"
        )
    return int(raw)


def decode_infer(
    model: str,
    version: str,
    body: Buffer,
    header_length: int | None = None,
    signature: Signature | None = None,
    reader: Reader | None = None,
) -> InferRequest:
    """Return the request in the body of a call of ``infer``.

    Binary data is not copied: the tensors lie over ``body`` (and need not be aligned).

    Args:
        model: the model's name, from the path.
        version: its version, from the path; empty for the default one.
        body: the whole body.
        header_length: the value of ``Inference-Header-Content-Length``; ``None`` when it is
            absent, 0 when the body is nothing but the data of the model's only input.
        signature: the model's; needed only when ``header_length`` is 0.
        reader: reads shared memory; ``None`` where there is none.

    Raises:
        InvalidInput: the body is malformed, or its shapes, types and data do not agree.
        Unsupported: it asks for shared memory without a reader, or for a classification.
    """
    size = len(body)
    if header_length is None:
        plan, position = read(bytes(body)), size
    elif header_length == 0:
        return bare_body.decode(model, version, body, signature)
    elif not 0 < header_length <= size:
        raise InvalidInput(
            f"the header {HEADER_LENGTH} is {header_length}, but the body has {size} bytes; "
            "write the number of bytes of the JSON object"
        )
    else:
        head, position = bytes(body[:header_length]), header_length
        plan = read_again(head) if position <= LONGEST_REMEMBERED else read(head)
    tensors = _tensors(plan, body, position, reader)
    if reader is None:
        for name in places_of(plan.outputs):
            raise switched_off(f"output {name!r}")
    return InferRequest(
        model,
        version,
        plan.id,
        tensors,
        plan.outputs,
        plan.parameters,
        signature=plan.signature,
    )


def _tensors(
    plan: RequestPlan, body: Buffer, position: int, reader: Reader | None
) -> tuple[Tensor, ...]:
    """Return the inputs; binary data begins at ``position`` of the body."""
    size = len(body)
    view = memoryview(body) if size - position > LONGEST_REMEMBERED else body
    tensors = []
    for spec in plan.inputs:
        if spec.size is None:
            tensors.append(
                spec.tensor or read_tensor(spec.name, spec.dtype, spec.shape, spec.place, reader)
            )
            continue
        start, position = position, position + spec.size
        if position > size:
            raise InvalidInput(
                f"the binary data of input {spec.name!r} would end at byte {position} of {size}; "
                f"send all of it after the JSON, and the JSON's length in {HEADER_LENGTH}"
            )
        tensors.append(from_raw(spec.name, spec.dtype, spec.shape, view[start:position]))
    if position != size:
        raise InvalidInput(
            f"{size - position} bytes follow the data of the last binary input; "
            "give each binary input's length as its parameter binary_data_size"
        )
    return tuple(tensors)


def encode_infer(
    response: InferResponse, request: InferRequest, placed: Mapping[str, Placed] = NO_PARAMETERS
) -> tuple[list[bytes | memoryview], int | None]:
    """Return the parts of the body, and the length of the JSON if binary data follows it.

    An output is binary when the request said so: by the parameter ``binary_data`` of the
    requested output, or else by ``binary_data_output`` of the whole request. Large binary
    tensors are views over their arrays. Outputs that were ``placed`` in shared memory have the
    parameters that say so, and no data.

    Raises:
        InvalidInput: an output that should go into the JSON cannot; ask for binary data.
        InferenceFailed: a parameter of the response is nothing that JSON can hold.
    """
    wishes, binary_by_default = _binary(request)
    document: dict[str, Any] = {
        "model_name": response.model,
        "model_version": response.version,
    }
    if response.id:
        document["id"] = response.id
    if response.parameters:
        document["parameters"] = dict(response.parameters)
    outputs: list[dict[str, Any]] = []
    document["outputs"] = outputs
    parts: list[bytes | memoryview] = [b""]
    in_json = []
    for tensor in as_tensors(response):
        described: dict[str, Any] = {
            "name": tensor.name,
            "datatype": tensor.dtype._value_,
            "shape": tensor.data.shape,
        }
        if tensor.name in placed:
            described["parameters"] = placed[tensor.name]
        elif wishes.get(tensor.name, binary_by_default):
            raw = to_raw(tensor)
            described["parameters"] = {"binary_data_size": len(raw)}
            parts.append(raw)
        else:
            described["data"] = to_json(tensor)
            in_json.append(tensor)
        outputs.append(described)
    head = _dump(document)
    # Looking for the word takes longer than looking at the numbers when they are many.
    if len(head) > json_numbers.SHORTEST or b"null" in head:
        for tensor in in_json:
            refuse_infinite(tensor)
    parts[0] = head
    return parts, len(head) if len(parts) > 1 else None


def _binary(request: InferRequest) -> tuple[Mapping[str, Parameter], Parameter]:
    """Return of which outputs it is said whether they are binary, and whether the others are."""
    wishes = {
        output.name: output.parameters["binary_data"]
        for output in request.outputs
        if "binary_data" in output.parameters
    }
    return wishes, request.parameters.get("binary_data_output", False)


def encode_error(message: str) -> bytes:
    """Return the body of an answer that is an error; what no person would read is cut off."""
    if len(message) > _LONGEST_ERROR:
        message = f"{message[:_LONGEST_ERROR]}..."
    return orjson.dumps({"error": message.encode("utf-8", "replace").decode()})


def _dump(document: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    except TypeError as error:
        raise InferenceFailed(
            f"the model's answer does not fit into JSON: {error}; return parameters that are "
            "strings, numbers, true or false"
        ) from error
