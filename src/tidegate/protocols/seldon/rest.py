"""Seldon's messages over REST: JSON, or a form with a field ``json``, to domain types and back."""

from __future__ import annotations

import base64
import binascii
import functools
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
import orjson
from google.protobuf import json_format

from tidegate.errors import InferenceFailed, InvalidInput, MethodNotAllowed, MethodNotFound
from tidegate.protocols.dialect import Inference, ModelView, Reply, RestCall
from tidegate.protocols.open_inference.bounds import check_document
from tidegate.protocols.open_inference.tensors import shown
from tidegate.protocols.seldon.content import (
    Content,
    Form,
    answer_form,
    answer_tags,
    request_of,
)
from tidegate.protocols.seldon.grpc import shaped, texts
from tidegate.protocols.tensorflow_serving.messages import TensorProto
from tidegate.protocols.tensorflow_serving.tensors import tensor_of, write_tensor
from tidegate.protocols.unnamed import array_of, plain
from tidegate.types import Array, InferRequest, InferResponse

PREDICTIONS = ("/api/v1.0/predictions", "/api/v0.1/predictions", "/predict")
FEEDBACK = ("/api/v1.0/feedback", "/api/v0.1/feedback", "/send-feedback")
DEPLOYMENT = "/seldon/"
"""Before a name space, a slash and the model's name."""
_FORM = b"application/x-www-form-urlencoded"
_FORMS = frozenset(form.value for form in Form) | {"data"}


def read_call(call: RestCall, model: ModelView) -> Inference | Reply:
    """Read a call over REST.

    Raises:
        MethodNotFound: there is no such path.
        MethodNotAllowed: it is called with another method.
        InvalidInput: it is malformed, or not what the model takes.
    """
    path = call.path
    if path.startswith(DEPLOYMENT):
        path = "/" + path.split("/", 4)[-1]
    if path in FEEDBACK:
        _expect_post(call)
        _document(call)
        return Reply((b"{}",))
    if path not in PREDICTIONS:
        raise MethodNotFound(f"there is no path {call.path} here: see {PREDICTIONS[0]}")
    if call.method != "GET" or path != "/predict":
        _expect_post(call)
    content = decode(_document(call), model.limit)
    request = request_of(content, model)
    return Inference(request, functools.partial(_reply, request, content.form))


def decode(document: Mapping[str, Any], limit: int) -> Content:
    """Return what a ``SeldonMessage`` in JSON says.

    Raises:
        InvalidInput: it is malformed, or has no data.
    """
    given = [key for key in document if key in _FORMS]
    if len(given) != 1:
        raise InvalidInput(
            f"the message has {' and '.join(given) or 'no data'}: send one of data, binData, "
            "strData and jsonData"
        )
    (key,) = given
    value = document[key]
    if key == "data":
        content = _data(value, limit)
    elif key == Form.JSON.value:
        content = Content(Form.JSON, value)
    elif not isinstance(value, str):
        raise InvalidInput(f"{key!r} is {shown(value)}; send a string")
    else:
        content = Content(Form(key), value if key == Form.TEXT.value else _bytes(value))
    meta = document.get("meta") or {}
    if not isinstance(meta, dict):
        raise InvalidInput(f"'meta' is {shown(meta)}; send an object")
    puid, tags = meta.get("puid", ""), meta.get("tags") or {}
    if not isinstance(puid, str) or not isinstance(tags, dict):
        raise InvalidInput("'meta' has a puid that is no string, or tags that are no object")
    content.puid, content.tags = puid, tags
    return content


def encode(request: InferRequest, form: Form, response: InferResponse) -> bytes:
    """Return the JSON document that answers a request of a form.

    Raises:
        InferenceFailed: the model's answer is nothing that can be sent.
        InvalidInput: another form could hold it.
    """
    answer: dict[str, Any] = {
        "status": {"code": 200, "status": "SUCCESS"},
        "meta": {
            "puid": response.id or request.id,
            "tags": answer_tags(request, response),
        },
    }
    payload = response.payload
    if isinstance(payload, bytes):
        answer[Form.BYTES.value] = base64.b64encode(payload).decode()
    elif isinstance(payload, list):
        answer["data"] = {"ndarray": payload}
    elif payload is not None:
        answer[(Form.TEXT if isinstance(payload, str) else Form.JSON).value] = payload
    else:
        arrays = plain(response.outputs)
        if len(response.outputs) == 1:
            answer["data"] = _written(answer_form(form, response.outputs[0]), response, arrays)
        else:
            answer[Form.JSON.value] = {name: _writable(one) for name, one in arrays.items()}
    try:
        return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS)
    except TypeError as error:
        raise InferenceFailed(
            f"the model answered with what is no JSON: {error}; let it return text, bytes, "
            "tensors or JSON"
        ) from error


def encode_error(status: int, message: str) -> bytes:
    """Return the JSON document that answers with an error."""
    said = {"code": status, "info": message, "reason": "", "status": "FAILURE"}
    try:
        return orjson.dumps({"status": said})
    except TypeError:  # no UTF-8
        return orjson.dumps({"status": {**said, "info": "?"}})


def _reply(request: InferRequest, form: Form, response: InferResponse) -> Reply:
    return Reply((encode(request, form, response),))


def _expect_post(call: RestCall) -> None:
    if call.method != "POST":
        raise MethodNotAllowed(f"{call.path} takes POST, not {call.method}", ("POST",))


def _document(call: RestCall) -> Mapping[str, Any]:
    """Return the message in the body, in the field ``json`` of a form, or in the query."""
    body = call.body
    if call.method == "GET":
        body = _field(call.query.encode("latin-1"))
    elif call.headers.get(b"content-type", b"").startswith(_FORM) and body[:1] not in b"{[":
        # What begins with a brace is a document that "curl -d" calls a form.
        body = _field(body)
    check_document(body)
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidInput(f"the body is not JSON: {error}; send a SeldonMessage") from error
    if not isinstance(document, dict):
        raise InvalidInput(f"the body is {shown(document)}; send a SeldonMessage, an object")
    return document


def _field(form: bytes) -> bytes:
    try:
        fields = dict(parse_qsl(form, keep_blank_values=True, max_num_fields=16))
    except ValueError as error:
        raise InvalidInput(f"the form cannot be read: {error}") from error
    if b"json" not in fields:
        raise InvalidInput("the form has no field 'json': put a SeldonMessage there")
    return fields[b"json"]


def _data(data: object, limit: int) -> Content:
    kinds = (Form.TENSOR, Form.NDARRAY, Form.TFTENSOR)
    given = [form for form in kinds if isinstance(data, dict) and form.value in data]
    if not isinstance(data, dict) or len(given) != 1:
        raise InvalidInput(
            f"'data' is {shown(data)}; send an object with one of tensor, ndarray and tftensor"
        )
    (form,) = given
    value, names = data[form.value], data.get("names") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InvalidInput(f"'names' is {shown(names)}; send a list of strings")
    if form is Form.TENSOR:
        array = _tensor(value)
    elif form is Form.NDARRAY:
        if not isinstance(value, list):
            raise InvalidInput(f"'ndarray' is {shown(value)}; send nested lists")
        array = array_of(value)
    else:
        try:
            proto = json_format.ParseDict(value, TensorProto(), max_recursion_depth=16)
        except (json_format.ParseError, AttributeError, TypeError) as error:
            raise InvalidInput(f"'tftensor' is no TensorProto: {error}") from error
        array = tensor_of("data", proto, limit).data
    return Content(form, array, names)


def _tensor(value: object) -> Array:
    if not isinstance(value, dict) or not isinstance(value.get("values"), list):
        raise InvalidInput(f"'tensor' is {shown(value)}; send an object with shape and values")
    shape = value.get("shape") or []
    if not isinstance(shape, list) or not all(type(one) is int for one in shape):
        raise InvalidInput(f"the shape {shown(shape)} is no list of integers")
    values = array_of(value["values"])
    if values.ndim != 1 or values.dtype.kind == "O":
        raise InvalidInput("the values of a tensor are a flat list of numbers; nest an ndarray")
    return shaped(values, shape)


def _bytes(value: str) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidInput(f"'binData' is no base64: {error}") from error


def _writable(array: Array) -> Any:
    """Return what orjson can write; it would write ``null`` for what is infinite."""
    if array.dtype.kind == "O":
        return texts(array.tolist())
    if array.dtype.kind == "f" and np.isinf(array).any():
        raise InvalidInput(
            "the answer has an infinite element, which JSON has no number for: call over gRPC"
        )
    return np.ascontiguousarray(array)


def _written(form: Form, response: InferResponse, arrays: Mapping[str, Array]) -> dict[str, Any]:
    (array,) = arrays.values()
    if form is Form.TENSOR:
        return {"tensor": {"shape": list(array.shape), "values": _writable(array).reshape(-1)}}
    if form is Form.NDARRAY:
        return {"ndarray": _writable(array)}
    proto = TensorProto.FromString(b"".join(write_tensor(response.outputs[0])))
    return {"tftensor": json_format.MessageToDict(proto)}
