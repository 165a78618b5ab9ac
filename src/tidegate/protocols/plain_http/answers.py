"""What a model answers, in a form that people read."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson

from tidegate.errors import InferenceFailed
from tidegate.protocols.dialect import Reply
from tidegate.protocols.payloads import encoded
from tidegate.protocols.plain_http.headers import JSON, TEXT, prefers
from tidegate.types import Array, DType, InferResponse, Json, Tensor

_BINARY = "application/octet-stream"
NO_SNIFFING = (b"x-content-type-options", b"nosniff")
_STARTS = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"BM", "image/bmp"),
    (b"OggS", "audio/ogg"),
    (b"fLaC", "audio/flac"),
    (b"ID3", "audio/mpeg"),
    (b"\xff\xfb", "audio/mpeg"),
    (b"%PDF-", "application/pdf"),
    (b"PK\x03\x04", "application/zip"),
)
_RIFF = {b"WEBP": "image/webp", b"WAVE": "audio/wav"}
_SHOWN_INLINE = ("image/", "audio/")


def encode(response: InferResponse, accept: bytes) -> Reply:
    """Return the answer to whom ``accept`` says what is wanted.

    What hooks made is answered as it is: JSON as JSON, bytes as a file, a text as a JSON string,
    or as plain text to whom asks for that. Tensors are nested lists by name.

    Raises:
        InferenceFailed: hooks answered with what is no JSON.
    """
    payload = response.payload
    if isinstance(payload, bytes):
        return _file(payload)
    if isinstance(payload, str) and prefers(accept, TEXT, JSON):
        return Reply([encoded(payload)], b"text/plain; charset=utf-8", headers=(NO_SNIFFING,))
    if payload is None:
        document: dict[str, Any] = {"model": response.model, "version": response.version}
        document["outputs"] = {tensor.name: _listed(tensor) for tensor in response.outputs}
        if response.tags:
            document["tags"] = dict(response.tags)
        payload = document
    return Reply([_json(payload)], JSON.encode(), headers=(NO_SNIFFING,))


def media_type(data: bytes) -> str:
    """Return what a file is by how it begins; never what a browser would run."""
    if data[:4] == b"RIFF":
        return _RIFF.get(data[8:12], _BINARY)
    return next((kind for start, kind in _STARTS if data.startswith(start)), _BINARY)


def _file(data: bytes) -> Reply:
    kind = media_type(data)
    inline = kind.startswith(_SHOWN_INLINE)
    disposition = b"inline" if inline else b'attachment; filename="answer"'
    headers = ((b"content-disposition", disposition), NO_SNIFFING)
    return Reply([data], kind.encode(), headers=headers)


def _json(document: Json) -> bytes:
    try:
        return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    except (TypeError, ValueError) as error:
        raise InferenceFailed(
            f"the model answered with what is no JSON: {error}; let it return text, bytes, "
            "tensors or JSON"
        ) from error


def _listed(tensor: Tensor) -> Array | Sequence[Any]:
    """Return nested lists, or an array that becomes them; infinity and NaN become ``null``."""
    data = tensor.data
    if tensor.dtype is DType.BYTES:
        texts = np.empty(data.shape, np.object_)
        texts.reshape(-1)[:] = [_text(element) for element in data.reshape(-1).tolist()]
        found: Sequence[Any] = texts.tolist()
        return found
    if tensor.dtype is DType.BF16:
        with np.errstate(invalid="ignore"):
            data = data.astype(np.float32)
    return np.ascontiguousarray(data) if data.ndim else data.item()


def _text(element: bytes) -> str | dict[str, str]:
    try:
        return element.decode()
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(element).decode()}
