"""Long lists of numbers in JSON, read into buffers without a Python object for each.

:func:`cut_out` takes such lists out of a document and leaves marks, so that the rest is parsed
as any JSON is; :func:`read` makes an array of a list's text. What either does not take is left
to the ordinary parser, which has the last word on what is malformed: the two accept the same
and give the same, or ``read`` gives nothing.

Numbers are parsed by simdjson, correctly rounded to FP64 as Python does it, in pieces that stay
in the processor's cache. There is a package for Python up to 3.13; without it, all goes through
the ordinary parser.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from typing import Any

import numpy as np

from tidegate.protocols.open_inference.tensors import INTEGER_RANGES, MAX_RANK
from tidegate.types import Array, DType, element_count

try:
    import simdjson
except ImportError:  # no wheel for this Python
    simdjson = None  # type: ignore[assignment]

SHORTEST = 4096
"""Bytes of a document, or of a list, below which there is nothing to gain."""
_MOST_LISTS = 64
"""More lists than this are not looked for, lest a document be searched for nothing else."""
_PIECE = 2**16
"""Bytes of text that are parsed at once."""
_MOST_KEYS = 4096
"""Nor more keys that could have one."""
_KEY = b'"data"'
_BEGIN = re.compile(rb'"[ \t\r\n]*:[ \t\r\n]*\[')
_SECRET = secrets.token_hex(16)
"""What no caller can write, so that no string of theirs is taken for a mark."""
_COMMA = re.compile(b",")
_CLOSING = b"] \t\r\n"
_ROW_END = re.compile(rb"[] \t\r\n]+,")
_NO_SKELETON = b"0123456789+-.eE \t\r\n"
_REFUSED = (ValueError, TypeError, RuntimeError, AttributeError)
"""What is raised when simdjson does not take a text, not as the type asked for, or as no list."""


def cut_out(document: bytes, key: bytes = _KEY) -> tuple[bytes, dict[str, bytes]]:
    """Return ``document`` with marks for the long lists under ``key``, and their texts by mark.

    ``key`` has its quotes; a lone quote is any key. A mark is a list with one string. No text
    contains a string or an object. If ``document``, every text and what is returned are JSON, the
    marks are where the lists were: a quote with a colon after it ends a key, or else it begins a
    string, in which a mark with its quotes makes what is returned no JSON.
    """
    parts: list[bytes] = []
    texts: dict[str, bytes] = {}
    kept = at = 0
    for _ in range(_MOST_KEYS if simdjson is not None else 0):
        at = document.find(key, at)
        if at < 0 or len(texts) >= _MOST_LISTS:
            break
        at += len(key)
        begin = _BEGIN.match(document, at - 1)
        if begin is None:
            continue
        start = begin.end() - 1
        # No list of numbers goes on after either of these.
        stop = document.find(b'"', start)
        stop = len(document) if stop < 0 else stop
        brace = document.find(b"}", start, stop)
        stop = stop if brace < 0 else brace
        end = document.rfind(b"]", start, stop) + 1
        if end - start < SHORTEST:
            continue
        mark = f"{_SECRET}{len(texts)}"
        texts[mark] = document[start:end]
        parts += (document[kept:start], b'["', mark.encode(), b'"]')
        kept = at = end
    parts.append(document[kept:])
    return b"".join(parts), texts


def read(dtype: DType, shape: tuple[int, ...], text: bytes) -> Array | None:
    """Return the array whose elements are the JSON list ``text``, flat or nested as ``shape``.

    ``None`` when it is anything but a list of numbers that ``dtype`` holds, as many as the
    checked ``shape`` says; or has a ``null``.
    """
    kind = dtype.numpy.kind
    count = element_count(shape)
    # An element takes two bytes at least: no shape makes this allocate more than came.
    if simdjson is None or kind not in "fViu" or not 0 < count <= len(text) // 2:
        return None
    flat = text.find(b"[", 1) < 0
    if not flat and not (shape and _nested_as(shape, text)):
        return None
    array = np.empty(count, _narrow(dtype))
    at = 0
    parser = simdjson.Parser()
    try:
        with np.errstate(over="raise"):
            for piece in _pieces(text, 1 if flat else len(shape)):
                numbers = _numbers(dtype, parser, piece)
                # None at all is what lies behind a comma that nothing follows.
                if not 0 < len(numbers) <= count - at:
                    return None
                array[at : at + len(numbers)] = numbers
                at += len(numbers)
    except (*_REFUSED, FloatingPointError):
        return None
    if at != count:
        return None
    array = array.astype(dtype.numpy, copy=False)
    if kind == "V" and np.isinf(array).any():
        return None
    return array.reshape(shape)


def shape_of(text: bytes) -> tuple[int, ...] | None:
    """Return how the list ``text`` is nested, if it is one of numbers with rows that are alike.

    ``None`` when it is not, or is too deep. Whether there are as many numbers as this says is for
    :func:`read` to find out, and it is for the ordinary parser what is malformed.
    """
    skeleton = text.translate(None, _NO_SKELETON)
    rank = len(skeleton) - len(skeleton.lstrip(b"["))
    if not 0 < rank <= MAX_RANK:
        return None
    shape: list[int] = []
    inner = 0  # characters of one element
    for depth in range(1, rank + 1):
        end = skeleton.find(b"]" * depth)
        if end < 0:
            return None
        # Without its own two brackets; a comma less than there are elements.
        length = end + depth - (rank - depth) - 2
        count, rest = divmod(length + 1, inner + 1)
        if rest:
            return None
        shape.append(count)
        inner = length + 2
    return tuple(reversed(shape))


def _pieces(text: bytes, rank: int) -> Iterator[bytes]:
    """Cut the list ``text`` at commas into lists of ``rank``, which are JSON if it is.

    It is cut behind a whole row, or anywhere if it is flat. The lists that are open there are
    closed at the end of one piece and opened at the beginning of the next.
    """
    mark, behind = (b",", _COMMA) if rank == 1 else (b"]", _ROW_END)
    open_lists = position = 0
    while True:
        cut = text.find(mark, position + _PIECE)
        found = None if cut < 0 else behind.match(text, cut)
        if found is None:
            yield b"[" * open_lists + text[position:]
            return
        stop = found.end() - 1
        begun, piece = b"[" * open_lists, text[position:stop]
        open_lists = rank - piece.count(b"]", len(piece.rstrip(_CLOSING)))
        yield begun + piece + b"]" * open_lists
        position = stop + 1


def _numbers(dtype: DType, parser: Any, text: bytes) -> Array:
    """Return the numbers in ``text``, all of one kind and within the range of ``dtype``."""
    kind = dtype.numpy.kind
    found = parser.parse(text)
    if kind in "fV":
        wide: Array = np.frombuffer(found.as_buffer(of_type="d"), np.float64)
        return wide.astype(_narrow(dtype))
    wide = np.frombuffer(found.as_buffer(of_type=kind), np.dtype(f"{kind}8"))
    least, greatest = INTEGER_RANGES[dtype]
    if len(wide) and (wide.min() < least or wide.max() > greatest):
        raise ValueError
    return wide.astype(dtype.numpy)


def _narrow(dtype: DType) -> np.dtype[Any]:
    """Return the type that numbers are rounded to first: BF16 comes by way of FP32."""
    return np.dtype(np.float32) if dtype is DType.BF16 else dtype.numpy


def _nested_as(shape: tuple[int, ...], text: bytes) -> bool:
    """Say whether the lists in ``text``, if it is JSON and has no empty ones, are as ``shape``."""
    skeleton = text.translate(None, _NO_SKELETON)
    length = 1 + shape[-1]
    for dimension in shape[-2::-1]:
        length = 1 + dimension * (length + 1)
    if length != len(skeleton):
        return False
    wanted = b"[" + b"," * (shape[-1] - 1) + b"]"
    for dimension in shape[-2::-1]:
        wanted = b"[" + b",".join([wanted] * dimension) + b"]"
    return skeleton == wanted
