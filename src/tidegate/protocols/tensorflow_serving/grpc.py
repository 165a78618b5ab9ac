"""``PredictionService.Predict`` of TensorFlow Serving: messages to domain types and back.

Source: ``predict.proto`` of TensorFlow Serving; the messages are those of
``tensorflow_serving.proto`` beside this file.

A message is walked to where its tensors lie, and a call that differs from the one before only in
the elements of its only tensor is not even that. Any message that is laid out in another way than
serializers do it goes through protobuf's own parser, which has the last word on what is malformed.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from tidegate.errors import InvalidInput
from tidegate.protocols.descriptors import parsed
from tidegate.protocols.grpc_frames import Buffer
from tidegate.protocols.open_inference.tensors import checked_name
from tidegate.protocols.payloads import as_tensors
from tidegate.protocols.tensorflow_serving import messages
from tidegate.protocols.tensorflow_serving.bounds import PREDICT, check_message
from tidegate.protocols.tensorflow_serving.model_spec import (
    Spec,
    answered_by,
    spec_of,
    version_of_label,
)
from tidegate.protocols.tensorflow_serving.tensors import (
    Unusual,
    read_tensor,
    tensor_of,
    write_tensor,
)
from tidegate.protocols.varints import read_length, write_length
from tidegate.types import (
    NO_PARAMETERS,
    Array,
    DType,
    InferRequest,
    InferResponse,
    RequestedOutput,
    Tensor,
)

_FIRST, _SECOND, _THIRD = 0x0A, 0x12, 0x1A
"""Tags of a message's fields 1, 2 and 3, if these are strings or messages."""
_LONGEST_PLAN = 4096
"""Bytes of a request beside its elements that are worth remembering."""
_COPY_BELOW = 16 * 1024
"""Copying so few bytes costs less than what a memoryview adds to every access."""
_MOST_FIELDS = 2**12
"""Fields of a message that are walked one by one."""
_PLAIN = frozenset((DType.FP32, DType.FP64))
"""The types whose elements are the same bytes in each field."""


class _Last(NamedTuple):
    """A request of one tensor: what surrounds its elements, and what that means."""

    before: bytes
    after: bytes
    size: int
    spec: Spec
    outputs: tuple[RequestedOutput, ...]
    tensor: Tensor


_last: list[_Last | None] = [None]


def decode_predict(
    message: Buffer, limit: int, labels: Mapping[str, str] = NO_PARAMETERS
) -> InferRequest:
    """Return the request in a ``PredictRequest``.

    Large tensors lie over ``message`` where they can (and need not be aligned).

    Args:
        message: the whole message.
        limit: the most bytes that a few values of a tensor may stand for.
        labels: the model's versions by label.

    Raises:
        InvalidInput: the message is malformed, its tensors do not agree with their types and
            shapes, or it asks for an unknown label.
    """
    if len(message) > _COPY_BELOW:
        message = memoryview(message)
    known = _repeated(message)
    if known is not None:
        return known
    try:
        spec, tensors, outputs = _walk(message, limit)
    except (Unusual, IndexError, UnicodeDecodeError, InvalidInput):
        spec, tensors, outputs = _parse(message, limit)
    requested = _requested(outputs)
    request = _request(spec, tensors, requested)
    if spec.label:
        request.version = version_of_label(spec.label, labels)
    elif len(tensors) == 1:
        _remember(message, spec, requested, tensors[0])
    return request


def encode_predict(response: InferResponse, signature: str = "") -> list[bytes | memoryview]:
    """Return the parts of ``response`` as a ``PredictResponse``; large tensors are views.

    The elements are in the typed fields, as TensorFlow Serving sends them.

    Raises:
        InferenceFailed: the model's answer is nothing that can be sent.
    """
    parts: list[bytes | memoryview] = []
    for tensor in as_tensors(response):
        head, data = write_tensor(tensor)
        parts += (_entry_head(tensor.name, head, len(data)), data)
    parts.append(answered_by(response.model, response.version, signature))
    return parts


def _repeated(message: Buffer) -> InferRequest | None:
    """Return the request when only the elements differ from those of the one before."""
    last = _last[0]
    if last is None:
        return None
    before, after, size, spec, outputs, tensor = last
    at = len(before)
    if len(message) != at + size + len(after):
        return None
    if message[:at] != before or message[at + size :] != after:
        return None
    data: Array = np.ndarray(tensor.data.shape, tensor.data.dtype, message, at)
    return _request(spec, (Tensor(tensor.name, tensor.dtype, data),), outputs)


def _remember(
    message: Buffer, spec: Spec, outputs: tuple[RequestedOutput, ...], tensor: Tensor
) -> None:
    """Remember a request of one tensor that lies over the message."""
    if tensor.dtype not in _PLAIN or not tensor.data.size:
        return
    size = tensor.data.nbytes
    if len(message) - size > _LONGEST_PLAN:
        return
    whole = np.frombuffer(message, np.uint8)
    at = tensor.data.__array_interface__["data"][0] - whole.__array_interface__["data"][0]
    if not 0 <= at <= len(message) - size:
        return  # a copy
    before, after = bytes(message[:at]), bytes(message[at + size :])
    shape = np.broadcast_to(np.empty((), tensor.data.dtype), tensor.data.shape)
    pattern = Tensor(tensor.name, tensor.dtype, shape)
    _last[0] = _Last(before, after, size, spec, outputs, pattern)


def _request(
    spec: Spec, tensors: tuple[Tensor, ...], outputs: tuple[RequestedOutput, ...]
) -> InferRequest:
    return InferRequest(
        spec.model,
        spec.version,
        "",
        tensors,
        outputs,
        NO_PARAMETERS,
        None,
        NO_PARAMETERS,
        NO_PARAMETERS,
        spec.signature,
    )


def _walk(message: Buffer, limit: int) -> tuple[Spec, tuple[Tensor, ...], list[str]]:
    """Read a message by where its fields lie."""
    spec = None
    tensors: dict[str, Tensor] = {}
    outputs: list[str] = []
    for tag, start, end in _fields(message, 0, len(message)):
        if len(outputs) + len(tensors) > _MOST_FIELDS:
            raise Unusual
        if tag == _FIRST:
            if spec is not None or end - start > _LONGEST_PLAN:
                raise Unusual
            spec = _spec(bytes(message[start:end]))
        elif tag == _SECOND:
            tensor = _entry(message, start, end, limit)
            if tensor.name in tensors:
                raise Unusual
            tensors[tensor.name] = tensor
        elif tag == _THIRD:
            outputs.append(str(message[start:end], "utf-8"))
    if spec is None:
        raise Unusual
    return spec, tuple(tensors.values()), outputs


def _parse(message: Buffer, limit: int) -> tuple[Spec, tuple[Tensor, ...], list[str]]:
    """Read a message however it is laid out."""
    check_message(message, PREDICT)
    request = parsed(messages.PredictRequest, message)
    spec = spec_of(request.model_spec)
    tensors = tuple(
        tensor_of(checked_name("an input", name), proto, limit)
        for name, proto in request.inputs.items()
    )
    return spec, tensors, list(request.output_filter)


def _entry(message: Buffer, start: int, end: int, limit: int) -> Tensor:
    """Read an entry of the map of inputs."""
    name = found = None
    for tag, first, last in _fields(message, start, end):
        if tag == _FIRST and name is None:
            name = str(message[first:last], "utf-8")
        elif tag == _SECOND and found is None:
            found = first, last
        else:
            raise Unusual
    if name is None or found is None:
        raise Unusual
    return read_tensor(checked_name("an input", name), message, *found, limit)


def _fields(message: Buffer, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield the tag of each field that has a length, and where it begins and ends."""
    while at < end:
        tag = message[at]
        if tag & 0x87 != 2 or tag == 2:
            raise Unusual
        size = message[at + 1]
        start = at + 2
        if size > 0x7F:
            size, start = read_length(message, at + 1)
        at = start + size
        if at > end:
            raise Unusual
        yield tag, start, at


def _requested(names: list[str]) -> tuple[RequestedOutput, ...]:
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidInput(
            f"output {checked_name('an output', twice)!r} is requested twice; name each output "
            "once in output_filter"
        )
    return tuple(RequestedOutput(checked_name("an output", name)) for name in names)


@functools.lru_cache(maxsize=256)
def _spec(message: bytes) -> Spec:
    return spec_of(parsed(messages.ModelSpec, message))


@functools.lru_cache(maxsize=1024)
def _entry_head(name: str, head: bytes, size: int) -> bytes:
    """Return what comes before a tensor's elements in the map of outputs."""
    key = name.encode()
    key = b"\x0a" + write_length(len(key)) + key
    value = b"\x12" + write_length(len(head) + size) + head
    return b"\x0a" + write_length(len(key) + len(value) + size) + key + value
