"""Sizes and durations as people write them: ``64MiB``, ``2.5 GiB``, ``250ms``, ``1m``."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator, Field

_QUANTITY = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-zµ]*)\s*")
_BYTES = {
    "": 1, "B": 1,
    "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
    "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40,
}  # fmt: skip
_SECONDS = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def parse_size(value: object) -> object:
    """Turn ``"64MiB"`` into 67108864; leave what is not text as it is.

    Raises:
        ValueError: the text is not a size.
    """
    if not isinstance(value, str):
        return value
    match = _QUANTITY.fullmatch(value)
    if match is None or match[2].upper() not in _BYTES:
        raise ValueError(f"{value!r} is not a size: write a number of bytes, or as 64MiB, 2GiB")
    return int(float(match[1]) * _BYTES[match[2].upper()])


def parse_duration(value: object) -> object:
    """Turn ``"250ms"`` into 0.25 seconds; leave what is not text as it is.

    Raises:
        ValueError: the text is not a duration.
    """
    if not isinstance(value, str):
        return value
    match = _QUANTITY.fullmatch(value)
    if match is not None and not match[2]:
        return float(match[1])
    if match is None or match[2] not in _SECONDS:
        raise ValueError(f"{value!r} is not a duration: write seconds, or as 250ms, 30s, 5m")
    return float(match[1]) * _SECONDS[match[2]]


Size = Annotated[int, BeforeValidator(parse_size)]
"""Bytes."""
Duration = Annotated[float, BeforeValidator(parse_duration)]
"""Seconds."""
Timeout = Annotated[Duration, Field(ge=0.001, le=2_592_000)]
"""Seconds: a millisecond, less than which is no time to Envoy, to thirty days."""
