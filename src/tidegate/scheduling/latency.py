"""How long the model takes for a batch of so many rows, learnt from its runs."""

from __future__ import annotations


class LatencyModel:
    """Two tables of run times by batch size, in powers of two: the least and the most.

    The least is for refusing what cannot be answered in time. It errs on the low side,
    since a request that is refused teaches nothing: it falls to a faster run at once, rises
    slowly to slower ones, and each refusal that it causes makes it :meth:`doubt` itself, so
    that a few slow runs cannot shut the door for good.

    The most is for relying on a model to be quick: it rises to a slower run at once and
    falls slowly.
    """

    _RISE = 0.1
    _DOUBT = 0.9
    _FALL = 0.05

    def __init__(self) -> None:
        self._least: dict[int, float] = {}
        self._most: dict[int, float] = {}

    def observe(self, rows: int, seconds: float) -> None:
        """Learn that a run of ``rows`` rows took ``seconds``."""
        bucket = rows.bit_length()
        least = self._least.get(bucket)
        if least is None:
            self._least[bucket] = self._most[bucket] = seconds
            return
        most = self._most[bucket]
        self._least[bucket] = min(seconds, least + (seconds - least) * self._RISE)
        self._most[bucket] = max(seconds, most + (seconds - most) * self._FALL)

    def estimate(self, rows: int) -> float:
        """Return the seconds that a run of ``rows`` rows takes at least; 0 when not known."""
        return self._least.get(rows.bit_length(), 0.0)

    def at_most(self, rows: int) -> float:
        """Return the seconds that runs of ``rows`` rows have lately taken at most.

        Infinite when there was none.
        """
        return self._most.get(rows.bit_length(), float("inf"))

    def doubt(self, rows: int) -> None:
        """Lower the estimate for ``rows``: somebody was refused because of it."""
        bucket = rows.bit_length()
        if bucket in self._least:
            self._least[bucket] *= self._DOUBT
