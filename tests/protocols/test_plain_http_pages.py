"""Plain HTTP for people: what is answered, and what a browser shows."""

from __future__ import annotations

import base64
import json
import re
from typing import Any

import numpy as np
import orjson
import pytest

from tests.protocols.people import BROWSER, IMAGE, NUMBERS, SHADES, SPECS, WORDS, picture, show
from tidegate.errors import InferenceFailed
from tidegate.protocols.plain_http.answers import encode
from tidegate.protocols.plain_http.headers import prefers
from tidegate.protocols.plain_http.listing import Listed, page
from tidegate.types import DType, InferResponse, Json, Signature, Tensor, TensorSpec


@pytest.mark.parametrize(
    ("accept", "html"),
    [
        (b"", False), (b"*/*", False), (b"application/json", False), (BROWSER, True),
        (b"text/html", True), (b"text/*;q=0.5, */*;q=0.1", True), (b"text/html;q=0", False),
        (b"text/html;q=0.5, application/json", False), (b"text/html;q=x", False),
        (b",;=\xff" * 999, False),
    ],
)  # fmt: skip
def test_who_wants_a_page(accept: bytes, html: bool) -> None:
    assert prefers(accept, "text/html", "application/json") is html


def answer(response: InferResponse, accept: bytes = b"*/*") -> tuple[bytes, bytes]:
    reply = encode(response, accept)
    assert (b"x-content-type-options", b"nosniff") in reply.headers
    return b"".join(bytes(part) for part in reply.parts), reply.content_type


def test_answers() -> None:
    labels: Json = [{"label": "cat", "score": 0.5}]
    assert answer(InferResponse("m", "2", payload=labels)) == (
        b'[{"label":"cat","score":0.5}]', b"application/json",
    )  # fmt: skip
    text = InferResponse("m", "2", payload="köln")
    assert answer(text) == ('"köln"'.encode(), b"application/json")
    assert answer(text, b"text/plain") == ("köln".encode(), b"text/plain; charset=utf-8")
    words = np.array([[b"a", b"\xff"]], np.object_)
    outputs = (
        Tensor.of("f", np.array([[1.5, np.nan, np.inf]], np.float32)),
        Tensor.of("i", np.array([2**62])),
        Tensor.of("b", np.array(True)),
        Tensor("h", DType.BF16, np.ones((1, 1), DType.BF16.numpy)),
        Tensor("w", DType.BYTES, words),
    )
    body, kind = answer(InferResponse("m", "2", outputs=outputs, tags={"t": 1}))
    assert kind == b"application/json"
    assert json.loads(body) == {
        "model": "m",
        "version": "2",
        "outputs": {
            "f": [[1.5, None, None]],
            "i": [2**62],
            "b": True,
            "h": [[1.0]],
            "w": [["a", {"b64": base64.b64encode(b"\xff").decode()}]],
        },
        "tags": {"t": 1},
    }
    with pytest.raises(InferenceFailed, match="no JSON"):
        answer(InferResponse("m", "2", payload=[object()]))  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("data", "kind", "inline"),
    [
        (picture(np.zeros((2, 2))), b"image/png", True),
        (picture(np.zeros((2, 2)), "WEBP"), b"image/webp", True),
        (b"RIFF1234WAVE", b"audio/wav", True),
        (b"%PDF-1.7", b"application/pdf", False),
        (b"<svg onload=alert(1)>", b"application/octet-stream", False),
        (b"<html>", b"application/octet-stream", False),
        (b"", b"application/octet-stream", False),
    ],
)
def test_an_answer_of_bytes_is_a_file(data: bytes, kind: bytes, inline: bool) -> None:
    reply = encode(InferResponse("m", "2", payload=data), BROWSER)
    assert (list(reply.parts), reply.content_type) == ([data], kind)
    assert dict(reply.headers)[b"content-disposition"].startswith(
        b"inline" if inline else b"attachment"
    )


def test_the_model_in_json() -> None:
    reply = show(SHADES, WORDS)
    found = orjson.loads(b"".join(bytes(part) for part in reply.parts))
    assert (found["model"], found["version"], found["versions"]) == ("m", "2", ["1", "2"])
    first, second = found["inputs"]
    assert first["shape"] == [1, 1, 2, 2]
    assert "resized to 2 x 2" in first["send"]
    assert (second["datatype"], second["send"]) == ("BYTES", "texts in JSON")
    assert (reply.model, reply.version) == ("m", "")
    (anything,) = orjson.loads(bytes(show().parts[0]))["inputs"]
    assert anything["name"] == "data"


EVIL = "\"'><script>alert(1)</script>&"


def test_a_page_escapes_what_it_shows() -> None:
    evil = TensorSpec(EVIL, DType.FP32, (EVIL, 2))
    several: dict[str, Any] = {EVIL: Signature((evil,), ()), "b": Signature((), ())}
    reply = show(evil, accept=BROWSER, **several)
    text = bytes(reply.parts[0]).decode()
    assert "<script>alert" not in text
    assert text.count("<script") == 1
    assert re.search(r"[\"']><", text.replace('">', "").replace("'>", "")) is None
    listed = page([Listed("m", "not ready", reason=EVIL)])
    text = bytes(listed.parts[0]).decode()
    assert "alert(1)" in text
    assert "<script" not in text


def test_a_page_needs_nobody_else() -> None:
    for specs in ((), *((spec,) for spec in SPECS), SPECS):
        reply = show(*specs, accept=BROWSER)
        assert reply.content_type == b"text/html; charset=utf-8"
        headers = dict(reply.headers)
        policy = headers[b"content-security-policy"].decode()
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        text = bytes(reply.parts[0]).decode()
        addresses = re.findall(r'(?:src|href|action)="([^"]*)"', text)
        assert all(a.startswith(("/models", "data:,")) for a in addresses)
        labels = set(re.findall(r'<label for="([^"]+)"', text))
        fields = set(re.findall(r'<(?:input|textarea|select)[^>]* id="([^"]+)"', text))
        assert labels == fields
        assert "curl " in text


def test_a_page_has_a_field_for_each_input() -> None:
    text = bytes(show(IMAGE, NUMBERS, SHADES, accept=BROWSER).parts[0]).decode()
    assert text.count("<fieldset") == 3
    assert 'accept="image/*"' in text
    assert "[[0,0,0]]" in text
    assert text.count('type="number"') == 1
    several = show(NUMBERS, accept=BROWSER, a=Signature((), ()), b=Signature((), ()))
    assert "?signature_name=b" in bytes(several.parts[0]).decode()
