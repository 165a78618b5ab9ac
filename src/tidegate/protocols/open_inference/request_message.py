"""What a ``ModelInferRequest`` says besides its id and its data: mostly the same in every call."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, NoReturn

import numpy as np

from tidegate.errors import InvalidInput, Unsupported
from tidegate.protocols.descriptors import parsed
from tidegate.protocols.open_inference import messages
from tidegate.protocols.open_inference.places import Place, place_of, switched_off
from tidegate.protocols.open_inference.signature_name import signature_name
from tidegate.protocols.open_inference.tensors import (
    checked_name,
    checked_shape,
    dtype_of,
    shown,
)
from tidegate.types import NO_PARAMETERS, DType, Parameter, RequestedOutput, element_count


class SentInput(NamedTuple):
    """One input, but for its data."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    numpy: np.dtype[Any]
    size: int
    """Bytes of raw data; -1 when they have to be looked at (BOOL, BYTES)."""


class RequestPlan(NamedTuple):
    """The message, but for its id and its data."""

    model: str
    version: str
    parameters: Mapping[str, Parameter]
    inputs: tuple[SentInput, ...]
    outputs: tuple[RequestedOutput, ...]
    signature: str = ""


class InSharedMemory(Unsupported):
    """A tensor lies in shared memory: the message is not a usual one."""


@functools.lru_cache(maxsize=1024)
def read_again(head: bytes) -> RequestPlan:
    """Return what a request without its id and raw data says.

    Raises:
        InvalidInput: it is malformed, or not what the protocol wants.
        Unsupported: it asks for shared memory, or for a classification.
    """
    request = parsed(messages.ModelInferRequest, head)
    plan = plan_of(request)
    for tensor in request.inputs:
        if tensor.contents.ByteSize():
            refuse_mixture(tensor.name)
    return plan


def plan_of(request: Any, *, shared: bool = False) -> RequestPlan:
    """Return what a parsed request says; its tensors may lie in memory that is ``shared``.

    Raises:
        InvalidInput: it is not what the protocol wants.
        Unsupported: it asks for shared memory that is not ``shared``, or for a classification.
    """
    seen: set[str] = set()
    inputs = []
    for tensor in request.inputs:
        name = checked_name("an input", tensor.name)
        if name in seen:
            raise InvalidInput(f"input {name!r} comes twice; send each input once")
        seen.add(name)
        _refuse("input", name, tensor.parameters, shared=shared)
        dtype = dtype_of(name, tensor.datatype)
        shape = checked_shape(name, tensor.shape)
        plain = dtype.itemsize is not None and dtype is not DType.BOOL
        size = element_count(shape) * dtype.itemsize if plain and dtype.itemsize else -1
        inputs.append(SentInput(name, dtype, shape, dtype.numpy, size))
    outputs: dict[str, RequestedOutput] = {}
    for output in request.outputs:
        name = checked_name("an output", output.name)
        if name in outputs:
            raise InvalidInput(f"output {name!r} is requested twice; name each output once")
        _refuse("output", name, output.parameters, shared=shared)
        outputs[name] = RequestedOutput(name, _decode_parameters(output.parameters))
    parameters = _decode_parameters(request.parameters)
    return RequestPlan(
        request.model_name,
        request.model_version,
        parameters,
        tuple(inputs),
        tuple(outputs.values()),
        signature_name(parameters),
    )


def places_in(request: Any) -> dict[str, Place]:
    """Return where the inputs lie that lie in shared memory.

    Raises:
        InvalidInput: an input lies there and in the message.
    """
    places: dict[str, Place] = {}
    for tensor in request.inputs:
        where = f"input {tensor.name!r}"
        place = place_of(where, _decode_parameters(tensor.parameters))
        if place is not None:
            if tensor.contents.ByteSize():
                raise InvalidInput(f"{where} has contents and a shared_memory_region; send one")
            places[tensor.name] = place
    return places


def _decode_parameters(entries: Any) -> Mapping[str, Parameter]:
    if not entries:
        return NO_PARAMETERS
    parameters: dict[str, Parameter] = {}
    for key, value in entries.items():
        choice = value.WhichOneof("parameter_choice")
        if choice is None:
            raise InvalidInput(
                f"the parameter {shown(key)} has no value; set one of bool_param, int64_param, "
                "string_param, double_param and uint64_param"
            )
        parameters[key] = getattr(value, choice)
    return MappingProxyType(parameters)


def _refuse(kind: str, name: str, parameters: Any, *, shared: bool) -> None:
    """Refuse what cannot be done here; shared memory when it is not ``shared``."""
    if not parameters:
        return
    if "shared_memory_region" in parameters and not shared:
        raise InSharedMemory(str(switched_off(f"{kind} {name!r}")))
    if kind == "output" and "classification" in parameters:
        raise Unsupported(
            f"output {name!r} asks for a classification, which Tidegate does not offer; "
            "take the scores and sort them"
        )


def refuse_mixture(name: str) -> NoReturn:
    """Refuse a message with data of both kinds."""
    raise InvalidInput(
        f"input {name!r} has contents and the message has raw_input_contents too; "
        "send every input one way or every input the other"
    )
