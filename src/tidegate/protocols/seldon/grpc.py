"""Seldon's messages over gRPC: bytes to domain types and back.

A tensor's packed doubles are read from and written to bytes, and never become objects.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from tidegate.errors import InferenceFailed, InvalidInput
from tidegate.protocols.descriptors import parsed
from tidegate.protocols.dialect import Bytes, Inference, ModelView, Reply
from tidegate.protocols.field_counts import Tree
from tidegate.protocols.grpc_frames import Buffer
from tidegate.protocols.open_inference.tensors import MAX_RANK
from tidegate.protocols.seldon import messages
from tidegate.protocols.seldon.content import (
    Content,
    Form,
    answer_form,
    answer_tags,
    request_of,
)
from tidegate.protocols.tensorflow_serving.bounds import check_message
from tidegate.protocols.tensorflow_serving.tensors import tensor_of, write_tensor
from tidegate.protocols.unnamed import array_of, plain
from tidegate.protocols.varints import read_length, write_length
from tidegate.types import Array, InferRequest, InferResponse, Json, element_count

_META, _DATA = 0x12, 0x1A
_NAMES, _TENSOR = 0x0A, 0x12
_SHAPE, _VALUES = 0x0A, 0x12
_STATUS = b"\x0a\x03\x08\xc8\x01"
"""A Status: success, code 200."""


_LONGEST_META, _MOST_NAMES = 2**14, 2**14
"""Bytes and names: with more a message is counted before it is read."""

_VALUE: dict[int, Tree] = {}
_LIST: Tree = {1: _VALUE}
_VALUE.update({5: {1: {2: _VALUE}}, 6: _LIST})
_DEFAULT_DATA: Tree = {2: {}, 3: _LIST, 4: {2: {2: {}}}}
_MESSAGE: Tree = {2: {2: {2: _VALUE}, 3: {}, 4: {}, 5: {4: {}}}, 3: _DEFAULT_DATA, 6: _VALUE}
_FEEDBACK: Tree = {1: _MESSAGE, 2: _MESSAGE, 4: _MESSAGE}


class _Unusual(Exception):
    """A message is not laid out as serializers do it, or it is malformed."""


def read_predict(message: Buffer, model: ModelView) -> Inference:
    """Read a call of ``Predict``.

    Raises:
        InvalidInput: it is malformed, or not what the model takes.
    """
    content = decode(message, model.limit)
    request = request_of(content, model)
    return Inference(request, functools.partial(reply, request, content.form))


def read_feedback(message: Buffer, model: ModelView) -> Reply:
    """Read a call of ``SendFeedback``, which is taken note of by nobody yet.

    Raises:
        InvalidInput: it is malformed.
    """
    _check(message, _FEEDBACK)
    parsed(messages.Feedback, message)
    return Reply((_STATUS,))


def decode(message: Buffer, limit: int) -> Content:
    """Return what a ``SeldonMessage`` says; a tensor's values lie over ``message``.

    ``limit`` is the most bytes that a few values of a tftensor may stand for.

    Raises:
        InvalidInput: it is malformed, or has no data.
    """
    try:
        return _walk(message)
    except (_Unusual, IndexError, UnicodeDecodeError):
        return _parse(message, limit)


def encode(request: InferRequest, form: Form, response: InferResponse) -> list[Bytes]:
    """Return the parts of the ``SeldonMessage`` that answers a request of a form.

    Raises:
        InferenceFailed: the model's answer is nothing that can be sent.
        InvalidInput: another form could hold it.
    """
    tags = answer_tags(request, response)
    meta = _meta(response.id or request.id, tags)
    parts: list[Bytes] = [_STATUS, meta]
    if response.payload is not None:
        return [*parts, _payload(response.payload)]
    if len(response.outputs) != 1:
        by_name = {name: array.tolist() for name, array in plain(response.outputs).items()}
        return [*parts, _payload(texts(by_name))]
    (tensor,) = response.outputs
    form = answer_form(form, tensor)
    if form is Form.TENSOR:
        values = np.ascontiguousarray(tensor.data, np.float64)
        shape = b"".join(map(write_length, values.shape))
        head = b"\x0a" + write_length(len(shape)) + shape if shape else b""
        if values.size:
            head += b"\x12" + write_length(values.nbytes)
        inner = write_length(len(head) + values.nbytes)
        size = write_length(1 + len(inner) + len(head) + values.nbytes)
        parts += (b"\x1a" + size + b"\x12" + inner + head, values.reshape(-1).view(np.uint8).data)
    elif form is Form.TFTENSOR:
        first, raw = write_tensor(tensor)
        inner = write_length(len(first) + len(raw))
        size = write_length(1 + len(inner) + len(first) + len(raw))
        parts += (b"\x1a" + size + b"\x22" + inner + first, raw)
    else:
        answer = messages.SeldonMessage()
        rows = texts(plain(response.outputs)[tensor.name].tolist())
        answer.data.ndarray.extend(rows if isinstance(rows, list) else [rows])
        parts.append(answer.SerializeToString())
    return parts


def reply(request: InferRequest, form: Form, response: InferResponse) -> Reply:
    """Return the answer to a request of a form; see :func:`encode`."""
    return Reply(encode(request, form, response))


def _walk(message: Buffer) -> Content:
    """Read a message with one tensor of packed values, by where its fields lie."""
    meta = content = None
    for tag, start, end in _fields(message, 0, len(message)):
        if tag == _META and meta is None and end - start < _LONGEST_META:
            meta = message[start:end]
        elif tag == _DATA and content is None:
            content = _data(message, start, end)
        else:
            raise _Unusual
    if content is None:
        raise _Unusual
    if meta is not None:
        _read_meta(content, parsed(messages.Meta, meta))
    return content


def _data(message: Buffer, start: int, end: int) -> Content:
    names: list[str] = []
    tensor = None
    for tag, first, last in _fields(message, start, end):
        if tag == _NAMES and len(names) < _MOST_NAMES:
            names.append(str(message[first:last], "utf-8"))
        elif tag == _TENSOR and tensor is None:
            tensor = _tensor(message, first, last)
        else:
            raise _Unusual
    if tensor is None:
        raise _Unusual
    return Content(Form.TENSOR, tensor, names)


def _tensor(message: Buffer, start: int, end: int) -> Array:
    shape: list[int] | None = None
    values: Array | None = None
    for tag, first, last in _fields(message, start, end):
        if tag == _SHAPE and shape is None:
            shape = []
            at = first
            while at < last:
                dimension, at = read_length(message, at)
                shape.append(dimension)
        elif tag == _VALUES and values is None and not (last - first) % 8:
            values = np.ndarray(((last - first) // 8,), "<f8", message, first)
        else:
            raise _Unusual
    return shaped(np.empty(0) if values is None else values, shape or [])


def _fields(message: Buffer, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield the tag of each field that has a length, and where it begins and ends."""
    while at < end:
        tag = message[at]
        if tag & 0x87 != 2:
            raise _Unusual
        size, start = read_length(message, at + 1)
        at = start + size
        if at > end:
            raise _Unusual
        yield tag, start, at


def shaped(values: Array, shape: list[int]) -> Array:
    """Return ``values`` in the shape of the message; without one they are a row of it."""
    if not shape:
        return values
    if len(shape) > MAX_RANK or min(shape) < 0:
        raise InvalidInput(
            f"the shape {shape[: MAX_RANK + 1]} of the tensor cannot be: send at most {MAX_RANK} "
            "dimensions, none of them negative"
        )
    if element_count(tuple(shape)) != len(values):
        raise InvalidInput(
            f"the tensor has {len(values)} values, but its shape {shape} takes "
            f"{element_count(tuple(shape))}; send the shape of the data"
        )
    return values.reshape(shape)


def _parse(message: Buffer, limit: int) -> Content:
    """Read a message however it is laid out."""
    _check(message, _MESSAGE)
    sent = parsed(messages.SeldonMessage, message)
    kind = sent.WhichOneof("data_oneof")
    if kind == "data":
        data = sent.data
        written = data.WhichOneof("data_oneof")
        if written == "tensor":
            values = np.array(data.tensor.values, np.float64)
            content = Content(Form.TENSOR, shaped(values, list(data.tensor.shape)))
        elif written == "ndarray":
            content = Content(Form.NDARRAY, array_of(_plain(data.ndarray)))
        elif written == "tftensor":
            content = Content(Form.TFTENSOR, tensor_of("data", data.tftensor, limit).data)
        else:
            raise InvalidInput("the message's data have no tensor, ndarray or tftensor: send one")
        content.names = list(data.names)
    elif kind is None:
        raise InvalidInput("the message has no data: send data, binData, strData or jsonData")
    elif kind == "jsonData":
        content = Content(Form.JSON, _plain(sent.jsonData))
    else:
        content = Content(Form(kind), getattr(sent, kind))
    _read_meta(content, sent.meta)
    return content


def _check(message: Buffer, tree: Tree) -> None:
    """Refuse a message of too many fields, or too deep ones, before it is parsed."""
    try:
        check_message(message, tree)
    except RecursionError:
        raise InvalidInput("the message is nested too deep: send an array") from None


def _read_meta(content: Content, meta: Any) -> None:
    content.puid = meta.puid
    if meta.tags:
        content.tags = {key: _plain(value) for key, value in meta.tags.items()}


def _plain(value: Any) -> Json:
    """Return a ``Value`` or ``ListValue`` as JSON."""
    if value.DESCRIPTOR.name == "ListValue":
        return [_plain(element) for element in value.values]
    kind = value.WhichOneof("kind")
    if kind == "list_value":
        return [_plain(element) for element in value.list_value.values]
    if kind == "struct_value":
        return {key: _plain(element) for key, element in value.struct_value.fields.items()}
    if kind in (None, "null_value"):
        return None
    found: Json = getattr(value, kind)
    return found


def _meta(puid: str, tags: Mapping[str, Json]) -> bytes:
    answer = messages.SeldonMessage()
    answer.meta.puid = puid
    for key, value in tags.items():
        _write(answer.meta.tags[key], value)
    return bytes(answer.SerializeToString())


def _payload(payload: bytes | str | Json) -> bytes:
    answer = messages.SeldonMessage()
    if isinstance(payload, bytes):
        answer.binData = payload
    elif isinstance(payload, str):
        answer.strData = payload
    elif isinstance(payload, list):
        # As Seldon answers with a list.
        for item in payload:
            _write(answer.data.ndarray.values.add(), item)
        answer.data.ndarray.SetInParent()
    else:
        _write(answer.jsonData, payload)
    return bytes(answer.SerializeToString())


def _write(into: Any, value: Json) -> None:
    """Put JSON into a ``Value``."""
    if value is None:
        into.null_value = 0
    elif isinstance(value, bool):
        into.bool_value = value
    elif isinstance(value, int | float):
        into.number_value = value
    elif isinstance(value, str):
        into.string_value = value
    elif isinstance(value, list):
        into.list_value.SetInParent()
        for element in value:
            _write(into.list_value.values.add(), element)
    elif isinstance(value, dict):
        into.struct_value.SetInParent()
        for key, element in value.items():
            _write(into.struct_value.fields[key], element)
    else:
        raise InferenceFailed(
            f"the model answered with a {type(value).__name__}, which is no JSON; let it return "
            "text, bytes, tensors or JSON"
        )


def texts(data: Any) -> Any:
    """Return nested lists with texts for bytes.

    Raises:
        InvalidInput: bytes are no text.
    """
    if isinstance(data, dict):
        return {key: texts(value) for key, value in data.items()}
    if isinstance(data, list):
        return [texts(element) for element in data]
    if not isinstance(data, bytes):
        return data
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InvalidInput(
            "the model answered with bytes that are no text, which an array of this protocol "
            "cannot hold: ask for a tftensor, by sending one"
        ) from error
