"""The scale in which verdicts give weights."""

from __future__ import annotations

from collections.abc import Mapping

from tidegate.balancing.verdict import MAX_WEIGHT

_FULL = 10_000
"""The verdict's weight of a configured weight of 100."""


def scale_of(bases: Mapping[str, int]) -> float:
    """What configured weights are multiplied by: factors must not be lost in rounding.

    The sum of an edge's weights must fit 32 bits, each one :data:`MAX_WEIGHT`, and there must be
    room above for those that get more than their weight for being fast.
    """
    largest = max(bases.values(), default=1) or 1
    bound = min(MAX_WEIGHT, 2**32 // max(1, len(bases))) / 20
    return min(max(_FULL / 100, _FULL / largest), bound / largest)
