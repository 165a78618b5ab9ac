"""From what a person or a pipe gives to a request: JSON, numpy's files, images, raw bytes."""

from __future__ import annotations

import io
import os
import threading
import zipfile
import zlib
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from tidegate.errors import InvalidInput, MessageTooLarge
from tidegate.images import FORMATS, NotAnImage
from tidegate.protocols.npy import NPY, array_tensor, read_npy
from tidegate.protocols.open_inference.json_data import from_json
from tidegate.protocols.open_inference.rest import decode_infer
from tidegate.protocols.open_inference.tensors import checked_shape, from_raw, object_array, shown
from tidegate.protocols.pictures import picture_input
from tidegate.types import (
    KINDS,
    DType,
    InferRequest,
    Signature,
    Tensor,
    TensorSpec,
    element_count,
)

_LARGEST_FILE = 2**31 - 2**20
"""Bytes: more than any message may have."""
_BROKEN_ARCHIVE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,  # compressed in an unknown way
    OSError,
    RuntimeError,  # encrypted
)
_LARGE = 2**20
_one_large = threading.Lock()
"""While numbers in JSON are parsed, they take twenty times the memory of their text."""
_ZIP = b"PK\x03\x04"


@dataclass(frozen=True, slots=True)
class Reader:
    """Makes requests for one model.

    ``raw`` takes files as the bytes of the only input; ``scale`` is what the values of an
    image are multiplied with (``None``: 1/255 for a floating-point input, else 1).
    """

    model: str
    signature: Signature
    raw: bool = False
    scale: float | None = None

    def line(self, line: bytes) -> InferRequest:
        """Return the request of one line: JSON, or the name of a file.

        Raises:
            InvalidInput: it is neither, or does not make a request for this model.
            MessageTooLarge: the file is too large.
        """
        text = line.strip()
        if text[:1] in (b"{", b"[") and not self.raw:
            return self.json(text)
        return self.file(os.fsdecode(text))

    def json(self, text: bytes) -> InferRequest:
        """Return the request in JSON.

        It is a request of the Open Inference Protocol, an object of the inputs by name, or
        the list that is the only input. Elements have the types that the model declares.

        Raises:
            InvalidInput: it is not.
        """
        with _one_large if len(text) > _LARGE else nullcontext():
            return self._parsed(text)

    def _parsed(self, text: bytes) -> InferRequest:
        try:
            document = orjson.loads(text)
        except orjson.JSONDecodeError as error:
            hint = "; write null for NaN" if b"NaN" in text or b"Infinity" in text else ""
            raise InvalidInput(f"this is not JSON: {error}{hint}") from None
        if _is_protocol(document):
            del document
            return decode_infer(self.model, "", text)
        value = self._value(document)
        if value is not None:
            return self._request((value,))
        if isinstance(document, list):
            document = {self._only("a list").name: document}
        if not isinstance(document, dict):
            raise InvalidInput(f"{shown(document)} is no input; give an object or a list")
        specs = {spec.name: spec for spec in self.signature.inputs}
        return self._request(tuple(_of_json(name, data, specs) for name, data in document.items()))

    def file(self, name: str) -> InferRequest:
        """Return the request in a file: raw bytes, ``.npy``, ``.npz``, JSON or an image.

        What it is is told by its content, not by its name.

        Raises:
            InvalidInput: it cannot be read, or does not make a request for this model.
            MessageTooLarge: it is too large.
            RuntimeMissing: it is an image, and the extra for images is not installed.
        """
        data = _read(name)
        if self.raw:
            return self._request((_of_raw(self._only("raw bytes"), data),))
        kind = self._kind()
        if kind is not None and not data.startswith((NPY, _ZIP)):
            return self._request((_element(kind, data),))
        if data.startswith(NPY):
            spec = self._only("a single array")
            return self._request(
                (array_tensor(spec.name, read_npy(name, io.BytesIO(data), len(data))),)
            )
        if data.startswith(_ZIP):
            return self._request(_of_archive(name, data))
        if data.lstrip()[:1] in (b"{", b"["):
            return self.json(data)
        return self._request((self._image(name, data),))

    def _image(self, name: str, data: bytes) -> Tensor:
        takes = picture_input(self._only("an image"))
        try:
            return takes.tensor(data, self.scale)
        except NotAnImage:
            raise InvalidInput(
                f"{shown(name)} is neither JSON, .npy, .npz nor an image ({', '.join(FORMATS)}); "
                "give --raw if it holds the bytes of the input"
            ) from None
        except InvalidInput as error:
            raise InvalidInput(f"{shown(name)}: {error}") from None

    def _kind(self) -> str | None:
        """Return what hooks take in the place of tensors, as an image; ``bytes`` if anything."""
        inputs = self.signature.inputs
        if not inputs:
            return "bytes"
        (spec, *more) = inputs
        if more or spec.dtype is not DType.BYTES or spec.name not in KINDS:
            return None
        return spec.name if spec.wire_shape in ((1,), (-1,)) else None

    def _value(self, document: Any) -> Tensor | None:
        """Return JSON that is itself what hooks take, and does not name an input."""
        kind = self._kind()
        if kind is None or (isinstance(document, dict) and document.keys() == {kind}):
            return None
        if kind == "text":
            return _element(kind, document.encode()) if isinstance(document, str) else None
        if kind == "json" or not self.signature.inputs:
            return _element("json", orjson.dumps(document))
        return None

    def _only(self, what: str) -> TensorSpec:
        if len(self.signature.inputs) != 1:
            names = ", ".join(repr(spec.name) for spec in self.signature.inputs) or "none"
            raise InvalidInput(
                f"{what} was given, but the model {self.model!r} has "
                f"{len(self.signature.inputs)} inputs ({names}); give them by name, in JSON or an "
                ".npz file"
            )
        return self.signature.inputs[0]

    def _request(self, tensors: tuple[Tensor, ...]) -> InferRequest:
        return InferRequest(self.model, inputs=tensors)


def _element(name: str, data: bytes) -> Tensor:
    return Tensor(name, DType.BYTES, object_array([data], (1,)))


def _is_protocol(document: object) -> bool:
    """Whether JSON is a request of the protocol, and not inputs by name with one of "inputs"."""
    inputs = document.get("inputs") if isinstance(document, dict) else None
    return (
        isinstance(inputs, list)
        and bool(inputs)
        and all(isinstance(item, dict) and "name" in item for item in inputs)
    )


def _of_json(name: str, data: Any, specs: Mapping[str, TensorSpec]) -> Tensor:
    if name not in specs:
        takes = ", ".join(map(repr, specs))
        raise InvalidInput(f"the model has no input {name!r}: it takes {takes}")
    shape, level = [], data
    while isinstance(level, list):
        shape.append(len(level))
        level = level[0] if level else None
    dtype = specs[name].dtype
    found = from_json(name, dtype, tuple(shape), data if isinstance(data, list) else [data])
    return Tensor(name, dtype, found)


def _of_raw(spec: TensorSpec, data: bytes) -> Tensor:
    """Return the tensor of ``spec`` whose elements are ``data``.

    One dynamic dimension is told by the length; of several, the first is taken as the batch,
    which is 1. A BYTES input is one element.
    """
    if spec.shape is None:
        raise InvalidInput(f"the input {spec.name!r} has any rank: raw bytes do not tell a shape")
    shape = list(spec.wire_shape)
    if spec.dtype.itemsize is None:
        whole = tuple(1 if d < 0 else d for d in shape)
        if element_count(whole) != 1:
            raise InvalidInput(
                f"the input {spec.name!r} has the shape {shape}: raw bytes are one element"
            )
        return Tensor(spec.name, spec.dtype, object_array([data], whole))
    if shape.count(-1) > 1 and shape[0] == -1:
        shape[0] = 1
    if shape.count(-1) > 1:
        raise InvalidInput(
            f"the input {spec.name!r} has the shape {list(spec.wire_shape)}: raw bytes do "
            "not tell so many dynamic dimensions; give an .npy file"
        )
    if -1 in shape:
        row = spec.dtype.itemsize * element_count(tuple(d for d in shape if d >= 0))
        shape[shape.index(-1)] = len(data) // row if row else 0
    return from_raw(spec.name, spec.dtype, checked_shape(spec.name, shape), data)


def _of_archive(name: str, data: bytes) -> tuple[Tensor, ...]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            size = sum(member.file_size for member in members)
            if size > _LARGEST_FILE:
                raise MessageTooLarge(f"{shown(name)} holds {size} bytes; {_LARGEST_FILE} at most")
            tensors = []
            for member in members:
                with archive.open(member) as file:
                    array = read_npy(f"{name}:{member.filename}", file, member.file_size)
                tensors.append(array_tensor(member.filename.removesuffix(".npy"), array))
            return tuple(tensors)
    except (
        zipfile.BadZipFile,
        NotImplementedError,
        RuntimeError,
        EOFError,
        OSError,
        zlib.error,
    ) as error:
        raise InvalidInput(f"{shown(name)} is not an .npz file: {error}") from None


def _read(name: str) -> bytes:
    try:
        with Path(name).open("rb") as file:
            return _bounded(name, file)
    except OSError as error:
        hint = "; a request in JSON goes with --data" if name[:1] in ("{", "[") else ""
        raise InvalidInput(
            f"the file {shown(name)} cannot be read: {error.strerror}{hint}"
        ) from None
    except ValueError as error:
        raise InvalidInput(f"{shown(name)} cannot be the name of a file: {error}") from None


def _bounded(name: str, file: BinaryIO) -> bytes:
    data = file.read(_LARGEST_FILE + 1)
    if len(data) > _LARGEST_FILE:
        raise MessageTooLarge(f"the file {shown(name)} is larger than {_LARGEST_FILE} bytes")
    return data
