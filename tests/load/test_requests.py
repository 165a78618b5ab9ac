"""The requests of a load, read by the server's own decoders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tidegate.errors import ConfigurationError
from tidegate.load.requests import Encoding, encode, random_inputs, read_inputs
from tidegate.protocols.open_inference import grpc as v2_grpc
from tidegate.protocols.open_inference import rest as v2_rest
from tidegate.types import DType, InferRequest, Signature, Tensor, TensorSpec

SIGNATURE = Signature(
    (
        TensorSpec("x", DType.FP32, (None, 3)),
        TensorSpec("flags", DType.BOOL, (None,)),
        TensorSpec("words", DType.BYTES, (None, 1)),
        TensorSpec("ids", DType.INT64, (None, None)),
    ),
    (),
)


def decoded(encoding: Encoding, tensors: tuple[Tensor, ...]) -> InferRequest:
    request = encode(encoding, "m", "3", tensors, "7")
    if encoding.grpc:
        return v2_grpc.decode_infer(request.body)
    length = request.headers.get("inference-header-content-length")
    return v2_rest.decode_infer("m", "3", request.body, int(length) if length else None)


@pytest.mark.parametrize("encoding", Encoding)
def test_every_encoding_carries_the_tensors(encoding: Encoding) -> None:
    tensors = random_inputs(SIGNATURE, 4, {"ids": (4, 5)})[0]
    request = decoded(encoding, tensors)
    assert (request.model, request.version, request.id) == ("m", "3", "7")
    assert [t.name for t in request.inputs] == ["x", "flags", "words", "ids"]
    for sent, got in zip(tensors, request.inputs, strict=True):
        assert (got.dtype, got.shape) == (sent.dtype, sent.shape)
        np.testing.assert_array_equal(got.data, sent.data)


@pytest.mark.parametrize("dtype", [d for d in DType if d is not DType.BYTES])
def test_every_type(dtype: DType) -> None:
    spec = TensorSpec("x", dtype, (None, 2))
    sets = random_inputs(Signature((spec,), ()), 3, {})
    assert len(sets) == 16
    (got,) = decoded(Encoding.RAW, sets[1]).inputs
    assert (got.dtype, got.shape) == (dtype, (3, 2))
    np.testing.assert_array_equal(got.data, sets[1][0].data)


def test_the_same_numbers_every_time_and_others_in_every_set() -> None:
    first, again = (random_inputs(SIGNATURE, 1, {}) for _ in range(2))
    np.testing.assert_array_equal(first[0][0].data, again[0][0].data)
    assert not np.array_equal(first[0][0].data, first[1][0].data)
    assert [t.shape for t in first[0]] == [(1, 3), (1,), (1, 1), (1, 1)]


@pytest.mark.parametrize(
    ("spec", "batch", "shapes", "words"),
    [
        (TensorSpec("x", DType.FP32, (None, 3)), 1, {"y": (1,)}, "no input 'y'; it has x"),
        (TensorSpec("x", DType.FP32, (None, 3)), 1, {"x": (1, 4)}, r"\[-1, 3\], which \[1, 4\]"),
        (TensorSpec("x", DType.FP32, (None, 3)), 1, {"x": (3,)}, "does not fit"),
        (TensorSpec("x", DType.FP32, (2, 3)), 4, {}, "fixed shape"),
        (TensorSpec("x", DType.FP32, None), 1, {}, "give it with --shape"),
        (TensorSpec("x", DType.FP32, (None, 10**6)), 1000, {}, "smaller shape"),
    ],
)
def test_shapes_that_cannot_be(
    spec: TensorSpec, batch: int, shapes: dict[str, tuple[int, ...]], words: str
) -> None:
    with pytest.raises(ConfigurationError, match=words):
        random_inputs(Signature((spec,), ()), batch, shapes)


def test_half_precision_has_no_typed_contents() -> None:
    tensor = Tensor.of("x", np.zeros(2, np.float16))
    with pytest.raises(ConfigurationError, match="use --encoding raw"):
        encode(Encoding.TYPED, "m", "", [tensor])


def test_inputs_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "x.npz"
    signature = Signature((TensorSpec("x", DType.FP32, (None, 3)),), ())
    np.savez(file, x=np.ones((2, 3), ">f4"))
    ((tensor,),) = read_inputs(file, signature)
    assert (tensor.dtype, tensor.shape, tensor.data.dtype.str) == (DType.FP32, (2, 3), "<f4")
    for arrays, words in (
        ({"x": np.ones((2, 4), np.float32)}, "does not fit"),
        ({"x": np.ones((2, 3))}, "is FP32, the array .* is FP64"),
        ({"y": np.ones((2, 3))}, "has the arrays y; the model's inputs are x"),
        ({}, "has the arrays .none."),
    ):
        np.savez(file, **arrays)
        with pytest.raises(ConfigurationError, match=words):
            read_inputs(file, signature)
    np.savez(file, t=np.array([["a", "bc"]]))
    ((tensor,),) = read_inputs(file, Signature((), ()))
    assert tensor.data.tolist() == [[b"a", b"bc"]]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no", b"\x80\x04N.", b"\x93NUMPY"])
def test_files_that_are_no_arrays(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "x.npz"
    file.write_bytes(content)
    with pytest.raises(ConfigurationError, match="is no file of arrays"):
        read_inputs(file, SIGNATURE)
