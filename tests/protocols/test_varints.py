"""Many variable-length integers at once, against protobuf's own."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.protocols.tensorflow_serving.messages import TensorProto
from tidegate.protocols.varints import (
    count_integers,
    read_integers,
    read_length,
    write_integers,
    write_length,
)

COUNT = 200_000
"""More than are read or written in one piece."""
EDGES = [0, 1, *(2 ** (7 * n) + d for n in range(1, 10) for d in (-1, 0)), 2**64 - 1]


def packed(values: list[int]) -> bytes:
    """The field as protobuf writes it, without its tag and its length."""
    message = TensorProto(uint64_val=values).SerializeToString()
    return message[read_length(message, 2)[1] :] if values else b""


def check(values: list[int]) -> None:
    numbers = np.array(values, np.uint64)
    data = packed(values)
    assert bytes(write_integers(numbers)) == data
    assert count_integers(data) == len(values)
    assert np.array_equal(read_integers(data, 0, len(values)), numbers)
    assert np.array_equal(read_integers(memoryview(b"xy" + data)[2:], 0, len(values)), numbers)


@given(st.lists(st.sampled_from(EDGES) | st.integers(0, 2**64 - 1), max_size=50))
def test_round_trip(values: list[int]) -> None:
    check(values)


def test_many() -> None:
    random = np.random.default_rng(1)
    bits = random.integers(0, 64, COUNT)
    values = random.integers(0, 2**64 - 1, COUNT, np.uint64) >> bits.astype(np.uint64)
    check(values.tolist())
    check((values & np.uint64(0x7F)).tolist())
    check(EDGES * 10_000)


@pytest.mark.parametrize(
    "data", [b"\x80", b"\x01\x80", b"\x80" * 10 + b"\x00", b"\x00" + b"\xff" * 10 + b"\x01\x00"]
)
def test_what_is_none(data: bytes) -> None:
    with pytest.raises(IndexError):
        count_integers(data)


@given(st.integers(0, 2**31 - 1), st.binary(max_size=3))
def test_lengths(value: int, before: bytes) -> None:
    written = write_length(value)
    message = before + written
    assert read_length(message, len(before)) == (value, len(message))
    for size in range(len(written)):
        with pytest.raises(IndexError):
            read_length(message[: len(before) + size], len(before))
