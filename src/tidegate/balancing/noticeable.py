"""Which changes of a weight are told: at each one, who picks begins its turns anew."""

from __future__ import annotations

from tidegate.balancing.record import Record
from tidegate.balancing.verdict import Verdict

_LEAST = 0.03
"""A weight that changes by a smaller part is left as it is."""
_LEAST_PROBING = 3.0
"""How many times more or less the few calls of a probed one must be."""
_LEAST_BESIDE = 0.15
"""The part for those beside a probed one, whose turn is far away and must come all the same."""
_SETTLED = 5.0
"""After so many seconds smaller changes count too, so that equal endpoints end up equal."""
_LEAST_SETTLED = 0.005


def is_noticeable(record: Record, old: Verdict, weight: int, now: float, *, beside: bool) -> bool:
    """Say whether a new ``weight`` is to take the place of the ``old`` verdict's.

    ``beside`` says that others of the cluster are out, or probed.
    """
    state = record.ejection.state
    if state != old.state and "probing" in (state, old.state):
        return True  # in a panic, the weight may be the same
    if state == "probing":
        larger, smaller = max(weight, old.weight), min(weight, old.weight)
        return larger > _LEAST_PROBING * smaller
    if record.base != old.base:
        return weight != old.weight  # somebody wants it to be another
    least = _LEAST
    if beside:
        least = _LEAST_BESIDE
    elif now - record.published_at >= _SETTLED:
        least = _LEAST_SETTLED
    return abs(weight - old.weight) > least * old.weight
