"""Histograms of fixed bounds, cheap enough for every call and every batch."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

DURATION_BOUNDS = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1,
    0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
)  # fmt: skip
"""Seconds: from what a tiny model takes to what a patient caller waits."""
SIZE_BOUNDS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
"""Rows in a batch."""


class Histogram:
    """Counts of values by the first bound that is not less than them, and their sum.

    The last count is that of values beyond every bound. It is used by one thread.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def observe_since(
        self, times: Sequence[float], oldest: float, newest: float, total: float, now: float
    ) -> None:
        """Count how long ago each of ``times`` was; ``total`` is their sum.

        What arrived together is counted together: as a rule all of a batch falls between the
        same two bounds.
        """
        counts, bounds = self.counts, self.bounds
        first = bisect_left(bounds, now - newest)
        if first == bisect_left(bounds, now - oldest):
            counts[first] += len(times)
        else:
            for time in times:
                counts[bisect_left(bounds, now - time)] += 1
        self.total += len(times) * now - total
