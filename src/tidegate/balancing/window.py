"""The window form: what the reference rule makes of many calls at once."""

from __future__ import annotations


def window_weight(weight: float, base: float, succeeded: int, failed: int) -> float:
    """Return the effective weight after ``succeeded`` and ``failed`` calls in any order.

    It is the expectation of the reference rule (:mod:`tidegate.balancing.reference`) when each
    of the n = succeeded + failed calls fails with probability p = failed / n. A success maps w
    to (w + W) / 2, a failure to w / 2; on average w comes half of the way closer to
    (1 - p)·W with each call, so that after n

        w ← (1 - p)·W + (w - (1 - p)·W) · 2⁻ⁿ

    ``base`` is the configured weight W. The result lies between 1 (or W, where W is less) and W.
    Without calls the weight stays as it is.
    """
    calls = succeeded + failed
    if not calls:
        return weight
    towards = base * succeeded / calls
    # Beyond 64 calls nothing is left of where it began, and 2.0**-2000 would be 0 anyway.
    left = (weight - towards) * 2.0 ** -min(calls, 64)
    return min(base, max(min(1.0, base), towards + left))
