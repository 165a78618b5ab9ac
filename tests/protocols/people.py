"""Models and callers for the tests of plain HTTP."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

from tidegate.protocols.dialect import ModelView, Reply, RestCall
from tidegate.protocols.plain_http.call import read
from tidegate.types import DType, ModelMetadata, Signature, TensorSpec

IMAGE = TensorSpec("image", DType.BYTES, (1,))
TEXT = TensorSpec("text", DType.BYTES, (1,))
DOCUMENT = TensorSpec("json", DType.BYTES, (1,))
NUMBERS = TensorSpec("x", DType.FP32, ("batch", 3))
IDS = TensorSpec("ids", DType.INT64, (None, "n"))
WORDS = TensorSpec("words", DType.BYTES, ("n", 2))
PIXELS = TensorSpec("pixels", DType.UINT8, (None, 2, 2, 3))
SHADES = TensorSpec("shades", DType.FP32, (1, 1, 2, 2))
BROWSER = b"text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"
PNG = b"\x89PNG\r\n\x1a\n"
SPECS = (IMAGE, TEXT, DOCUMENT, NUMBERS, IDS, WORDS, PIXELS, SHADES)


def view(*inputs: TensorSpec, **signatures: Signature) -> ModelView:
    signature = Signature(inputs, (TensorSpec("y", DType.FP32, (None, 10)),))
    metadata = ModelMetadata("m", ("1", "2"), "platform", signature, signatures)
    return ModelView(metadata, "2")


def show(*inputs: TensorSpec, accept: bytes = b"*/*", query: str = "", **signatures: Any) -> Reply:
    headers = {b"accept": accept, b":authority": b"localhost:8000"}
    reply = read(RestCall("GET", "/models/m", query, headers, b""), view(*inputs, **signatures))
    assert isinstance(reply, Reply)
    return reply


def picture(pixels: Any, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.asarray(pixels, np.uint8)).save(file, kind)
    return file.getvalue()
