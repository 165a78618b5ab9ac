"""What a caller may give, and where a server may be."""

from __future__ import annotations

import math
import os
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tidegate import AsyncClient, Client, InferResult
from tidegate.client.address import Address
from tidegate.client.proxies import proxy_to
from tidegate.client.values import needs_signature, tensor_of, tensors_of
from tidegate.errors import ConfigurationError, InvalidInput
from tidegate.types import DType, InferResponse, Signature, Tensor, TensorSpec


def spec(dtype: str) -> TensorSpec:
    return TensorSpec("x", DType(dtype), None)


class HasArray:
    """As tensors of torch, jax and pandas do."""

    def __init__(self, error: Exception | None = None) -> None:
        self._error = error

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray[Any, Any]:
        if self._error is not None:
            raise self._error
        return np.ones(2, np.float32)


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (np.ones(2), "FP64"),
        (np.float32(1), "FP32"),
        (np.array([True]), "BOOL"),
        (np.ones(2, ">i2"), "INT16"),
        (np.ones(2, ml_dtypes.bfloat16), "BF16"),
        (np.array(["a\x00", "\u00e9"]), "BYTES"),
        (np.array([b"a"]), "BYTES"),
        (np.array(["a", b"b", bytearray(b"c")], object), "BYTES"),
        (HasArray(), "FP32"),
        (np.ones((4, 4), np.uint8).T[::2], "UINT8"),
    ],
)
def test_arrays_are_sent_as_they_are(value: Any, dtype: str) -> None:
    for given in (None, spec("INT8")):
        found = tensor_of("x", value, given)
        assert found.dtype is DType(dtype)
        assert found.data.flags.c_contiguous
        assert found.data.dtype == DType(dtype).numpy
        if dtype != "BYTES":
            assert np.array_equal(found.data, np.asarray(value))
    assert not needs_signature({"x": value})


@pytest.mark.parametrize(
    ("value", "dtype", "expected"),
    [
        ([1, 2], "FP32", [1.0, 2.0]),
        ([1.5, math.inf], "FP16", [1.5, math.inf]),
        ([[1], [2]], "INT8", [[1], [2]]),
        ((1, 2), "UINT64", [1, 2]),
        (7, "INT64", 7),
        ([True, False], "BOOL", [True, False]),
        ([True, False], "INT8", [1, 0]),
        ([2**63], "UINT64", [2**63]),
        ([], "INT8", []),
        ([1, 2], "BF16", [1, 2]),
        ("text", "BYTES", b"text"),
        (["a\x00", b"\xff"], "BYTES", [b"a\x00", b"\xff"]),
        ([np.ones(2), np.ones(2)], "FP32", [[1, 1], [1, 1]]),
    ],
)
def test_python_values_take_the_models_type(value: Any, dtype: str, expected: Any) -> None:
    assert needs_signature({"x": value})
    found = tensor_of("x", value, spec(dtype))
    assert found.dtype is DType(dtype)
    assert found.data.dtype == DType(dtype).numpy
    assert found.data.tolist() == expected


@pytest.mark.parametrize(
    ("value", "dtype", "words"),
    [
        ([1.5], "INT64", "has floats, but the model takes INT64"),
        ([1], "BOOL", "has integers, but the model takes BOOL"),
        ([300], "UINT8", "the value 300, which UINT8 cannot hold; give values from 0 to 255"),
        ([-1], "UINT64", "the value -1"),
        ([1e300], "FP32", "beyond what FP32 can hold"),
        ([1e39], "BF16", "beyond what BF16 can hold"),
        ([70000], "FP16", "beyond what FP16 can hold"),
        ([2**64], "UINT64", "values such as 18446744073709551616"),
        ([None], "FP32", "values such as None"),
        ([1j], "FP32", "values such as"),
        ([1], "BYTES", "element 0 of input 'x' is 1"),
        (["\ud800"], "BYTES", "no text"),
        ([[1], [1, 2]], "FP32", "cannot be made an array"),
        (object(), "FP32", "values such as <object"),
    ],
)
def test_python_values_that_the_model_cannot_take(value: Any, dtype: str, words: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        tensor_of("x", value, spec(dtype))
    assert words in str(caught.value)


def test_text_is_sent_as_text_whatever_the_model_takes() -> None:
    assert tensor_of("x", ["a"], spec("FP32")).dtype is DType.BYTES, (
        "the server says what it takes"
    )


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.ones(2, np.complex64), "complex64"),
        (np.array(["2026-01-01"], "datetime64[D]"), "datetime64"),
        (np.array([[1], [1, 2]], object), "text and bytes alone"),
        (HasArray(TypeError("on another device")), "on another device"),
    ],
)
def test_arrays_that_no_tensor_holds(value: Any, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        tensor_of("x", value)


def test_inputs_by_name_or_the_only_one() -> None:
    one = Signature((spec("FP32"),), ())
    two = Signature((spec("FP32"), TensorSpec("z", DType.INT8, None)), ())
    (found,) = tensors_of("m", [1, 2], one)
    assert (found.name, found.dtype) == ("x", DType.FP32)
    with pytest.raises(InvalidInput, match=r"model 'm' has 2 inputs \('x', 'z'\)"):
        tensors_of("m", [1, 2], two)
    with pytest.raises(InvalidInput, match=r"has 0 inputs \(none\)"):
        tensors_of("m", [1, 2], Signature((), ()))
    with pytest.raises(InvalidInput, match="the name of an input is 3"):
        tensors_of("m", {3: np.ones(1)}, None)
    assert [t.name for t in tensors_of("m", {"z": [1], "q": [1]}, two)] == ["z", "q"]


def test_a_result_is_a_mapping() -> None:
    outputs = [Tensor.of("y", np.ones(2, np.float32)), Tensor.of("z", np.ones((1, 1), np.int8))]
    result = InferResult(InferResponse("m", "3", "7", outputs, {"a": 1}))
    assert list(result) == ["y", "z"]
    assert len(result) == 2
    assert "y" in result
    assert "q" not in result
    assert result.get("q") is None
    assert dict(result.parameters) == {"a": 1}
    assert repr(result) == "<InferResult of m version 3: y: float32[2], z: int8[1, 1]>"
    with pytest.raises(KeyError, match=r"no output 'q' but \['y', 'z'\]"):
        result["q"]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://host", ("http", "host", 80, "", False, False)),
        ("https://host/", ("https", "host", 443, "", False, True)),
        ("http://host:8000/a/b/v2/", ("http", "host", 8000, "/a/b", False, False)),
        ("grpc://127.0.0.1:8001", ("grpc", "127.0.0.1", 8001, "", True, False)),
        ("grpcs://[::1]:8001", ("grpcs", "::1", 8001, "", True, True)),
    ],
)
def test_addresses(url: str, expected: tuple[Any, ...]) -> None:
    found = Address.parse(url)
    assert (
        found.scheme, found.host, found.port, found.path, found.grpc, found.secure
    ) == expected  # fmt: skip


@pytest.mark.parametrize(
    ("url", "loopback"),
    [
        ("http://localhost", True),
        ("http://a.localhost:80", True),
        ("http://127.3.2.1", True),
        ("grpc://[::1]:1", True),
        ("http://10.0.0.1", False),
        ("http://localhost.example", False),
    ],
)
def test_where_no_proxy_can_be(url: str, loopback: bool) -> None:
    assert Address.parse(url).loopback is loopback


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:8000",
        "127.0.0.1:8000",
        "ftp://host",
        "http://",
        "http://host:many",
        "http://host:99999",
        "http://[::1",
        "http://host/?a=b",
        "http://host/#a",
        "grpc://host:1/path",
    ],
)
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_urls_that_are_none(url: str, kind: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"http://127\.0\.0\.1:8000 or grpc://"):
        kind(url)


def test_a_password_in_a_url_is_not_repeated() -> None:
    with pytest.raises(ConfigurationError, match="as a header") as caught:
        Client("http://user:secret@host")
    assert "secret" not in str(caught.value)


def test_how_they_show() -> None:
    client = Client("http://host:1/")
    assert repr(client.model("m")) == "Client('http://host:1').model('m')"
    assert repr(AsyncClient("grpc://h:1").model("m", 3)) == (
        "AsyncClient('grpc://h:1').model('m', version=3)"
    )


@pytest.mark.parametrize(
    ("url", "environment", "proxy"),
    [
        ("http://a.example", {}, None),
        ("http://a.example", {"http_proxy": "proxy:3128"}, b"proxy:3128"),
        ("http://a.example", {"all_proxy": "http://[::1]:3128"}, b"::1:3128"),
        ("http://a.example", {"https_proxy": "http://proxy"}, None),
        ("https://a.example", {"https_proxy": "http://proxy"}, b"proxy:80"),
        ("http://a.example", {"http_proxy": "proxy", "no_proxy": "b.example, a.example"}, None),
        ("http://a.example", {"http_proxy": "proxy", "no_proxy": ".example"}, None),
        ("http://a.example", {"http_proxy": "proxy", "no_proxy": "*"}, None),
        ("http://10.1.2.3", {"http_proxy": "proxy", "no_proxy": "x,10.0.0.0/8"}, None),
        ("http://11.1.2.3", {"http_proxy": "proxy", "no_proxy": "10.0.0.0/8"}, b"proxy:80"),
        ("http://localhost", {"http_proxy": "proxy"}, None),
        ("http://127.0.0.5", {"all_proxy": "proxy"}, None),
    ],
)
def test_which_proxy(
    url: str, environment: dict[str, str], proxy: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = proxy_to(Address.parse(url))
    shown = None if found is None else found.url.host + b":%d" % (found.url.port or 0)
    assert shown == proxy


@pytest.mark.parametrize("value", ["ftp://secret@proxy", "http://", "http://secret:x@proxy:99999"])
def test_a_proxy_that_is_none(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", value)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with pytest.raises(ConfigurationError, match="no URL of a proxy") as caught:
        proxy_to(Address.parse("http://a.example"))
    assert "secret" not in str(caught.value)
