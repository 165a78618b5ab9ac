"""Reads the calls: ``POST`` runs the model, ``GET`` shows it."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from urllib.parse import parse_qsl

import orjson

from tidegate.errors import InvalidInput, MethodNotAllowed
from tidegate.protocols.dialect import Inference, ModelView, Reply, RestCall
from tidegate.protocols.open_inference.signature_name import signature_name
from tidegate.protocols.open_inference.tensors import checked_name, shown
from tidegate.protocols.plain_http import answers, page
from tidegate.protocols.plain_http.description import describe
from tidegate.protocols.plain_http.fields import read_body
from tidegate.protocols.plain_http.headers import (
    HTML,
    JSON,
    MediaType,
    authority,
    prefers,
    refuse_foreign_pages,
    scheme,
)
from tidegate.protocols.plain_http.inputs import WHITE, fit
from tidegate.protocols.plain_http.paths import read_path
from tidegate.types import InferRequest, Parameter, Signature

_METHODS = ("GET", "HEAD", "POST")
_MOST_PARAMETERS = 64
_INTEGERS = 2**63


def read(call: RestCall, model: ModelView) -> Inference | Reply:
    """Read a call.

    Raises:
        InvalidInput: what was sent does not fit the model, or the query is malformed.
        MethodNotFound: there is no such path.
        MethodNotAllowed: it is neither GET nor POST.
        PermissionDenied: a page of another site sends it.
        UnsupportedContent: the body is of a kind that the model does not take.
    """
    path = read_path(call.path)
    if call.method not in _METHODS:
        raise MethodNotAllowed(f"{call.path} takes GET and POST, not {call.method}", _METHODS)
    parameters = _parameters(call.query)
    name = signature_name(parameters)
    signature = _signature(model, name)
    accept = call.headers.get(b"accept", b"")
    if call.method != "POST":
        about = describe(model, path, name, signature)
        if prefers(accept, HTML, JSON):
            reply = page.model_page(about, authority(call.headers), scheme(call.headers))
        else:
            reply = Reply([orjson.dumps(about.document())], headers=((b"vary", b"accept"),))
        reply.model, reply.version = path
        return reply
    refuse_foreign_pages(call.headers)
    white = _white(parameters.pop(WHITE, None))
    kind = MediaType.of(call.headers.get(b"content-type", b""))
    sent = fit(read_body(call.body, kind), signature, white)
    request = InferRequest(
        path.model,
        path.version,
        inputs=sent.inputs,
        payload=sent.payload,
        parameters=parameters,
        signature=name,
    )
    return Inference(request, functools.partial(answers.encode, accept=accept))


def _signature(model: ModelView, name: str) -> Signature:
    if not name:
        return model.metadata.signature
    signatures: Mapping[str, Signature] = model.metadata.signatures
    if name not in signatures:
        known = ", ".join(map(repr, signatures))
        raise InvalidInput(f"the model has no signature {shown(name)}: it has {known}")
    return signatures[name]


def _parameters(query: str) -> dict[str, Parameter]:
    """Return the parameters in a query: texts, or what is a number or a truth in JSON."""
    try:
        pairs = parse_qsl(
            query, keep_blank_values=True, errors="strict", max_num_fields=_MOST_PARAMETERS
        )
    except ValueError as error:
        raise InvalidInput(f"the query is malformed: {error}") from None
    found: dict[str, Parameter] = {}
    for name, value in pairs:
        checked_name("a parameter", name)
        if name in found:
            raise InvalidInput(f"the parameter {shown(name)} is sent twice; send it once")
        found[name] = _value(value)
    return found


def _value(text: str) -> Parameter:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return text
    if isinstance(value, int) and not -_INTEGERS <= value < _INTEGERS:
        return text
    return value if isinstance(value, bool | int | float | str) else text


def _white(value: Parameter | None) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool | str) or not math.isfinite(value):
        raise InvalidInput(
            f"{WHITE} is {shown(value)}: send the value of a white pixel, as {WHITE}=1"
        )
    return float(value)
