"""Damaged messages: a good one, changed by a small program that is itself a string of bytes.

So a fuzzer needs to choose two things only, and a failing example shrinks to few changes.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

STEP = 4
"""Bytes of one change: its kind, where (two bytes), and a value."""
MOST_STEPS = 8
INTERESTING = (
    b"\0", b"\xff", b"\x80", b"\x7f", b"\xff\xff\xff\xff", b"\xff" * 9 + b"\x01", b"\0" * 8,
    b"[", b"]", b"{", b"}", b'"', b",", b":", b"-1", b"1e999", b"NaN", b"null", b"true",
    b"99999999999999999999", b"0.5", b"\\ud800", b"\xed\xa0\x80", b"\r\n", b"\r\n\r\n", b" ",
    b"[" * 40, b'"data":[', b"*a", b"&a ", b"!!", b"../", b"%2e", b"1\r\n",
)  # fmt: skip


def mutated(good: Sequence[bytes], which: int, program: bytes) -> bytes:
    """Return one of the good messages, changed as ``program`` says."""
    data = bytearray(good[which % len(good)])
    for at in range(0, len(program) - STEP + 1, STEP):
        kind, value = program[at], program[at + 3]
        # A place of the same share of the message, however long that has become.
        place = int.from_bytes(program[at + 1 : at + 3], "big") * (len(data) + 1) >> 16
        _change(data, kind % 8, place, value, good)
    return bytes(data)


def _change(data: bytearray, kind: int, place: int, value: int, good: Sequence[bytes]) -> None:
    if kind == 0:
        data[place : place + 1] = bytes((value,))
    elif kind == 1 and place < len(data):
        data[place] ^= 1 << (value & 7)
    elif kind == 2:
        data[place:place] = INTERESTING[value % len(INTERESTING)]
    elif kind == 3:
        word = INTERESTING[value % len(INTERESTING)]
        data[place : place + len(word)] = word
    elif kind == 4:
        del data[place : place + value]
    elif kind == 5:
        data[place:place] = data[place : place + value]
    elif kind == 6:
        del data[place:]
    elif kind == 7:
        other = good[value % len(good)]
        data[place:] = other[len(other) * place // (len(data) + 1) :]


def drawn(good: Sequence[bytes], source: random.Random) -> bytes:
    """Return a damaged message, or now and then any bytes at all."""
    if source.random() < 0.1:
        return source.randbytes(source.randrange(200))
    program = source.randbytes(STEP * source.randint(1, MOST_STEPS))
    return mutated(good, source.randrange(1 << 16), program)
