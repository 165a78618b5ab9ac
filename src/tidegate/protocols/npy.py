"""Arrays in numpy's own file format: ``.npy``, without pickles.

Source: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

from __future__ import annotations

import ast
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
_DTYPE = re.compile(r"[<>|=]?[?biufcmMSUVO][0-9]{0,9}(\[[0-9A-Za-z]{1,9}\])?")


def read_npy(name: str, file: IO[bytes], size: int) -> Array:
    """Return the array in an ``.npy`` file of ``size`` bytes; nothing in it is run.

    The header is checked first: it could tell of more elements than memory holds. ``name`` is for
    messages.

    Raises:
        InvalidInput: it is no such file, is too short, or holds Python objects.
    """
    try:
        shape, fortran, dtype = _read_header(file)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
        # The last three are what Python says of text that is nested too deep.
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
    """Return shape, whether columns come first, and type; raises whatever is wrong with it.

    numpy's own reader also takes what Python 2 has written, with a tokenizer and warnings.
    """
    head = file.read(8)
    if head[:6] != NPY or head[6:] not in (b"\1\0", b"\2\0", b"\3\0"):
        raise ValueError("it does not begin as one")
    size = int.from_bytes(file.read(2 if head[6] == 1 else 4), "little")
    if size > _LONGEST_HEADER:
        raise ValueError(f"its header has {size} bytes")
    text = file.read(size).decode("utf-8" if head[6] == 3 else "latin-1")
    header = ast.literal_eval(text.strip())
    if not isinstance(header, dict) or header.keys() != {"descr", "fortran_order", "shape"}:
        raise ValueError("its header tells of something else")
    shape, descr = header["shape"], header["descr"]
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"its shape is {shown(shape)}")
    if isinstance(descr, str) and not _DTYPE.fullmatch(descr):
        raise ValueError(f"its type is {shown(descr)}")
    return shape, bool(header["fortran_order"]), np.lib.format.descr_to_dtype(descr)


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
