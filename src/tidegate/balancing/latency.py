"""How fast an endpoint is against its neighbours, from calls in flight and calls that ended."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable

from tidegate.balancing.policy import BalancingPolicy

_LEARNT = 2.0
"""Seconds of calls after which an endpoint's usual latency is known well enough to judge by."""
_SOME = 4.0
"""Calls on which a latency must rest to count by half in what is usual."""
_EXTREME = math.log(1000.0)
"""Nobody counts as more times slower, or faster, than usual."""
_LEAST_SEEN = 4.0
"""As few calls seen in flight, its own and those to expect, move no weight."""
_PLENTY = 32.0
"""As many calls seen in flight make a latency that needs no longer memory."""
_PEAK = 10.0
"""Seconds in which the best pace, and the usual factor, are forgotten."""
_FULL_PACE = 0.75
"""One that ends so large a part of the most calls per second that it ever did is not slow."""
_PER_REPORT = 3.0
"""As much evidence one report can give: it may be a pause of a process."""


def slow_toll(expected: float, times: float) -> float:
    """How many calls in flight make "as usual" and "``times`` slower" equally likely.

    ``expected`` are those that are usual; their number is taken for Poisson's.
    """
    return expected * (times - 1.0) / math.log(times)


class Latency:
    """The mean latency of one endpoint, and what is usual for it.

    By Little's law the mean latency is the mean number of calls in flight over the calls that
    end per second. Calls in flight are only seen at each report: a latency is as good as the
    number of calls that were *seen* in flight (:meth:`evidence`), however many have ended.

    Time passes here only while there are calls: an endpoint without any is not forgotten.
    """

    __slots__ = (
        "_busy", "_calls", "_flow", "_habit", "_interval", "_known", "_pace",
        "_peak", "_usual_factor", "cautious_mean", "held", "log_factor", "score",
    )  # fmt: skip

    def __init__(self) -> None:
        self.cautious_mean: float | None = None
        """The mean latency as if one call more had been seen in flight for half a report."""
        self._busy = 0.0  # seconds of calls in flight
        self._calls = 0.0
        self._interval = 0.25
        self.log_factor = 0.0
        self._usual_factor = 0.0
        self._habit = 0.0  # the logarithm of the usual ratio to the others
        self._known = 0.0
        self._flow = 0.0  # calls that end per report, over the time that one takes
        self._pace = 0.0  # calls that end per second
        self._peak = 0.0  # the most of these, slowly forgotten
        self.held = 0.0
        """Calls in flight that are not looked at: they began before it was probed."""
        self.score = 0.0
        """The evidence that it is slower than usual, in calls seen in flight."""

    @property
    def mean(self) -> float | None:
        """The mean latency in seconds; ``None`` before the first call has ended."""
        return self._busy / self._calls if self._calls else None

    @property
    def seen(self) -> float:
        """How many calls were lately seen in flight."""
        return self._busy / self._interval

    @property
    def pace(self) -> float:
        """How many calls lately ended per second."""
        return self._pace

    @property
    def factor(self) -> float:
        """What the weight is multiplied by."""
        return math.exp(self.log_factor)

    @property
    def usual_ratio(self) -> float:
        """How slow it usually is against the others: 1 for as fast as these."""
        return math.exp(self._habit)

    def observe(self, in_flight: float, ended: int, elapsed: float, window: float) -> None:
        """Take one report's numbers in; the less is seen, the longer it is remembered."""
        memory = min(1.0, max(0.1, self.seen / _PLENTY))
        kept = math.exp(-elapsed / window * memory)
        self._interval = elapsed
        self._busy = self._busy * kept + in_flight * elapsed
        self._calls = self._calls * kept + ended
        self.cautious_mean = (self._busy + 0.5 * elapsed) / self._calls if self._calls else None
        self._pace += (ended / elapsed - self._pace) * (1.0 - math.exp(-elapsed))
        self._peak = max(self._pace, self._peak * math.exp(-elapsed / _PEAK))

    def forget(self) -> None:
        """Forget the latency, though not what is usual: it was a fault's."""
        self._busy = self._calls = self.score = 0.0
        self.cautious_mean = None
        self.log_factor = self._usual_factor

    def _ratio(self, reference: float) -> float:
        """The cautious mean over ``reference``, which is made of such means; 1 of few calls."""
        return (self.seen + 0.5) / max(self._expected(reference), 0.5)

    def _expected(self, reference: float) -> float:
        return self._calls * reference / self._interval

    def evidence(self, reference: float) -> float:
        """How many calls the latency rests on, were it like the ``reference`` or as it is."""
        return min(max(self.seen, self._expected(reference)), self._calls)

    def follow(self, reference: float, elapsed: float, policy: BalancingPolicy) -> None:
        """Move the factor towards ``reference`` / latency.

        The latency depends on the share that the factor gives. Moving there slowly, and on a
        logarithmic scale, makes both come to rest.
        """
        difference = math.log(self._ratio(reference))
        # As much of it as stands out of the noise: equal endpoints are to look equal.
        seen, expected = self.seen + 0.5, self._expected(reference) + 0.5
        if seen + expected < _LEAST_SEEN:
            return
        # A call that is longer than a report was seen more than once.
        repeated = max(1.0, max(seen, expected) / (self._calls + 1.0))
        noise = policy.latency_evidence * repeated * (1.0 / seen + 1.0 / expected)
        confidence = difference**2 / (difference**2 + noise)
        bound = math.log(policy.latency_clamp)
        target = max(-bound, min(bound, -difference * confidence))
        if self.held >= 1.0:
            target = min(target, 0.0)  # what is left out is no merit
        step = 1.0 - math.exp(-elapsed / policy.latency_damping)
        self.log_factor += (target - self.log_factor) * step
        step = 1.0 - math.exp(-elapsed / _PEAK)
        self._usual_factor += (self.log_factor - self._usual_factor) * step

    def learn(self, others: float, elapsed: float, policy: BalancingPolicy) -> None:
        """Learn what is usual, against the latency of the ``others``."""
        evidence = self.evidence(others)
        weight = elapsed * evidence / (evidence + _SOME)
        self._known += weight
        if self._known > 0:
            # At first the plain mean, later the latest ``policy.habit`` seconds.
            step = min(1.0, weight / min(self._known, policy.habit))
            ratio = max(-_EXTREME, min(_EXTREME, math.log(self._ratio(others))))
            self._habit += (ratio - self._habit) * step

    @property
    def learnt(self) -> bool:
        """Whether its usual latency is known well enough to call it slower than that."""
        return self._known >= _LEARNT

    def usual(self, others: float) -> float:
        """The latency in seconds to expect, at which nobody is surprised."""
        return others * max(1.0, self.usual_ratio)

    def excess(self, others: float) -> float:
        """How many times slower it is than usual; at most as many as slower than the others."""
        return self._ratio(others) / max(1.0, self.usual_ratio)

    def suspect(self, in_flight: float, ended: int, others: float, times: float) -> float:
        """Add a report's evidence for being ``times`` slower than usual; return all of it.

        Page's cumulative sum, in calls seen in flight: were they as long as usual, the sum
        would fall back to 0 again and again. One that ends as many calls per second as ever is
        not slow: it has more to do than it can, and the rest waits.
        """
        if not self.learnt:
            return 0.0
        usual = self.usual(others)
        # Calls in flight now began a while ago: they are held against as many as ended then.
        step = 1.0 - math.exp(-self._interval / (0.5 * self._interval + usual))
        self._flow += (ended - self._flow) * step if self._flow else ended
        expected = self._flow * usual / self._interval
        once = min(1.0, self._interval / usual)  # longer ones are seen more than once
        found = min(_PER_REPORT, (in_flight - slow_toll(expected, times)) * once)
        if max(ended, self._flow) / self._interval >= _FULL_PACE * self._peak:
            found = min(found, 0.0)
        self.score = max(0.0, self.score + found)
        return self.score

    def get_used_to(self, times: float) -> None:
        """Take as usual what is ``times`` slower."""
        self._habit = min(_EXTREME, max(0.0, self._habit) + math.log(times))


class Reference:
    """The latencies of those that serve, to compare one with."""

    def __init__(self, means: Iterable[float]) -> None:
        self._sorted = sorted(means)

    def __len__(self) -> int:
        """How many are compared."""
        return len(self._sorted)

    @property
    def median(self) -> float:
        """The median; of an even number, the geometric mean of the two in the middle."""
        return _median(self._sorted, len(self._sorted))

    def others(self, mean: float | None) -> float | None:
        """The median without the one whose latency is ``mean``, ``None`` when nobody is left.

        Of two, each is compared with the other: with both of them, one that is ten times slower
        than its neighbour would be three times slower than the median.
        """
        count = len(self._sorted)
        if mean is None:
            return self.median if count else None
        place = bisect_left(self._sorted, mean)
        if place == count or self._sorted[place] != mean:
            return self.median if count else None
        return _median(self._sorted, count - 1, place) if count > 1 else None


def _median(ordered: list[float], count: int, without: int | None = None) -> float:
    """The median of ``ordered``, in which the one at ``without`` does not count."""

    def at(place: int) -> float:
        return ordered[place if without is None or place < without else place + 1]

    low, high = at((count - 1) // 2), at(count // 2)
    return math.sqrt(low * high)
