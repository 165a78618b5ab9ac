"""What a load and a proxy saw over time, and what that says of a fault; no I/O.

Times are seconds since the beginning of the load. Shares are of the attempts that the proxy made,
retries and attempts that found nobody listening included, and not of answers: a dead backend
answers nothing and still costs every call that is sent to it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

STEP = 0.1
"""Seconds of one point of a timeline."""
WINDOW = 0.5
"""Seconds over which a share is taken to judge."""
LONG_WINDOW = 1.0
"""Seconds over which a percentile is: p99 of fewer calls is a matter of three or four."""


@dataclass(frozen=True, slots=True)
class Calls:
    """Each call of an open loop, in the order in which they were due."""

    due: Floats
    """Seconds."""
    took_ms: Floats
    """From then to its outcome."""
    codes: Sequence[str]
    nodes: Sequence[str]
    """Who answered; ``""`` for a failure."""

    def failures(self, start: float, end: float) -> Counter[str]:
        """Return how many calls due in this time failed, by code."""
        first, last = np.searchsorted(self.due, (start, end))
        return Counter(code for code in self.codes[first:last] if code != "OK")

    def percentile(self, percent: float, start: float, end: float) -> float:
        """Return a percentile of the latencies of the calls due in this time, in milliseconds."""
        first, last = np.searchsorted(self.due, (start, end))
        return float(np.percentile(self.took_ms[first:last], percent)) if last > first else 0.0

    def normal_again(self, fault: float, until: float, most_ms: float) -> float:
        """Return seconds from the fault to when p99 stays at ``most_ms`` or below.

        The percentile is that of windows of :data:`LONG_WINDOW` seconds, a :data:`STEP` apart; the
        answer is the end of the last that is above. Infinite if that is the last one of all.
        """
        starts = np.arange(fault, until - LONG_WINDOW + 1e-9, STEP)
        above = [
            start for start in starts if self.percentile(99, start, start + LONG_WINDOW) > most_ms
        ]
        if not above:
            return 0.0
        if above[-1] >= starts[-1] - 1e-9:
            return math.inf
        return float(above[-1]) + LONG_WINDOW - fault


@dataclass(frozen=True, slots=True)
class Attempts:
    """How many calls a proxy had sent to each backend, looked at from time to time."""

    times: Floats
    counts: Mapping[str, Floats]
    """Attempts so far, at each of the times."""

    def between(self, start: float, end: float) -> dict[str, float]:
        """Return the attempts in this time by backend; between two looks in equal parts."""
        return {
            name: float(np.interp(end, self.times, seen) - np.interp(start, self.times, seen))
            for name, seen in self.counts.items()
        }

    def share(self, name: str, start: float, end: float) -> float:
        """Return a backend's share of the attempts in this time; 0 when there were none."""
        counts = self.between(start, end)
        total = sum(counts.values())
        return counts[name] / total if total else 0.0

    def shares(self, name: str, start: float, end: float, window: float = WINDOW) -> Floats:
        """Return its share in windows a :data:`STEP` apart, from ``start`` to ``end``."""
        starts = np.arange(start, end - window + 1e-9, STEP)
        return np.array([self.share(name, at, at + window) for at in starts])

    def left(self, name: str, fault: float, until: float, most: float = 0.01) -> float:
        """Return seconds from the fault to when the share stays below ``most``.

        It is the end of the last window in which it was not. Infinite if that is the last.
        """
        shares = self.shares(name, fault, until)
        above = np.flatnonzero(shares >= most)
        if not above.size:
            return 0.0
        if above[-1] == len(shares) - 1:
            return math.inf
        return float(above[-1]) * STEP + WINDOW

    def returned(self, name: str, healed: float, until: float, least: float) -> float:
        """Return seconds from ``healed`` to the end of the first window of a whole share.

        A share of at least ``least``. Infinite if there is none.
        """
        full = np.flatnonzero(self.shares(name, healed, until) >= least)
        return float(full[0]) * STEP + WINDOW if full.size else math.inf

    def swings(self, name: str, start: float, end: float, low: float, high: float) -> int:
        """Return how often the share rose from below ``low`` to above ``high``."""
        count, below = 0, False
        for share in self.shares(name, start, end):
            if share < low:
                below = True
            elif share > high and below:
                count += 1
                below = False
        return count


def to_attempts(
    times: Sequence[float], looks: Sequence[Mapping[str, Mapping[str, int]]]
) -> Attempts:
    """Return the attempts from what Envoy counts for each endpoint.

    ``rq_total`` has what reached a connection. What found none is only in ``rq_error``, so the
    attempts are no fewer than those that ended (``rq_success``, ``rq_error``) and those that are
    under way (``rq_active``). The first look is the zero.
    """
    names = {name for look in looks for name in look}
    counts: dict[str, Floats] = {}
    for name in sorted(names):
        seen = [_attempted(look.get(name, {})) for look in looks]
        # A look can be half old: no attempt is unmade.
        counts[name] = np.maximum.accumulate(np.array(seen, np.float64)) - seen[0]
    return Attempts(np.array(times, np.float64), counts)


def _attempted(counted: Mapping[str, int]) -> int:
    ended = counted.get("rq_success", 0) + counted.get("rq_error", 0)
    return max(counted.get("rq_total", 0), ended + counted.get("rq_active", 0))
