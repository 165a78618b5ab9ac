from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from tidegate.errors import InvalidInput
from tidegate.replica.binding import Binder
from tidegate.types import (
    Array,
    DType,
    InferRequest,
    RequestedOutput,
    Signature,
    Tensor,
    TensorSpec,
)

SIGNATURE = Signature(
    (
        TensorSpec("image", DType.FP32, ("batch", 3, "side", "side")),
        TensorSpec("hint", DType.INT64, ("batch", None)),
    ),
    (TensorSpec("label", DType.INT64, ("batch",)), TensorSpec("score", DType.FP32, ("batch",))),
)
ANY = Signature((TensorSpec("x", DType.FP32, None), TensorSpec("y", DType.FP32, None)), ())


def image(rows: int = 2, *shape: int) -> Array:
    return np.zeros((rows, *(shape or (3, 8, 8))), np.float32)


def hint(rows: int = 2, width: int = 1) -> Array:
    return np.zeros((rows, width), np.int64)


def request(*tensors: tuple[str, Array], outputs: tuple[str, ...] = ()) -> InferRequest:
    return InferRequest(
        "m",
        inputs=tuple(Tensor.of(name, data) for name, data in tensors),
        outputs=tuple(RequestedOutput(name) for name in outputs),
    )


def test_arrays_come_in_the_order_of_the_signature() -> None:
    binder = Binder(SIGNATURE, batched=True)
    first, second = image(), hint()
    for _ in range(2):
        for tensors in (
            [("image", first), ("hint", second)],
            [("hint", second), ("image", first)],
        ):
            bound = binder.bind(request(*tensors))
            assert [id(a) for a in bound.inputs] == [id(first), id(second)]
            assert bound.outputs == ("label", "score")
            assert bound.rows == 2
            assert bound.size == first.nbytes + second.nbytes


def test_requests_that_can_be_joined_share_a_group() -> None:
    binder = Binder(SIGNATURE, batched=True)

    def group(picture: Array, tip: Array) -> Any:
        return binder.bind(request(("image", picture), ("hint", tip))).group

    assert group(image(1), hint(1)) == group(image(5), hint(5))
    assert group(image(1), hint(1, 2)) != group(image(1), hint(1, 1))
    assert group(image(1, 3, 4, 4), hint(1)) != group(image(1), hint(1))


def test_without_batching_a_request_is_one_row() -> None:
    bound = Binder(SIGNATURE, batched=False).bind(request(("image", image(7)), ("hint", hint(7))))
    assert bound.rows == 1


def test_no_rows_count_as_one_in_a_batch() -> None:
    bound = Binder(SIGNATURE, batched=True).bind(request(("image", image(0)), ("hint", hint(0))))
    assert bound.rows == 1
    assert bound.inputs[0].shape == (0, 3, 8, 8)


def test_outputs_that_are_asked_for_come_in_that_order_and_once() -> None:
    tensors = (("image", image()), ("hint", hint()))
    binder = Binder(SIGNATURE, batched=True)
    asked = request(*tensors, outputs=("score", "label", "score"))
    assert binder.bind(asked).outputs == ("score", "label")
    assert binder.bind(request(*tensors, outputs=("score",))).outputs == ("score",)
    assert binder.bind(request(*tensors)).outputs == ("label", "score")


TAKES = "'image' FP32 [batch,3,side,side], 'hint' INT64 [batch,?]"
WRONG: dict[str, tuple[InferRequest, str]] = {
    "unknown input": (
        request(("image", image()), ("hint", hint()), ("mask", hint())),
        f"the model has no input 'mask': it takes {TAKES}",
    ),
    "only input unknown": (
        request(("picture", image())),
        f"the model has no input 'picture': it takes {TAKES}",
    ),
    "twice": (
        request(("image", image()), ("hint", hint()), ("hint", hint())),
        "the input 'hint' is given twice: send it once",
    ),
    "missing": (
        request(("image", image())),
        f"the input 'hint' is missing: the model takes {TAKES}",
    ),
    "none": (request(), f"the input 'image' is missing: the model takes {TAKES}"),
    "type": (
        request(("image", image().astype(np.float64)), ("hint", hint())),
        "the input 'image' must be FP32, not FP64",
    ),
    "rank": (
        request(("image", image()[0]), ("hint", hint())),
        "the input 'image' must have 4 dimensions, as [batch,3,side,side], not 3: [3, 8, 8]",
    ),
    "dimension": (
        request(("image", image(2, 4, 8, 8)), ("hint", hint())),
        "dimension 1 of the input 'image' must be 3, not 4: "
        "the model takes [batch,3,side,side], the request has [2, 4, 8, 8]",
    ),
    "symbol within an input": (
        request(("image", image(2, 3, 8, 9)), ("hint", hint())),
        "dimension 3 of the input 'image' must be 8, not 9: "
        "the model takes [batch,3,side,side], the request has [2, 3, 8, 9]",
    ),
    "symbol across inputs": (
        request(("image", image(2)), ("hint", hint(3))),
        "dimension 0 of the input 'hint' must be 2, not 3: "
        "the model takes [batch,?], the request has [3, 1]",
    ),
    "unknown output": (
        request(("image", image()), ("hint", hint()), outputs=("label", "colour")),
        "the model has no output 'colour': it gives 'label', 'score'",
    ),
}


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said(name: str, batched: bool) -> None:
    wrong, message = WRONG[name]
    binder = Binder(SIGNATURE, batched=batched)
    right = request(("image", image()), ("hint", hint()))
    for _ in range(2):
        with pytest.raises(InvalidInput, match=f"^{re.escape(message)}$"):
            binder.bind(wrong)
        binder.bind(right)


@pytest.mark.parametrize("shapes", [((2, 3), (3, 3)), ((), (2,)), ((2,), ()), ((), ())], ids=str)
def test_rows_must_agree_where_the_signature_says_nothing(
    shapes: tuple[tuple[int, ...], tuple[int, ...]],
) -> None:
    tensors = [(n, np.zeros(shape, np.float32)) for n, shape in zip("xy", shapes)]
    with pytest.raises(InvalidInput, match="the first dimension must be the same for every input"):
        Binder(ANY, batched=True).bind(request(*tensors))
    assert Binder(ANY, batched=False).bind(request(*tensors)).rows == 1


def test_more_forms_than_are_remembered() -> None:
    binder = Binder(SIGNATURE, batched=True)
    for width in [*range(1, 2100), 1, 2, 3]:
        bound = binder.bind(request(("image", image(1, 3, 1, 1)), ("hint", hint(1, width))))
        assert bound.inputs[1].shape == (1, width)
        assert bound.group == ((3, 1, 1), (width,))
