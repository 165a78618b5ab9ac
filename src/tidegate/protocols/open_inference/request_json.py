"""What the JSON of a REST request says: all of it but binary data, which follows the JSON."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import orjson

from tidegate.errors import InvalidInput, Unsupported
from tidegate.protocols.open_inference import json_numbers
from tidegate.protocols.open_inference.bare_body import HEADER_LENGTH
from tidegate.protocols.open_inference.bounds import MOST_TENSORS, check_document
from tidegate.protocols.open_inference.json_data import from_json
from tidegate.protocols.open_inference.places import Place, place_of
from tidegate.protocols.open_inference.signature_name import signature_name
from tidegate.protocols.open_inference.tensors import (
    checked_name,
    checked_shape,
    dtype_of,
    shown,
)
from tidegate.types import Array, DType, Parameter, RequestedOutput, Tensor

LONGEST_REMEMBERED = 4096
"""Bytes of JSON before binary tensors that are worth remembering."""
_INTEGERS = frozenset((int,))
_NO_PARAMETERS: Mapping[str, Parameter] = MappingProxyType({})


class SentInput(NamedTuple):
    """One input as the JSON describes it."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    size: int | None
    """Bytes of binary data; ``None`` when the data is in the JSON."""
    tensor: Tensor | None
    """What the JSON held."""
    place: Place | None = None
    """Where in shared memory the data is, if it is neither in the JSON nor after it."""


class RequestPlan(NamedTuple):
    """What the JSON of a request says."""

    id: str
    parameters: Mapping[str, Parameter]
    inputs: tuple[SentInput, ...]
    outputs: tuple[RequestedOutput, ...]
    signature: str = ""


def read(head: bytes) -> RequestPlan:
    """Return what the JSON of a request says; long lists of numbers take no objects.

    Raises:
        InvalidInput: it is no JSON, or not what the protocol wants.
        Unsupported: it asks for a classification.
    """
    if len(head) >= json_numbers.SHORTEST:
        rest, texts = json_numbers.cut_out(head)
        # What is wrong is said with the whole document at hand; a mark that is left is wrong.
        with contextlib.suppress(InvalidInput):
            plan = _understand(rest, texts) if texts else None
            if plan is not None and not texts:
                return plan
    return _understand(head, {})


@functools.lru_cache(maxsize=1024)
def read_again(head: bytes) -> RequestPlan:
    """Do what :func:`read` does; before binary data, JSON is the same from call to call."""
    return read(head)


def _understand(head: bytes, texts: dict[str, bytes]) -> RequestPlan:
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
    return RequestPlan(
        identity or "",
        parameters,
        _inputs(document.get("inputs"), texts),
        _outputs(document.get("outputs")),
        signature_name(parameters),
    )


def _inputs(found: object, texts: dict[str, bytes]) -> tuple[SentInput, ...]:
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


def _input(name: str, item: dict[str, Any], texts: dict[str, bytes]) -> SentInput:
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
            return SentInput(name, dtype, shape, None, None, place)
    data = item.get("data")
    if size is None:
        array = _array(name, dtype, shape, data, texts) if texts else None
        if array is None:
            array = from_json(name, dtype, shape, data)
        # The same array may answer to several requests with the same JSON.
        array.flags.writeable = False
        return SentInput(name, dtype, shape, None, Tensor(name, dtype, array))
    if type(size) is not int or size < 0:
        raise InvalidInput(
            f"the parameter binary_data_size of input {name!r} is {shown(size)}; "
            "send the number of bytes of its data"
        )
    if data is not None:
        raise InvalidInput(
            f"input {name!r} has both 'data' and the parameter binary_data_size; send one of them"
        )
    return SentInput(name, dtype, shape, size, None)


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
