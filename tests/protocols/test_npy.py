"""Arrays in ``.npy`` files, as numpy writes them and as others do."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest

from tidegate.errors import InvalidInput
from tidegate.protocols.npy import read_npy


def read(data: bytes) -> Any:
    return read_npy("f", io.BytesIO(data), len(data))


def written(header: str, content: bytes = b"", version: bytes = b"\1\0") -> bytes:
    length = len(header).to_bytes(2 if version[0] == 1 else 4, "little")
    return b"\x93NUMPY" + version + length + header.encode() + content


@pytest.mark.parametrize(
    "array",
    [
        np.ones((2, 3)),
        np.array(3, np.float32),
        np.zeros((0, 4), np.int16),
        np.asfortranarray(np.arange(6).reshape(2, 3)),
        np.ones(3, ">f4"),
        np.array([True]),
        np.ones(2, np.float16),
        np.array(["a", "bc"]),
        np.array([b"x"]),
        np.array(["2020-01-01"], "M8[D]"),
    ],
    ids=lambda array: f"{array.dtype}{list(array.shape)}",
)
def test_what_numpy_has_written(array: Any) -> None:
    file = io.BytesIO()
    np.save(file, array)
    found = read(file.getvalue())
    assert found.dtype == array.dtype
    assert np.array_equal(found, array)


def test_what_others_have_written() -> None:
    header = '{"shape": (2L,), "descr": "<i2","fortran_order":False}'
    for version in (b"\1\0", b"\2\0", b"\3\0"):
        assert read(written(header, b"\1\0\2\0", version)).tolist() == [1, 2]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "does not begin as one"),
        (b"\x93NUMPY\1\0", "its header is ''"),
        (b"\x93NUMPY\4\0", "does not begin as one"),
        (written("-" * 9_000), "its header is"),
        (written("(" * 20_000), "its header has 20000 bytes"),
        (written("{'descr': 'f4,f4', 'fortran_order': False, 'shape': (1,)}"), "its header is"),
        (written("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}"), "Python objects"),
        (written("{'descr': '<f7', 'fortran_order': False, 'shape': (1,)}"), "not an .npy file"),
        (written("{'descr':'<f4','fortran_order':False,'shape':(" + "9," * 99 + ")}"), "should"),
        (written("{'descr':'<f4','fortran_order':False,'shape':(" + "0," * 99 + ")}"), "not an"),
    ],
)
def test_what_nobody_should_have_written(data: bytes, words: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read(data)
    assert words in str(caught.value)
