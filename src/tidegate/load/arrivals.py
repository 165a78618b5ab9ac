"""When the calls of an open loop are due: planned ahead, whatever the server does.

A closed loop slows down with the server that it measures: the calls that would have met a
pause are never made, so the pause hardly shows ("coordinated omission", Gil Tene). Here the
times are fixed before the first call, and latency counts from them.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from tidegate.errors import ConfigurationError

MOST = 20_000_000
"""Calls in one schedule; each takes 8 bytes here and as many for its latency."""

Times = npt.NDArray[np.float64]


def uniform(rate: float, seconds: float) -> Times:
    """Return times in seconds, ``1 / rate`` apart, from 0 to ``seconds``.

    Raises:
        ConfigurationError: there would be none, or more than :data:`MOST`.
    """
    return np.arange(_count(rate, seconds)) / rate


def poisson(rate: float, seconds: float) -> Times:
    """Return the times of independent callers: exponential gaps, ``rate`` a second on average.

    The same arguments give the same times.

    Raises:
        ConfigurationError: there would be none, or more than :data:`MOST`.
    """
    count = _count(rate, seconds)
    # Given their number, the times of a Poisson process are uniform ones, put in order.
    return np.sort(np.random.default_rng(0).random(count)) * seconds


def after_warm_up(pattern: str, rate: float, warm_up: float, seconds: float) -> Times:
    """Return the times of a load of ``warm_up`` and then ``seconds``, both at ``rate``.

    Each part has as many calls as its length says, so that what is measured is what was asked.

    Raises:
        ConfigurationError: there would be no call after the warm-up, or more than :data:`MOST`.
    """
    measured = PATTERNS[pattern](rate, seconds) + warm_up
    if rate * warm_up < 1:
        return measured
    return np.concatenate((PATTERNS[pattern](rate, warm_up), measured))


PATTERNS: dict[str, Callable[[float, float], Times]] = {"poisson": poisson, "uniform": uniform}


def _count(rate: float, seconds: float) -> int:
    count = rate * seconds
    if not 1 <= count <= MOST:
        raise ConfigurationError(
            f"{rate:g} calls/s for {seconds:g} s are {count:g} calls: give a rate and a duration "
            f"that make between 1 and {MOST:,}"
        )
    return round(count)


class Schedule:
    """A cursor over planned times; whoever asks passes the time in."""

    def __init__(self, times: Times) -> None:
        self._times: list[float] = times.tolist()
        self._next = 0

    @property
    def next_due(self) -> float | None:
        """When the next call is due; ``None`` when all have been taken."""
        return self._times[self._next] if self._next < len(self._times) else None

    def count_due(self, elapsed: float) -> int:
        """Return how many calls are due by now."""
        return bisect.bisect_right(self._times, elapsed, self._next) - self._next

    def take(self, elapsed: float) -> float | None:
        """Take the next call if it is due by now; return the time at which it was."""
        if self._next >= len(self._times):
            return None
        due = self._times[self._next]
        if due > elapsed:
            return None
        self._next += 1
        return due

    def take_rest(self) -> list[float]:
        """Take all that are left; return the times at which they were, or would be, due."""
        rest = self._times[self._next :]
        self._next = len(self._times)
        return rest
