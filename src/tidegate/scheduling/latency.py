"""How long the model takes for a batch of so many rows, learnt from its runs."""

from __future__ import annotations


class LatencyModel:
    """A table of run times by batch size, in powers of two.

    It errs on the low side, since a request that is refused teaches nothing: it falls to a
    faster run at once, rises slowly to slower ones, and each refusal that it causes makes
    it :meth:`doubt` itself, so that a few slow runs cannot shut the door for good.
    """

    _RISE = 0.1
    _DOUBT = 0.9

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}

    def observe(self, rows: int, seconds: float) -> None:
        """Learn that a run of ``rows`` rows took ``seconds``."""
        bucket = rows.bit_length()
        known = self._seconds.get(bucket)
        if known is None or seconds < known:
            self._seconds[bucket] = seconds
        else:
            self._seconds[bucket] = known + (seconds - known) * self._RISE

    def estimate(self, rows: int) -> float:
        """Return the seconds that a run of ``rows`` rows takes at least; 0 when not known."""
        return self._seconds.get(rows.bit_length(), 0.0)

    def doubt(self, rows: int) -> None:
        """Lower the estimate for ``rows``: somebody was refused because of it."""
        bucket = rows.bit_length()
        if bucket in self._seconds:
            self._seconds[bucket] *= self._DOUBT
