"""What people send, made to fit what a model takes."""

from __future__ import annotations

import base64
import binascii
import io
import itertools
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from tidegate.errors import InvalidInput, RuntimeMissing, Unsupported, UnsupportedContent
from tidegate.protocols.fitting import fit_element, fit_numbers
from tidegate.protocols.npy import NPY, array_tensor, read_npy
from tidegate.protocols.open_inference.json_data import from_json
from tidegate.protocols.open_inference.tensors import (
    MAX_RANK,
    object_array,
    shown,
)
from tidegate.protocols.pictures import PictureInput
from tidegate.protocols.plain_http.fields import Content
from tidegate.types import Array, DType, Json, Signature, Tensor, TensorSpec

ALIASES = ("data", "image", "file", "text")
"""What the field of the only input may be called as well."""
JSON_INPUT = "json"
"""The input of one BYTES element that is a JSON document as a whole: that of hooks."""
WHITE = "white"
"""The query's parameter that says what a white pixel is to the model."""
_ORDER = {"u": 0, "i": 0, "f": 1, "V": 1}
"""Kinds of numpy types: each can become those of its number or of a greater one."""
MOST_PIXELS = 4_200_000
"""2,048 x 2,048, of an image that is decoded here: nothing else is answered meanwhile."""


class Sent(NamedTuple):
    """What goes into a request."""

    inputs: tuple[Tensor, ...] = ()
    payload: bytes | str | Json = None


def fit(sent: Content | Mapping[str, Content], signature: Signature, white: float | None) -> Sent:
    """Return what was sent as what the model takes.

    ``white`` is the value of a white pixel, for an input of floating-point numbers.

    Raises:
        InvalidInput: it does not fit.
        UnsupportedContent: it is of a kind that this model does not take.
        Unsupported: it is an image, and the server cannot read any.
    """
    specs = signature.inputs
    if isinstance(sent, Content):
        if not sent.data:
            raise InvalidInput(f"the body is empty: {_how(specs)}")
        if not specs:
            return _anything(sent)
        return Sent(_of_body(sent, specs, white))
    if not sent:
        raise InvalidInput(f"the form is empty: {_how(specs)}")
    if not specs:
        return _of_any_form(sent)
    return Sent(_of_form(sent, specs, white))


def _anything(content: Content) -> Sent:
    """Return a value for hooks that have not said what they take."""
    if content.kind.json:
        return Sent(payload=content.document())
    if content.kind.text or not content.file:
        return Sent(payload=content.text())
    return Sent(payload=content.data)


def _of_any_form(fields: Mapping[str, Content]) -> Sent:
    if len(fields) == 1:
        return _anything(next(iter(fields.values())))
    return Sent(
        tuple(
            Tensor(name, DType.BYTES, object_array([content.data], (1,)))
            for name, content in fields.items()
        )
    )


def _of_form(
    fields: Mapping[str, Content], specs: tuple[TensorSpec, ...], white: float | None
) -> tuple[Tensor, ...]:
    if len(specs) == 1 and len(fields) == 1:
        (name,) = fields
        if name in ALIASES or name == specs[0].name:
            return (_tensor(specs[0], fields[name], white),)
    names = [spec.name for spec in specs]
    for name in fields:
        if name not in names:
            raise InvalidInput(f"the model has no input {shown(name)}: {_how(specs)}")
    for name in names:
        if name not in fields:
            raise InvalidInput(f"the input {name!r} is missing: {_how(specs)}")
    return tuple(_tensor(spec, fields[spec.name], white) for spec in specs)


def _of_body(
    content: Content, specs: tuple[TensorSpec, ...], white: float | None
) -> tuple[Tensor, ...]:
    only = specs[0] if len(specs) == 1 else None
    if only is not None and _takes_document(only):
        return (fit_element(content.data, only),)
    if content.kind.json:
        document = content.document()
        if isinstance(document, dict) and document.keys() == {spec.name for spec in specs}:
            return tuple(_of_json(spec, document[spec.name]) for spec in specs)
        if only is not None and (not isinstance(document, dict) or document.keys() == {"b64"}):
            return (_of_json(only, document),)
        raise InvalidInput(f"the JSON document is {shown(document)}: {_how(specs)}")
    if only is None:
        raise UnsupportedContent(f"one value does not do: {_how(specs)}")
    return (_tensor(only, content, white),)


def _tensor(spec: TensorSpec, content: Content, white: float | None) -> Tensor:
    """Return one value as one input."""
    if spec.dtype is not DType.BYTES:
        return _numbers(spec, content, white)
    if _takes_document(spec) or (not content.kind.json and single(spec)):
        data = content.data
        if content.kind.text and content.kind.charset not in ("utf-8", "utf8", "us-ascii"):
            data = content.text().encode()
        return fit_element(data, spec)
    return _of_json(spec, content.document())


def _numbers(spec: TensorSpec, content: Content, white: float | None) -> Tensor:
    data = content.data
    if data.startswith(NPY):
        array = read_npy("the file", io.BytesIO(data), len(data))
        return _cast(spec, array_tensor(spec.name, array))
    if content.kind.image or is_image(data):
        return _picture(spec, data, white)
    if content.kind.name.startswith(("audio/", "video/")) or data[:64].count(0):
        raise UnsupportedContent(
            f"the input {spec.name!r} takes numbers ({spec.dtype.value}), and this is "
            f"{content.kind.name or 'a file'}: send JSON or an .npy file, or give the model a "
            "hooks.py that reads such files"
        )
    return _of_json(spec, content.document())


def _picture(spec: TensorSpec, data: bytes, white: float | None) -> Tensor:
    takes = PictureInput.of(spec)
    if takes is None:
        raise UnsupportedContent(
            f"the input {spec.name!r} takes numbers ({spec.dtype.value} {list(spec.wire_shape)}), "
            "and this is an image: send JSON or an .npy file, or let preprocess in model.yaml, "
            "or hooks.py, read images"
        )
    if white is None and not takes.whole:
        raise InvalidInput(
            f"the input {spec.name!r} takes pixels as {spec.dtype.value}, and the model does not "
            f"say in which range: add ?{WHITE}=1 to the address if a white pixel is 1 to it "
            f"(or ?{WHITE}=255), or let preprocess in model.yaml, or hooks.py, prepare images"
        )
    try:
        return takes.tensor(data, None if white is None else white / 255, MOST_PIXELS)
    except RuntimeMissing as error:
        raise Unsupported(f"{error}, where the server runs") from None


def _of_json(spec: TensorSpec, document: Json) -> Tensor:
    if spec.dtype is DType.BYTES:
        return Tensor(spec.name, spec.dtype, _ranked(_texts(spec, document), spec))
    shape: list[int] = []
    level: Json = document
    while isinstance(level, list):
        shape.append(len(level))
        level = level[0] if level else None
    elements = document if isinstance(document, list) else [document]
    array = from_json(spec.name, spec.dtype, tuple(shape), elements)
    return Tensor(spec.name, spec.dtype, _ranked(array, spec))


def _texts(spec: TensorSpec, document: Json) -> Array:
    """Return texts, or bytes as ``{"b64": …}``, in lists of one length at each depth."""
    shape: list[int] = []
    level: list[Json] = [document]
    while level and isinstance(level[0], list):
        length = len(level[0])
        rows = [row for row in level if isinstance(row, list) and len(row) == length]
        if len(rows) != len(level) or len(shape) == MAX_RANK:
            raise InvalidInput(
                f"the lists of the input {spec.name!r} are not of one length at each depth, or "
                f"more than {MAX_RANK} deep"
            )
        shape.append(length)
        level = list(itertools.chain.from_iterable(rows))
    return object_array([_text(spec, element) for element in level], tuple(shape))


def _text(spec: TensorSpec, element: Json) -> bytes:
    if isinstance(element, str):
        return element.encode()
    if isinstance(element, dict) and element.keys() == {"b64"}:
        content = element["b64"]
        try:
            if isinstance(content, str):
                return base64.b64decode(content, validate=True)
        except (binascii.Error, ValueError):
            pass
        raise InvalidInput(f"what b64 holds for the input {spec.name!r} is no base64")
    raise InvalidInput(
        f'the input {spec.name!r} takes texts, or bytes as {{"b64": …}}, not {shown(element)}'
    )


def _cast(spec: TensorSpec, tensor: Tensor) -> Tensor:
    """Return an array with the type of an input, if no value is lost but digits."""
    array, wanted = tensor.data, spec.dtype.numpy
    if tensor.dtype is not spec.dtype:
        if _ORDER.get(array.dtype.kind, 2) > _ORDER.get(wanted.kind, -1):
            raise InvalidInput(
                f"the input {spec.name!r} takes {spec.dtype.value}, and the file holds "
                f"{tensor.dtype.value}"
            )
        array = fit_numbers(array, spec)
    return Tensor(spec.name, spec.dtype, _ranked(array, spec))


def _ranked(array: Array, spec: TensorSpec) -> Array:
    """Return ``array`` as a batch of one if it lacks the batch alone."""
    shape = spec.shape
    if shape and array.ndim == len(shape) - 1 and (shape[0] == 1 or not isinstance(shape[0], int)):
        array = array[np.newaxis]
    return np.require(array, requirements="C")


def single(spec: TensorSpec) -> bool:
    """Whether one element alone can be this input."""
    return all(size == 1 for size in spec.shape or () if isinstance(size, int))


def _takes_document(spec: TensorSpec) -> bool:
    return spec.name == JSON_INPUT and spec.dtype is DType.BYTES and spec.shape == (1,)


_IMAGES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*")


def is_image(data: bytes) -> bool:
    """Whether a file begins as an image does."""
    return data.startswith(_IMAGES) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")


def _how(specs: tuple[TensorSpec, ...]) -> str:
    if not specs:
        return "send a file with curl -F data=@FILE, a text, or JSON"
    listed = ", ".join(f"{s.name!r} {s.dtype.value} {list(s.wire_shape)}" for s in specs[:16])
    if len(specs) == 1:
        return f"send its input {listed} as the field 'data' of a form, as the body, or in JSON"
    return f"send a form with the fields, or a JSON object with the keys, {listed}"
