"""Plain HTTP for people: what is read, what is answered, what is shown."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import re
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tidegate.errors import (
    InferenceFailed,
    InvalidInput,
    MethodNotAllowed,
    MethodNotFound,
    PermissionDenied,
    RequestError,
    Unsupported,
    UnsupportedContent,
)
from tidegate.protocols.dialect import Inference, ModelView, Reply, RestCall
from tidegate.protocols.plain_http.answers import encode
from tidegate.protocols.plain_http.call import read
from tidegate.protocols.plain_http.fields import MOST_FIELDS
from tidegate.protocols.plain_http.headers import prefers
from tidegate.protocols.plain_http.listing import Listed, page
from tidegate.types import (
    DType,
    InferRequest,
    InferResponse,
    Json,
    ModelMetadata,
    Signature,
    Tensor,
    TensorSpec,
)

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


def view(*inputs: TensorSpec, **signatures: Signature) -> ModelView:
    signature = Signature(inputs, (TensorSpec("y", DType.FP32, (None, 10)),))
    metadata = ModelMetadata("m", ("1", "2"), "platform", signature, signatures)
    return ModelView(metadata, "2")


def ask(
    body: bytes, kind: str = "", *inputs: TensorSpec, path: str = "/models/m", query: str = "",
    **headers: str,
) -> InferRequest:  # fmt: skip
    sent = {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
    if kind:
        sent[b"content-type"] = kind.encode()
    found = read(RestCall("POST", path, query, sent, body), view(*inputs))
    assert isinstance(found, Inference)
    return found.request


def show(*inputs: TensorSpec, accept: bytes = b"*/*", query: str = "", **signatures: Any) -> Reply:
    headers = {b"accept": accept, b":authority": b"localhost:8000"}
    reply = read(RestCall("GET", "/models/m", query, headers, b""), view(*inputs, **signatures))
    assert isinstance(reply, Reply)
    return reply


Part = tuple[str, bytes] | tuple[str, bytes, str]


def form(*parts: Part, boundary: str = "b0unda-ry", end: bytes = b"--\r\n") -> tuple[bytes, str]:
    body = b""
    for name, data, *kind in parts:
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"'
        if kind:
            head += f'; filename="f"\r\nContent-Type: {kind[0]}'
        body += head.encode() + b"\r\n\r\n" + data + b"\r\n"
    return body + f"--{boundary}".encode() + end, f"multipart/form-data; boundary={boundary}"


def element(request: InferRequest) -> tuple[str, bytes]:
    (tensor,) = request.inputs
    assert (tensor.dtype, tensor.data.size) == (DType.BYTES, 1)
    return tensor.name, tensor.data.reshape(-1)[0]


def npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def picture(pixels: Any, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.asarray(pixels, np.uint8)).save(file, kind)
    return file.getvalue()


def test_a_file_in_a_form() -> None:
    for field in ("data", "image", "file"):
        body, kind = form((field, b"\0\r\n--b0unda", "image/jpeg"))
        request = ask(body, kind, IMAGE, path="/models/m/versions/2")
        assert element(request) == ("image", b"\0\r\n--b0unda")
        assert (request.model, request.version) == ("m", "2")


@given(data=st.binary(), boundary=st.from_regex(r"[0-9A-Za-z'()+_,./:=?-]{1,60}", fullmatch=True))
def test_any_bytes_come_through_a_form(data: bytes, boundary: str) -> None:
    if b"\r\n--" + boundary.encode() in b"\r\n" + data:
        return
    body, _ = form(("data", data, "application/octet-stream"), boundary=boundary)
    request = ask(body, f'multipart/form-data; boundary="{boundary}"', IMAGE)
    assert element(request) == ("image", data)


def test_values_for_a_single_input() -> None:
    assert element(ask(PNG, "image/png", IMAGE)) == ("image", PNG)
    assert element(ask(b"RIFF", "audio/wav", TensorSpec("bytes", DType.BYTES, (1,))))[1] == b"RIFF"
    assert element(ask("köln".encode(), "text/plain", TEXT)) == ("text", "köln".encode())
    latin = "text/plain; charset=ISO-8859-1"
    assert element(ask("köln".encode("latin-1"), latin, TEXT))[1] == "köln".encode()
    assert element(ask(b'"k\\u00f6ln"', "application/json", TEXT))[1] == "köln".encode()
    assert element(ask(b"text=k%C3%B6ln+1", "application/x-www-form-urlencoded", TEXT))[1] == (
        "köln 1".encode()
    )
    assert element(ask(b'{"b64": "AAH/"}', "application/json", IMAGE))[1] == b"\0\1\xff"
    assert element(ask(b'{"image": {"b64": "AAH/"}}', "application/json", IMAGE))[1] == b"\0\1\xff"
    assert element(ask(b'{"a": [1]}', "application/json", DOCUMENT)) == ("json", b'{"a": [1]}')
    assert element(ask(b'{"a": [1]}', "application/problem+json", DOCUMENT))[1] == b'{"a": [1]}'
    body, kind = form(("data", b'{"a": [1]}'))
    assert element(ask(body, kind, DOCUMENT))[1] == b'{"a": [1]}'


@pytest.mark.parametrize(
    "sent",
    [
        (b"[[1, 2, 3]]", "application/json"),
        (b'{"x": [[1, 2, 3]]}', "application/json"),
        (b"[1, 2, 3]", "application/json"),
        (b"[1, 2, 3]", "application/x-www-form-urlencoded"),
        (b' {"x": [1, 2, 3]}', "application/x-www-form-urlencoded"),
        (b"x=%5B1,2,3%5D", "application/x-www-form-urlencoded"),
        (b"[1, 2, 3]", "text/plain"),
        (b"[1, 2, 3]", ""),
        form(("data", b"[1, 2, 3]")),
        form(("x", b"[[1, 2, 3]]", "application/json")),
        form(("x", npy(np.array([1.0, 2, 3])), "application/octet-stream")),
        (npy(np.array([[1, 2, 3]], np.uint8)), "application/x-npy"),
        (npy(np.asfortranarray(np.array([[1, 2, 3]], ">f8"))), ""),
    ],
)
def test_numbers(sent: tuple[bytes, str]) -> None:
    (tensor,) = ask(*sent, NUMBERS).inputs
    assert (tensor.name, tensor.dtype, tensor.data.dtype.str) == ("x", DType.FP32, "<f4")
    assert tensor.data.tolist() == [[1, 2, 3]]


def test_several_inputs() -> None:
    expected = {"x": [[1, 2, 3]], "ids": [[4, 5]], "words": [[b"a", b"\xff"]]}
    words = b'["a", {"b64": "/w=="}]'
    body, kind = form(("ids", b"[4, 5]"), ("x", b"[1, 2, 3]"), ("words", words))
    document = b'{"x": [1, 2, 3], "ids": [[4, 5]], "words": [%s]}' % words
    for sent in ((body, kind), (document, "application/json")):
        request = ask(*sent, NUMBERS, IDS, WORDS)
        assert {t.name: t.data.tolist() for t in request.inputs} == expected


def test_pictures_for_a_model_of_numbers() -> None:
    red = picture(np.full((4, 4, 3), [255, 0, 51]))
    (tensor,) = ask(red, "image/png", PIXELS).inputs
    assert tensor.data.tolist() == [[[[255, 0, 51]] * 2] * 2]
    body, kind = form(("data", picture(np.full((9, 7), 51)), "image/png"))
    (tensor,) = ask(body, kind, SHADES, query="white=1").inputs
    np.testing.assert_allclose(tensor.data, np.full((1, 1, 2, 2), 0.2, np.float32))
    request = ask(body, kind, SHADES, query="white=255")
    assert (request.inputs[0].data.tolist(), request.parameters) == ([[[[51, 51]] * 2]], {})


def test_anything_goes_to_hooks_that_say_nothing() -> None:
    assert ask(b"\0\1", "application/octet-stream").payload == b"\0\1"
    assert ask(b"\0\1").payload == b"\0\1"
    assert ask(PNG, "image/png").payload == PNG
    assert ask(b"hi", "text/plain").payload == "hi"
    assert ask(b'{"a": 1}', "application/json").payload == {"a": 1}
    assert ask(*form(("whatever", b"hi"))).payload == "hi"
    assert ask(*form(("data", b"hi", "image/png"))).payload == b"hi"
    assert ask(*form(("data", b"[1]", "application/json"))).payload == [1]
    several = ask(*form(("a", b"1"), ("b", b"\xff", "image/png")))
    assert {t.name: t.data.tolist() for t in several.inputs} == {"a": [b"1"], "b": [b"\xff"]}


def test_the_query_has_parameters() -> None:
    other = Signature((TEXT,), ())
    query = "k=5&f=0.5&t=true&s=mono&q=%22007%22&big=9223372036854775808&signature_name=other"
    call = RestCall("POST", "/models/m", query, {b"content-type": b"text/plain"}, b"hi")
    found = read(call, view(NUMBERS, serving_default=Signature((NUMBERS,), ()), other=other))
    assert isinstance(found, Inference)
    assert element(found.request) == ("text", b"hi")
    assert found.request.signature == "other"
    parameters = dict(found.request.parameters)
    assert parameters.pop("big") in (2.0**63, "9223372036854775808")
    assert parameters == {
        "k": 5, "f": 0.5, "t": True, "s": "mono", "q": "007", "signature_name": "other",
    }  # fmt: skip


FORM = "multipart/form-data; boundary=b"
BAD = [
    (b"", "", NUMBERS, InvalidInput, "the body is empty"),
    (b"[1, 2", "application/json", NUMBERS, InvalidInput, "no JSON document"),
    (b"[" * 5000, "application/json", NUMBERS, InvalidInput, "no JSON document"),
    (b"[%s]" % (b"[]," * 2**20), "application/json", NUMBERS, InvalidInput, "lists, objects and"),
    (b"[[" * 40 + b"1" + b"]]" * 40, "application/json", NUMBERS, InvalidInput, "deep"),
    (b'{"z": 1}', "application/json", NUMBERS, InvalidInput, "send its input 'x' FP32 [-1, 3]"),
    (b'[["a"]]', "application/json", NUMBERS, InvalidInput, "send numbers"),
    (b'[["a"], ["b", "c"]]', "application/json", WORDS, InvalidInput, "not of one length"),
    (b"[1]", "application/json", WORDS, InvalidInput, "takes texts"),
    (b'{"b64": "?"}', "application/json", IMAGE, InvalidInput, "is no base64"),
    (b'{"b64": 7}', "application/json", IMAGE, InvalidInput, "is no base64"),
    (b'{"a": 7}', "application/json", IMAGE, InvalidInput, "the JSON document is"),
    (b"7", "application/json", IMAGE, InvalidInput, "takes texts, or bytes"),
    (b"\0" * 64, "audio/wav", NUMBERS, UnsupportedContent, "and this is audio/wav"),
    (b"\0" * 64, "", NUMBERS, UnsupportedContent, "and this is a file"),
    (PNG, "image/png", NUMBERS, UnsupportedContent, "and this is an image"),
    (PNG, "image/png", PIXELS, InvalidInput, "no image"),
    (PNG, "", SHADES, InvalidInput, "add ?white=1 to the address"),
    (b"a text", "application/x-www-form-urlencoded", TEXT, UnsupportedContent, "curl -F data=@F"),
    (b"text=a&text=b", "application/x-www-form-urlencoded", TEXT, InvalidInput, "sent twice"),
    (b"foo=a", "application/x-www-form-urlencoded", TEXT, InvalidInput, "no input 'foo'"),
    (b"\xff", "text/plain; charset=utf-16", TEXT, InvalidInput, "no text in UTF-16"),
    (b"a", "text/plain; charset=nothing", TEXT, UnsupportedContent, "'nothing' is not known"),
    (b"", "multipart/form-data", IMAGE, InvalidInput, "has no boundary"),
    (b"", FORM, IMAGE, InvalidInput, "truncated"),
    (b"--b--\r\n", FORM, IMAGE, InvalidInput, "form is empty"),
    (b"--x\r\n", FORM, IMAGE, InvalidInput, "the form is malformed"),
    (b"", "multipart/form-data; boundary=" + "x" * 300, IMAGE, InvalidInput, "malformed"),
    (b"--b\r\n\r\nx\r\n--b--\r\n", FORM, IMAGE, InvalidInput, "a part of the form has no name"),
    (*form(("image", b"x"), ("image", b"y")), IMAGE, InvalidInput, "'image' is sent twice"),
    (*form(("image", b"x"), ("more", b"y")), IMAGE, InvalidInput, "no input 'more'"),
    (*form(("image", b"x"), end=b""), IMAGE, InvalidInput, "truncated"),
    (*form(*((str(i), b"") for i in range(999))), IMAGE, InvalidInput, f"{MOST_FIELDS} fields"),
    (*form(("n" * 4000, b"")), IMAGE, InvalidInput, "the name of a field"),
    (*form(("n" * 5000, b"")), IMAGE, InvalidInput, "Maximum header size"),
    (b"--b\r\n" + b"a: b\r\n" * 99, FORM, IMAGE, InvalidInput, "Maximum header count"),
    (npy(np.array([1.5])), "", IDS, InvalidInput, "the file holds FP64"),
    (npy(np.array(["a"])), "", NUMBERS, InvalidInput, "the file holds BYTES"),
    (npy(np.array([1e300])), "", NUMBERS, InvalidInput, "FP32 cannot hold"),
    (npy(np.array([[300, 0, 0]])), "", TensorSpec("u", DType.UINT8, (1, 3)), InvalidInput, "300"),
    (npy(np.zeros(3))[:-1], "", NUMBERS, InvalidInput, "is too short"),
    (b"\x93NUMPY\1\0\x46\0" + b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000,)}"
     .ljust(69) + b"\n", "", NUMBERS, InvalidInput, "should hold 1000000000"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "kind", "spec", "error", "words"), BAD)
def test_what_does_not_fit(
    body: bytes, kind: str, spec: TensorSpec, error: type[Exception], words: str
) -> None:
    with pytest.raises(error) as caught:
        ask(body, kind, spec)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 600


def test_no_pickle_is_read() -> None:
    file = io.BytesIO()
    np.save(file, np.array([{"a": 1}], np.object_), allow_pickle=True)
    with pytest.raises(InvalidInput, match="Python objects"):
        ask(file.getvalue(), "", NUMBERS)


def test_several_inputs_need_names() -> None:
    with pytest.raises(UnsupportedContent, match="one value does not do"):
        ask(PNG, "image/png", NUMBERS, IDS)
    with pytest.raises(InvalidInput, match="'ids' is missing"):
        ask(*form(("x", b"[1, 2, 3]")), NUMBERS, IDS)
    with pytest.raises(InvalidInput, match="send a form with the fields"):
        ask(b"[1]", "application/json", NUMBERS, IDS)


def test_an_image_of_too_many_pixels_is_not_decoded() -> None:
    large = picture(np.zeros((1, 1)))
    size = (6_000).to_bytes(4, "big")
    head = b"IHDR" + size + size + large[24:29]
    from zlib import crc32

    bomb = large[:12] + head + crc32(head).to_bytes(4, "big") + large[33:]
    with pytest.raises(InvalidInput, match="6000 x 6000 pixels"):
        ask(bomb, "image/png", PIXELS)


def test_a_server_without_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(Unsupported, match=r"tidegate\[image\]"):
        ask(PNG, "image/png", PIXELS)


@pytest.mark.parametrize("query", ["white=yes", "white=NaN", "white=1e999", "a=1&a=2", "a=%ff"])
def test_a_query_that_says_nothing(query: str) -> None:
    with pytest.raises(InvalidInput):
        ask(picture(np.zeros((2, 2))), "image/png", SHADES, query=query)


def test_methods_and_paths() -> None:
    for method in ("DELETE", "PUT", "PATCH", "OPTIONS"):
        with pytest.raises(MethodNotAllowed, match="takes GET and POST") as caught:
            read(RestCall(method, "/models/m", "", {}, b""), view())
        assert caught.value.allowed == ("GET", "HEAD", "POST")
    for path in ("/models/", "/models/m/", "/models/m/versions/", "/models/m/infer"):
        with pytest.raises(MethodNotFound):
            read(RestCall("GET", path, "", {}, b""), view())
    with pytest.raises(InvalidInput, match="no signature 'z': it has 'a'"):
        show(NUMBERS, query="signature_name=z", a=Signature((), ()))


def test_pages_of_other_sites_are_refused() -> None:
    mine: list[dict[str, str]] = [
        {},
        {"origin": "http://h:8000", "host": "h:8000"},
        {"origin": "https://h", "host": "h", "sec_fetch_site": "same-origin"},
        {"origin": "https://H:443", "host": "h"},
        {"host": "h", "sec_fetch_site": "none"},
    ]
    for headers in mine:
        ask(b"[1, 2, 3]", "text/plain", NUMBERS, **headers)
    foreign: list[dict[str, str]] = [
        {"origin": "http://evil", "host": "h:8000"},
        {"origin": "http://h:3000", "host": "h:8000"},
        {"origin": "null", "host": "h"},
        {"origin": "", "host": ""},
        {"host": "h", "sec_fetch_site": "cross-site"},
        {"origin": "http://h:8000", "host": "h:8000", "sec_fetch_site": "same-site"},
    ]
    for headers in foreign:
        with pytest.raises(PermissionDenied, match="a page of another site"):
            ask(b"[1, 2, 3]", "text/plain", NUMBERS, **headers)


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


SPECS = (IMAGE, TEXT, DOCUMENT, NUMBERS, IDS, WORDS, PIXELS, SHADES)
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


@given(
    body=st.binary(max_size=200) | st.text(max_size=200).map(str.encode),
    kind=st.sampled_from([
        "", "application/json", "text/plain", "image/png", FORM, "text/plain; charset=idna",
        "application/x-www-form-urlencoded", "text/html; charset=punycode",
    ]),
    spec=st.sampled_from(SPECS),
)  # fmt: skip
def test_whatever_comes_has_an_answer(body: bytes, kind: str, spec: TensorSpec) -> None:
    for specs in ((), (spec,), (spec, TensorSpec("more", DType.BOOL, None))):
        with contextlib.suppress(RequestError):
            ask(body, kind, *specs)
