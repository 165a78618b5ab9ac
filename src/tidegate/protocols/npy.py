"""Arrays in numpy's own file format: ``.npy``, without pickles.

Source: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

from __future__ import annotations

import re
from typing import IO, Any

import numpy as np

from tidegate.errors import InvalidInput
from tidegate.protocols.open_inference.tensors import object_array, shown
from tidegate.types import Array, DType, Tensor, element_count

NPY = b"\x93NUMPY"
"""How such a file begins."""
_LONGEST_HEADER = 10_000
"""Bytes, as numpy has it."""
_DESCR = re.compile(
    r"""['"]descr['"]\s*:\s*(?:['"]([<>|=]?[?biufcmMSUVO][0-9]{0,9}(?:\[\w{1,9}\])?)['"]|\[)"""
)
_ORDER = re.compile(r"""['"]fortran_order['"]\s*:\s*(True|False)""")
_SHAPE = re.compile(r"""['"]shape['"]\s*:\s*\(([0-9L,\s]*)\)""")
_LENGTH = re.compile(r"[0-9]{1,19}")


def read_npy(name: str, file: IO[bytes], size: int) -> Array:
    """Return the array in an ``.npy`` file of ``size`` bytes; nothing in it is run.

    The header is checked first: it could tell of more elements than memory holds. ``name`` is for
    messages.

    Raises:
        InvalidInput: it is no such file, is too short, or holds Python objects.
    """
    try:
        shape, fortran, dtype = _read_header(file)
    except (ValueError, TypeError) as error:
        raise InvalidInput(f"{shown(name)} is not an .npy file: {error}") from None
    if dtype.hasobject:
        raise InvalidInput(
            f"{shown(name)} holds Python objects, which are not read: save numbers, or texts "
            "as an array of the type S or U"
        )
    count = element_count(shape)
    if count and not 0 < count * dtype.itemsize <= size - file.tell():
        raise InvalidInput(
            f"{shown(name)} should hold {count} elements of {dtype}, but is too short"
        )
    raw = file.read(count * dtype.itemsize)
    try:
        return np.ndarray(shape, dtype, raw, order="F" if fortran else "C")
    except (ValueError, TypeError) as error:
        raise InvalidInput(f"{shown(name)} is not an .npy file: {error}") from None


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return shape, whether columns come first, and type.

    The header is an expression of Python, which is not evaluated: of a stranger's text that takes
    warnings and recursion. Fields are looked for one by one, since their order is left open.

    Raises:
        ValueError: it is no header.
    """
    head = file.read(8)
    if head[:6] != NPY or head[6:] not in (b"\1\0", b"\2\0", b"\3\0"):
        raise ValueError("it does not begin as one")
    size = int.from_bytes(file.read(2 if head[6] == 1 else 4), "little")
    if size > _LONGEST_HEADER:
        raise ValueError(f"its header has {size} bytes")
    text = file.read(size).decode("latin-1")
    descr, order, shape = (field.search(text) for field in (_DESCR, _ORDER, _SHAPE))
    if descr is None or order is None or shape is None:
        raise ValueError(f"its header is {shown(text)}")
    if descr[1] is None:
        raise ValueError("no tensor type holds its rows of several fields")
    lengths = tuple(int(length) for length in _LENGTH.findall(shape[1]))
    return lengths, order[1] == "True", np.dtype(descr[1])


def array_tensor(name: str, array: Array) -> Tensor:
    """Return an array as a tensor; texts become UTF-8.

    Raises:
        InvalidInput: no tensor has such elements.
    """
    try:
        dtype = DType.of(array.dtype)
    except TypeError as error:
        raise InvalidInput(f"the input {name!r}: {error}") from None
    if dtype is DType.BYTES:
        found = array.reshape(-1).tolist()
        try:
            elements = [e.encode() if isinstance(e, str) else bytes(e) for e in found]
        except UnicodeEncodeError as error:
            raise InvalidInput(
                f"the input {name!r} has an element that is no text: {error}"
            ) from None
        return Tensor(name, dtype, object_array(elements, array.shape))
    return Tensor(name, dtype, np.require(array, dtype.numpy, requirements="C"))
