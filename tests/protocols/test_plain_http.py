"""Plain HTTP for people: what is read, and what does not fit."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.protocols.people import (
    DOCUMENT,
    IDS,
    IMAGE,
    NUMBERS,
    PIXELS,
    PNG,
    SHADES,
    SPECS,
    TEXT,
    WORDS,
    picture,
    show,
    view,
)
from tidegate.errors import (
    InvalidInput,
    MethodNotAllowed,
    MethodNotFound,
    PermissionDenied,
    RequestError,
    Unsupported,
    UnsupportedContent,
)
from tidegate.protocols.dialect import Inference, RestCall
from tidegate.protocols.plain_http.call import read
from tidegate.protocols.plain_http.fields import MOST_FIELDS
from tidegate.types import (
    DType,
    InferRequest,
    Signature,
    TensorSpec,
)


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
    (npy(np.array([1e300])), "", NUMBERS, InvalidInput, "FP32, which cannot hold"),
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


def test_a_photograph_is_not_decoded_in_full_where_it_becomes_small() -> None:
    red = np.full((2500, 2500, 3), [255, 0, 51])
    (tensor,) = ask(picture(red, "JPEG"), "image/jpeg", PIXELS).inputs
    np.testing.assert_allclose(tensor.data[0, 0, 0], [255, 0, 51], atol=3)
    with pytest.raises(InvalidInput, match="2500 x 2500 pixels"):
        ask(picture(red), "image/png", PIXELS)


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
