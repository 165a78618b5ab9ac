"""Arrays of every element type, as hypothesis strategies."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tidegate.types import Array, DType

SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)


@st.composite
def arrays(draw: st.DrawFn, dtype: DType, *, finite: bool = False, text: bool = False) -> Array:
    """Draw an array; ``finite`` has no NaN or infinity, ``text`` only UTF-8 in BYTES."""
    shape = draw(SHAPES)
    count = int(np.prod(shape, dtype=np.int64))
    if dtype is DType.BYTES:
        element: Any = st.text(max_size=8).map(str.encode) if text else st.binary(max_size=8)
        array = np.empty(count, np.object_)
        array[:] = draw(st.lists(element, min_size=count, max_size=count))
        return array.reshape(shape)
    if dtype is DType.BF16:
        bits = draw(hnp.arrays(np.uint16, shape))
        array = bits.view(dtype.numpy)
        return np.where(np.isfinite(array), array, dtype.numpy.type(1)) if finite else array
    elements = (
        {"allow_nan": False, "allow_infinity": False}
        if finite and dtype.numpy.kind == "f"
        else None
    )
    return draw(hnp.arrays(dtype.numpy, shape, elements=elements))


def same(left: Array, right: Array) -> bool:
    """Are the two equal in type, shape and every bit (any NaN equals any other)?"""
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    if left.dtype.kind in "fV":
        with np.errstate(invalid="ignore"):  # signalling NaN
            both = np.isnan(left) & np.isnan(right)
            return bool(((left == right) | both).all())
    return bool((left == right).all())
