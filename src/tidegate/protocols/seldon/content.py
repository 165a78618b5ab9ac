"""What a ``SeldonMessage`` says, whichever way it was written, and what it asks of a model.

Source: ``prediction.proto`` and the Python wrapper of Seldon Core 1.x
(https://docs.seldon.io/projects/seldon-core/en/v1/): an array without type, bytes, a text or a
JSON document. An answer comes in the form of the request: a tensor for a tensor, an ndarray for an
ndarray.
"""

from __future__ import annotations

import enum
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

from tidegate.protocols.dialect import ModelView
from tidegate.protocols.unnamed import fit_array, fit_bytes, fit_json
from tidegate.types import NO_PARAMETERS, Array, InferRequest, InferResponse, Json, Tensor


class Form(enum.Enum):
    """How the data of a message are written: the names of its fields."""

    TENSOR = "tensor"
    NDARRAY = "ndarray"
    TFTENSOR = "tftensor"
    BYTES = "binData"
    TEXT = "strData"
    JSON = "jsonData"


@dataclass(slots=True)
class Content:
    """A message. ``data`` is an array in the first three forms, else bytes, a text or JSON."""

    form: Form
    data: Array | bytes | str | Json
    names: Sequence[str] = ()
    puid: str = ""
    tags: Mapping[str, Json] = field(default_factory=lambda: NO_PARAMETERS)


def request_of(content: Content, model: ModelView) -> InferRequest:
    """Return what a message asks of ``model``.

    Raises:
        InvalidInput: the model takes something else.
    """
    request = InferRequest(
        model.metadata.name, id=content.puid or uuid.uuid4().hex, tags=content.tags
    )
    signature, data = model.metadata.signature, content.data
    if model.takes_payload and content.form in (Form.BYTES, Form.TEXT, Form.JSON):
        request.payload = cast("bytes | str | Json", data)
    elif content.form is Form.BYTES:
        assert isinstance(data, bytes)
        request.inputs = fit_bytes(data, signature)
    elif content.form is Form.TEXT:
        assert isinstance(data, str)
        request.inputs = fit_bytes(data.encode(), signature)
    elif content.form is Form.JSON:
        request.inputs = fit_json(cast("Json", data), signature)
    else:
        request.inputs = fit_array(cast("Array", data), content.names, signature)
    return request


def answer_form(asked: Form, tensor: Tensor) -> Form:
    """Return the form of an array in the answer to a message of the form ``asked``."""
    if asked is Form.TFTENSOR:
        return asked
    if tensor.data.dtype.kind == "O":
        return Form.NDARRAY
    return asked if asked in (Form.TENSOR, Form.NDARRAY) else Form.TENSOR


def answer_tags(request: InferRequest, response: InferResponse) -> dict[str, Json]:
    """Return the tags of an answer: those of the request, and what the model says beside them."""
    return {**request.tags, **response.tags}
