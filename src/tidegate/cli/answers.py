"""An answer as JSON or as a table."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from tidegate.errors import InferenceFailed, TidegateError
from tidegate.protocols.open_inference.rest import encode_infer
from tidegate.protocols.payloads import PAYLOAD
from tidegate.types import Array, DType, InferRequest, InferResponse, Tensor

_SHOWN_ELEMENTS = 40


def encoded(response: InferResponse, form: str) -> bytes | Table | Text:
    """Return ``response`` as one line of JSON or as a table.

    Raises:
        InferenceFailed: an output has an infinite element, which JSON has no number for.
        InvalidInput: the same, or a text that is not UTF-8, in the protocol's own JSON.
    """
    if form == "v2":
        parts, _ = encode_infer(response, InferRequest(response.model))
        return b"".join(parts)
    document: dict[str, Any] = {"id": response.id} if response.id else {}
    payload = _payload(response)
    if form == "table":
        return _table(response) if payload is None else _said(payload)
    if payload is not None:
        document["payload"] = payload
        return orjson.dumps(document)
    document["outputs"] = {tensor.name: _nested(tensor) for tensor in response.outputs}
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)


def _payload(response: InferResponse) -> Any:
    """Return what a model with hooks answered in the place of tensors; ``None``: nothing.

    A server of tensors sends it as one, with JSON as its text.
    """
    if response.payload is not None and not response.outputs:
        found = response.payload
        return _texts(found) if isinstance(found, bytes) else found
    if [(t.name, t.dtype, t.shape) for t in response.outputs] != [(PAYLOAD, DType.BYTES, (1,))]:
        return None
    text = response.outputs[0].data[0]
    if text[:1] in (b"{", b"["):
        with contextlib.suppress(orjson.JSONDecodeError):
            return orjson.loads(text)
    return _texts(text)


def _said(payload: Any) -> Text:
    if not isinstance(payload, str):
        payload = orjson.dumps(payload, option=orjson.OPT_INDENT_2).decode()
    return Text(payload)


def heading(source: Mapping[str, Any]) -> Text:
    """Return what an answer is to, for a person: ``a.npy`` or ``line 3``."""
    named = (str(_told(v)) if key == "input" else f"{key} {v}" for key, v in source.items())
    return Text(", ".join(named), style="bold")


def failure(error: TidegateError, source: Mapping[str, Any], form: str) -> bytes | Text:
    """Return why there is no answer: a line of JSON that says to what, or words for a person."""
    message = str(error).encode("utf-8", "replace").decode()
    if form == "table":
        return Text.assemble("  ", ("error:", "bold red"), " ", message)
    told = {key: _told(value) for key, value in source.items()}
    return orjson.dumps({**told, "error": message, "kind": type(error).__name__})


def _told(value: Any) -> Any:
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def _nested(tensor: Tensor) -> Any:
    """Return the elements as orjson takes them, nested as the shape; NaN becomes ``null``."""
    data = tensor.data
    if tensor.dtype is DType.BYTES:
        return _texts(data.tolist())
    if data.dtype.kind in "fV":
        if tensor.dtype is DType.BF16:
            data = data.astype(np.float32)
        if np.isinf(data).any():
            raise InferenceFailed(
                f"the output {tensor.name!r} has an infinite element, which JSON has no number "
                "for; --format table shows it"
            )
    return data.tolist() if data.ndim == 0 else np.ascontiguousarray(data)


def _texts(found: Any) -> Any:
    """Return bytes as text, or as ``{"b64": …}`` where they are none."""
    if isinstance(found, list):
        return [_texts(each) for each in found]
    try:
        return found.decode()
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(found).decode()}


def _table(response: InferResponse) -> Table:
    version = f" version {response.version}" if response.version else ""
    table = Table(box=None, padding=(0, 2), header_style="dim")
    for column in ("output", "type", "shape", f"value ({escape(response.model)}{version})"):
        table.add_column(column, overflow="fold")
    for tensor in response.outputs:
        shape = f"[{', '.join(map(str, tensor.shape))}]"
        table.add_row(
            escape(tensor.name), tensor.dtype.value, escape(shape), escape(_shown(tensor.data))
        )
    return table


def _shown(data: Array) -> str:
    if data.dtype.kind == "O":
        data = np.vectorize(lambda element: element.decode("utf-8", "replace"), otypes="O")(data)
    return np.array2string(data, threshold=_SHOWN_ELEMENTS, precision=4, suppress_small=True)
