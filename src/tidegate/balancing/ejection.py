"""When an endpoint is taken out, probed, and let back in."""

from __future__ import annotations

from typing import Literal

from tidegate.balancing.policy import BalancingPolicy
from tidegate.balancing.verdict import State

Cause = Literal["failures", "silence", "slow"]


class Ejection:
    """The life of one endpoint as a state machine: serving, ejected, probing, warming.

    Ejections grow with each relapse, so that one that comes and goes stays out; probes that
    fail do not make them grow, so that the first fault, however long, ends soon after healing.
    """

    __slots__ = (
        "_policy", "began", "cause", "counted", "flaps", "issued", "passed", "probing_since",
        "ramp", "since", "state", "until", "warm_from", "why",
    )  # fmt: skip

    def __init__(self, policy: BalancingPolicy, state: State, now: float) -> None:
        self._policy = policy
        self.state: State = state
        self.since = now
        """When it began to serve."""
        self.until = 0.0
        """When it is probed, while it is ejected."""
        self.began = now
        """When it was ejected for the first time of this fault."""
        self.flaps = 0
        """Ejections since it was calm; those while it was out do not count."""
        self.cause: Cause = "failures"
        self.why = ""
        self.warm_from = now
        self.ramp = policy.slow_start
        """Seconds that its share takes to grow."""
        self.issued = self.passed = self.counted = 0
        """Probes that were sent, that succeeded, and that came to an end."""
        self.probing_since = now

    def follow(self, policy: BalancingPolicy) -> None:
        """Go by another policy from now on; what has begun ends as it was to."""
        self._policy = policy

    @property
    def out(self) -> bool:
        """Whether it is not trusted with its share: ejected or probing."""
        return self.state in ("ejected", "probing")

    @property
    def length(self) -> float:
        """How long an ejection lasts at present, in seconds."""
        return self._grown(self._policy.ejection_time, self._policy.longest_ejection)

    def _grown(self, seconds: float, longest: float) -> float:
        growth = self._policy.ejection_growth ** max(0, min(self.flaps, 64) - 1)
        return max(seconds, min(longest, seconds * growth))

    def calm(self, now: float) -> bool:
        """Whether it has served for so long that earlier ejections do not matter any more."""
        return self.state == "serving" and now - self.since >= self._policy.calm

    def relapsing(self, cause: Cause) -> bool:
        """Whether the same cause had it ejected before."""
        return self.flaps > 0 and self.cause == cause

    def eject(self, cause: Cause, why: str, now: float) -> None:
        """Take it out, or, while it is probed, leave it out for as long again."""
        if not self.out:
            if self.calm(now):
                self.flaps = 0
            # One that is judged slow by its first calls after a probe was never well.
            if not (cause == "slow" and self.state == "warming" and self.relapsing(cause)):
                self.flaps += 1
                self.began = now
        self.state = "ejected"
        self.cause = cause
        self.why = why
        self.until = now + self.length

    def probe(self, now: float) -> None:
        """Send it a few calls."""
        self.state = "probing"
        self.probing_since = now
        self.issued = self.passed = self.counted = 0

    def recover(self, now: float) -> None:
        """Let it back in, the slower the more often it has relapsed."""
        self.warm(now, self._grown(self._policy.recovery, self._policy.slow_start))

    def warm(self, now: float, seconds: float) -> None:
        """Let its share grow to the full one in so many seconds."""
        self.state = "warming"
        self.warm_from = now
        self.ramp = seconds

    def warmth(self, now: float) -> float:
        """The part of its weight that it gets for how long it has been back."""
        if self.state == "serving" or self.out:
            return 1.0
        floor = self._policy.slow_start_floor
        if self.ramp <= 0 or (self.state == "warming" and now >= self.warm_from + self.ramp):
            return 1.0
        if self.state == "new":
            return floor
        return floor + (1.0 - floor) * max(0.0, now - self.warm_from) / self.ramp

    def serve(self, now: float) -> None:
        """Give it its full share."""
        self.state = "serving"
        self.since = now

    def step(self, now: float) -> bool:
        """Do what is due by time alone; return whether anything was."""
        if self.state == "ejected" and now >= self.until:
            self.probe(now)
            return True
        if self.state == "warming" and now >= self.warm_from + self.ramp:
            self.serve(now)
            return True
        return False

    def next_change(self, now: float) -> float | None:
        """When :meth:`step`, or a growing share, has something to do next."""
        if self.state == "ejected":
            return self.until
        if self.state == "warming":
            return min(self.warm_from + self.ramp, now + max(0.25, self.ramp / 20))
        return None
