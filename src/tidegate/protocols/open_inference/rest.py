"""The Open Inference Protocol v2 over REST: bodies to domain types and back.

Source: ``inference_rest.md`` of https://github.com/kserve/open-inference-protocol and
Triton's ``extension_binary_data.md``. A body is a JSON object; with binary tensors it is
followed by their bytes, and the header ``Inference-Header-Content-Length`` says how long the
JSON is. :mod:`tidegate.protocols.open_inference.json_data` says how numbers are written.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import orjson

from tidegate.errors import InferenceFailed, InvalidInput, Unsupported
from tidegate.protocols.grpc_frames import Buffer
from tidegate.protocols.open_inference import bare_body, json_numbers
from tidegate.protocols.open_inference.bounds import MOST_TENSORS, check_document
from tidegate.protocols.open_inference.json_data import from_json, refuse_infinite, to_json
from tidegate.protocols.open_inference.places import (
    Place,
    Placed,
    Reader,
    place_of,
    places_of,
    read_tensor,
    switched_off,
)
from tidegate.protocols.open_inference.signature_name import signature_name
from tidegate.protocols.open_inference.tensors import (
    checked_name,
    checked_shape,
    dtype_of,
    from_raw,
    shown,
    to_raw,
)
from tidegate.protocols.payloads import as_tensors
from tidegate.types import (
    NO_PARAMETERS,
    Array,
    DType,
    InferRequest,
    InferResponse,
    Parameter,
    RequestedOutput,
    Signature,
    Tensor,
)

HEADER_LENGTH = bare_body.HEADER_LENGTH
"""The header that gives the bytes of JSON before binary tensors."""

_LONGEST_PLAN = 4096
"""Bytes of JSON before binary tensors that are worth remembering."""
_LONGEST_ERROR = 4096
"""Characters."""
_INTEGERS = frozenset((int,))
_NO_PARAMETERS: Mapping[str, Parameter] = MappingProxyType({})


class _Input(NamedTuple):
    name: str
    dtype: DType
    shape: tuple[int, ...]
    size: int | None
    """Bytes of binary data; ``None`` when the data is in the JSON."""
    tensor: Tensor | None
    """What the JSON held."""
    place: Place | None = None
    """Where in shared memory the data is, if it is neither in the JSON nor after it."""


class _Plan(NamedTuple):
    """What the JSON of a request says."""

    id: str
    parameters: Mapping[str, Parameter]
    inputs: tuple[_Input, ...]
    outputs: tuple[RequestedOutput, ...]
    signature: str = ""


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
        plan, position = _read(bytes(body)), size
    elif header_length == 0:
        return bare_body.decode(model, version, body, signature)
    elif not 0 < header_length <= size:
        raise InvalidInput(
            f"the header {HEADER_LENGTH} is {header_length}, but the body has {size} bytes; "
            "write the number of bytes of the JSON object"
        )
    else:
        head, position = bytes(body[:header_length]), header_length
        plan = _plan(head) if position <= _LONGEST_PLAN else _read(head)
    view = memoryview(body) if size - position > _LONGEST_PLAN else body
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
    if reader is None:
        for name in places_of(plan.outputs):
            raise switched_off(f"output {name!r}")
    return InferRequest(
        model,
        version,
        plan.id,
        tuple(tensors),
        plan.outputs,
        plan.parameters,
        signature=plan.signature,
    )


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
    binary_by_default = request.parameters.get("binary_data_output", False)
    wishes = {
        output.name: output.parameters["binary_data"]
        for output in request.outputs
        if "binary_data" in output.parameters
    }
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


def encode_error(message: str) -> bytes:
    """Return the body of an answer that is an error; what no person would read is cut off."""
    if len(message) > _LONGEST_ERROR:
        message = f"{message[:_LONGEST_ERROR]}..."
    return orjson.dumps({"error": message.encode("utf-8", "replace").decode()})


def _read(head: bytes) -> _Plan:
    """Return what the JSON of a request says; long lists of numbers take no objects."""
    if len(head) >= json_numbers.SHORTEST:
        rest, texts = json_numbers.cut_out(head)
        # What is wrong is said with the whole document at hand; a mark that is left is wrong.
        with contextlib.suppress(InvalidInput):
            plan = _understand(rest, texts) if texts else None
            if plan is not None and not texts:
                return plan
    return _understand(head, {})


def _understand(head: bytes, texts: dict[str, bytes]) -> _Plan:
    """Return what the JSON of a request says; the ``texts`` of marks are taken out."""
    check_document(head)
    try:
        document = orjson.loads(head)
    except orjson.JSONDecodeError as error:
        hint = "; write null for NaN" if b"NaN" in head or b"Infinity" in head else ""
        raise InvalidInput(
            f"the body is not JSON: {error}{hint}; send the JSON object of an inference request "
            f"(and its length in {HEADER_LENGTH} when binary data follows)"
        ) from error
    if not isinstance(document, dict):
        raise InvalidInput(f"the body is {shown(document)}; send a JSON object with 'inputs'")
    identity = document.get("id")
    if not isinstance(identity, str | None):
        raise InvalidInput(f"'id' is {shown(identity)}; send a string")
    parameters = _parameters("the request", document.get("parameters"))
    _expect_bool("the request", "binary_data_output", parameters)
    return _Plan(
        identity or "",
        parameters,
        _inputs(document.get("inputs"), texts),
        _outputs(document.get("outputs")),
        signature_name(parameters),
    )


@functools.lru_cache(maxsize=1024)
def _plan(head: bytes) -> _Plan:
    """Return what JSON before binary data says; it is the same from call to call."""
    return _read(head)


def _inputs(found: object, texts: dict[str, bytes]) -> tuple[_Input, ...]:
    if not isinstance(found, list):
        raise InvalidInput(f"'inputs' is {shown(found)}; send a list of tensors")
    _check_count("inputs", found)
    seen: set[str] = set()
    inputs = []
    for index, item in enumerate(found):
        name = _name("inputs", index, item)
        if name in seen:
            raise InvalidInput(f"input {name!r} comes twice; send each input once")
        seen.add(name)
        inputs.append(_input(name, item, texts))
    return tuple(inputs)


def _input(name: str, item: dict[str, Any], texts: dict[str, bytes]) -> _Input:
    dtype = dtype_of(name, item.get("datatype"))
    dimensions = item.get("shape")
    if not isinstance(dimensions, list) or not _INTEGERS.issuperset(map(type, dimensions)):
        raise InvalidInput(
            f"the shape of input {name!r} is {shown(dimensions)}; send a list of integers"
        )
    shape = checked_shape(name, dimensions)
    given = item.get("parameters")
    size = None
    if given:
        where = f"input {name!r}"
        parameters = _parameters(where, given)
        size = parameters.get("binary_data_size")
        place = place_of(where, parameters)
        if place is not None:
            if size is not None or "data" in item:
                raise InvalidInput(f"{where} has data and a shared_memory_region; send one")
            return _Input(name, dtype, shape, None, None, place)
    data = item.get("data")
    if size is None:
        array = _array(name, dtype, shape, data, texts) if texts else None
        if array is None:
            array = from_json(name, dtype, shape, data)
        # The same array may answer to several requests with the same JSON.
        array.flags.writeable = False
        return _Input(name, dtype, shape, None, Tensor(name, dtype, array))
    if type(size) is not int or size < 0:
        raise InvalidInput(
            f"the parameter binary_data_size of input {name!r} is {shown(size)}; "
            "send the number of bytes of its data"
        )
    if data is not None:
        raise InvalidInput(
            f"input {name!r} has both 'data' and the parameter binary_data_size; send one of them"
        )
    return _Input(name, dtype, shape, size, None)


def _array(
    name: str, dtype: DType, shape: tuple[int, ...], data: object, texts: dict[str, bytes]
) -> Array | None:
    """Return the array of the list that ``data`` marks; ``None`` when it is no mark."""
    mark = data[0] if isinstance(data, list) and len(data) == 1 else None
    text = texts.pop(mark, None) if isinstance(mark, str) else None
    if text is None:
        return None
    array = json_numbers.read(dtype, shape, text)
    if array is not None:
        return array
    check_document(text)
    try:
        return from_json(name, dtype, shape, orjson.loads(text))
    except orjson.JSONDecodeError as error:
        raise InvalidInput(f"the data of input {name!r} is not JSON: {error}") from error


def _outputs(found: object) -> tuple[RequestedOutput, ...]:
    if found is None:
        return ()
    if not isinstance(found, list):
        raise InvalidInput(f"'outputs' is {shown(found)}; send a list or leave it out")
    _check_count("outputs", found)
    outputs: dict[str, RequestedOutput] = {}
    for index, item in enumerate(found):
        name = _name("outputs", index, item)
        if name in outputs:
            raise InvalidInput(f"output {name!r} is requested twice; name each output once")
        where = f"output {name!r}"
        parameters = _parameters(where, item.get("parameters"))
        if parameters:
            place_of(where, parameters)
            _expect_bool(where, "binary_data", parameters)
            if parameters.get("classification"):
                raise Unsupported(
                    f"{where} asks for a classification, which Tidegate does not offer; "
                    "take the scores and sort them"
                )
        outputs[name] = RequestedOutput(name, parameters)
    return tuple(outputs.values())


def _check_count(where: str, found: list[Any]) -> None:
    if len(found) > MOST_TENSORS:
        raise InvalidInput(
            f"there are {len(found)} {where}; at most {MOST_TENSORS} are possible in a request"
        )


def _name(where: str, index: int, item: object) -> str:
    if not isinstance(item, dict):
        raise InvalidInput(f"{where}[{index}] is {shown(item)}; send an object with a 'name'")
    name = item.get("name")
    if not isinstance(name, str):
        raise InvalidInput(f"the name of {where}[{index}] is {shown(name)}; send a string")
    return checked_name(f"{where}[{index}]", name)


def _parameters(where: str, found: object) -> Mapping[str, Parameter]:
    if not found and (found is None or found == {}):
        return _NO_PARAMETERS
    if not isinstance(found, dict):
        raise InvalidInput(f"the parameters of {where} are {shown(found)}; send an object")
    for key, value in found.items():
        if not isinstance(value, bool | int | float | str):
            raise InvalidInput(
                f"the parameter {shown(key)} of {where} is {shown(value)}; "
                "send a string, a number, true or false"
            )
    return MappingProxyType(found)


def _expect_bool(where: str, key: str, parameters: Mapping[str, Parameter]) -> None:
    value = parameters.get(key, False)
    if not isinstance(value, bool):
        raise InvalidInput(f"the parameter {key} of {where} is {shown(value)}; send true or false")


def _dump(document: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    except TypeError as error:
        raise InferenceFailed(
            f"the model's answer does not fit into JSON: {error}; return parameters that are "
            "strings, numbers, true or false"
        ) from error
