from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tidegate.errors import InvalidInput
from tidegate.protocols.unnamed import array_of, fit_array, fit_bytes, fit_json
from tidegate.types import DType, Json, Signature, TensorSpec


def signature(*inputs: tuple[str, DType, int]) -> Signature:
    return Signature(tuple(TensorSpec(n, d, (None,) * rank) for n, d, rank in inputs), ())


ONE = signature(("x", DType.FP32, 2))
TWO = signature(("age", DType.INT64, 1), ("height", DType.FP32, 2))
TEXT = signature(("text", DType.BYTES, 2))


def test_an_array_is_the_only_input() -> None:
    (tensor,) = fit_array(np.array([[1.5, 2]]), (), ONE)
    assert (tensor.name, tensor.dtype) == ("x", DType.FP32)
    assert tensor.data.dtype == np.float32
    assert tensor.data.tolist() == [[1.5, 2]]


def test_columns_are_inputs_by_their_names() -> None:
    age, height = fit_array(np.array([[1.5, 40], [1.75, 50]]), ("height", "age"), TWO)
    assert age.data.dtype == np.int64
    assert age.data.tolist() == [40, 50]
    assert height.data.tolist() == [[1.5], [1.75]]
    for names, array in ((("a", "b"), np.ones((1, 2))), (("age", "height"), np.ones((1, 3)))):
        with pytest.raises(InvalidInput, match="'age', 'height'"):
            fit_array(array, names, TWO)


def test_a_model_that_declares_nothing_gets_it_as_it_is() -> None:
    (tensor,) = fit_array(np.array([[1.5]]), (), Signature((), ()))
    assert (tensor.name, tensor.dtype) == ("data", DType.FP64)


def test_json_is_arrays_by_name_or_one() -> None:
    age, height = fit_json({"height": [[1.5]], "age": [3]}, TWO)
    assert (age.data.tolist(), height.data.tolist()) == ([3], [[1.5]])
    assert fit_json([[1, 2]], ONE)[0].data.tolist() == [[1, 2]]
    assert fit_json({"text": [["a", "ž"]]}, TEXT)[0].data.tolist() == [[b"a", "ž".encode()]]
    documents: list[Json] = [{"age": [1]}, [1], "x", None, {"height": [1], "age": [2], "x": [3]}]
    for document in documents:
        with pytest.raises(InvalidInput, match="'age', 'height'"):
            fit_json(document, TWO)


def test_bytes_are_one_element() -> None:
    (tensor,) = fit_bytes(b"\xff", TEXT)
    assert tensor.data.tolist() == [[b"\xff"]]
    with pytest.raises(InvalidInput, match="takes 'x' as numbers"):
        fit_bytes(b"", ONE)


@pytest.mark.parametrize(
    ("dtype", "value", "words"),
    [
        (DType.INT8, 128, "INT8, which cannot hold 128"),
        (DType.UINT8, -1, "UINT8, which cannot hold -1"),
        (DType.INT64, 1.5, "cannot hold 1.5"),
        (DType.INT64, float("nan"), "cannot hold nan"),
        (DType.INT32, float("inf"), "cannot hold inf"),
        (DType.BOOL, 2, "BOOL, which cannot hold 2"),
        (DType.FP16, 1e9, "FP16, which cannot hold"),
        (DType.FP32, 1e300, "FP32, which cannot hold"),
        (DType.BYTES, 1.0, "send texts, not numbers"),
        (DType.FP32, "1", "send numbers, not texts"),
    ],
)
def test_what_a_type_cannot_hold(dtype: DType, value: Any, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        fit_array(array_of([value]), (), signature(("x", dtype, 1)))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([[1, 2], [3]], "not regular"),
        ([1, [2]], "not regular"),
        ([1, "a"], "has the element 'a'"),
        ([{"a": 1}], "has the element"),
        ([10**400], "larger than any type"),
        ([None, "a"], "has the element None"),
    ],
)
def test_arrays_that_are_none(data: Any, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        array_of(data)


@given(st.lists(st.lists(st.floats(width=32), min_size=2, max_size=2), max_size=5))
def test_floats_survive(rows: list[list[float]]) -> None:
    array = np.array(rows, np.float64).reshape(-1, 2)
    (tensor,) = fit_array(array, (), ONE)
    assert np.array_equal(tensor.data, array.astype(np.float32), equal_nan=True)


@given(st.lists(st.integers(-(2**63), 2**63 - 1)))
def test_integers_survive(numbers: list[int]) -> None:
    (tensor,) = fit_array(array_of(numbers), (), signature(("x", DType.INT64, 1)))
    assert tensor.data.tolist() == numbers


@given(st.lists(st.integers(0, 2**64 - 1)))
@example([0, 2**63 + 1])
def test_large_integers_survive(numbers: list[int]) -> None:
    """numpy would make FP64 of small and large ones together."""
    (tensor,) = fit_array(array_of(numbers), (), signature(("x", DType.UINT64, 1)))
    assert tensor.data.tolist() == numbers


def test_null_is_nan() -> None:
    assert np.isnan(array_of([1, None])).tolist() == [False, True]
