"""What is known of one endpoint, and what speaks against it."""

from __future__ import annotations

import math

from tidegate.balancing.ejection import Cause, Ejection
from tidegate.balancing.latency import Latency, Reference, slow_toll
from tidegate.balancing.outcome import Outcome
from tidegate.balancing.policy import BalancingPolicy
from tidegate.balancing.verdict import State
from tidegate.balancing.window import window_weight

_LONGEST_DRAIN = 5.0
"""Seconds for which probing a slow one waits for the calls that it still has."""
_DRAINED = 1.0
"""Seconds without an answer after which what is in flight is a stream, or lost."""
_REPLACED = 5.0
"""The time constant in seconds in which calls from before a probe are forgotten after it, and
reports of the load that come no more."""
_NOTHING = 0.005
_ALARM = 1.25
"""What each alarm makes an outlier's usual latency grow by: it may be so by nature at times."""
_SURELY_SOME = 8.0
"""So many calls are expected of an endpoint that none at all is no chance."""
_SURELY_WELL = 2.0
"""How many calls fewer must be seen in flight than of an endpoint that is still slow."""
_NO_CHANCE = 5.0
"""A difference of so many standard deviations is none."""


class Tally:
    """Calls that ended lately, with time forgotten."""

    __slots__ = ("at", "cancelled", "failed", "succeeded")

    def __init__(self, now: float) -> None:
        self.succeeded = 0.0
        self.failed = 0.0
        self.cancelled = 0.0
        self.at = now

    def add(self, succeeded: int, failed: int, cancelled: int, now: float, window: float) -> None:
        """Add calls that ended now."""
        kept = math.exp(min(0.0, self.at - now) / window)
        self.succeeded = self.succeeded * kept + succeeded
        self.failed = self.failed * kept + failed
        self.cancelled = self.cancelled * kept + cancelled
        self.at = now

    def without(self, part: Tally) -> Tally:
        """Return what is left when a part of them is left out."""
        rest = Tally(self.at)
        rest.succeeded = max(0.0, self.succeeded - part.succeeded)
        rest.failed = max(0.0, self.failed - part.failed)
        rest.cancelled = max(0.0, self.cancelled - part.cancelled)
        return rest

    @property
    def cancelled_part(self) -> float:
        """The probability that a call is cancelled: 1/2 while no call is known."""
        return (self.cancelled + 0.5) / (self.calls + 1.0)

    @property
    def calls(self) -> float:
        """All of them."""
        return self.succeeded + self.failed + self.cancelled


class Record:
    """One endpoint: its weight, its latency, its life."""

    __slots__ = (
        "_policy", "base", "cancelled", "cancelled_at", "crowd", "effective", "ejection",
        "explained_at", "in_flight", "latency", "load", "load_log_factor", "missed",
        "published_at", "run", "run_at", "silent", "tally", "waiting",
    )  # fmt: skip

    def __init__(self, policy: BalancingPolicy, base: int, state: State, now: float) -> None:
        self._policy = policy
        self.base = base
        self.effective = float(base)
        self.latency = Latency()
        self.ejection = Ejection(policy, state, now)
        self.in_flight = 0.0
        self.crowd = 0.0  # the mean of the calls in flight lately
        self.published_at = self.explained_at = now
        self.load: float | None = None
        self.load_log_factor = 0.0
        self.tally = Tally(now)
        self.run = 0  # failures without a success between them
        self.run_at = now
        self.cancelled = 0  # calls without a success between them
        self.cancelled_at = now  # when the first of them was
        self.silent = 0.0  # seconds since a call ended, while some were in flight
        self.waiting = 0.0  # calls issued since then
        self.missed = 0.0  # calls that should have ended meanwhile

    @property
    def reliability(self) -> float:
        """The effective weight over the configured one."""
        return self.effective / self.base if self.base else 1.0

    @property
    def ordinary(self) -> bool:
        """Whether it serves, and nothing is known that makes its weight another."""
        return (
            self.ejection.state == "serving"
            and self.latency.log_factor == self.load_log_factor == 0.0
            and self.effective == self.base
        )

    @property
    def load_factor(self) -> float:
        """What the weight is multiplied by for how busy it says it is."""
        return math.exp(self.load_log_factor)

    @property
    def awaited(self) -> float:
        """Probes that are on their way; one whose caller gave up comes to no end that counts."""
        return min(self.ejection.issued - self.ejection.counted, self.in_flight)

    def follow(self, policy: BalancingPolicy) -> None:
        """Be judged by another policy from now on."""
        self._policy = policy
        self.ejection.follow(policy)

    def rebase(self, base: int) -> None:
        """Take a new configured weight; the effective one keeps its place below it."""
        self.effective = max(min(1.0, base), base * self.reliability)
        self.base = base

    def observe(self, outcome: Outcome, elapsed: float, now: float) -> None:
        """Take the numbers of one report in; what they mean is for :meth:`complaint`."""
        policy = self._policy
        ended = outcome.succeeded + outcome.failed
        self.in_flight = outcome.in_flight
        self.crowd += (outcome.in_flight - self.crowd) * (1.0 - math.exp(-elapsed))
        latency = self.latency
        old = min(latency.held, outcome.cancelled)
        latency.held = min(latency.held - old, outcome.in_flight)
        if not self.ejection.out:
            # Newer calls take the places of those that end, which cannot be seen.
            latency.held *= math.exp(-elapsed / _REPLACED)
        if not self.ejection.out and 4 * outcome.failed <= ended:
            # Failures are quicker than answers, or slower: they tell nothing of the latency.
            in_flight = outcome.in_flight - latency.held
            latency.observe(in_flight, ended, elapsed, policy.latency_window)
        self.effective = window_weight(
            self.effective, self.base, outcome.succeeded, outcome.failed
        )
        self.tally.add(
            outcome.succeeded, outcome.failed, outcome.cancelled, now, policy.failure_window
        )
        if outcome.succeeded:
            self.cancelled = 0
        elif outcome.cancelled > old:
            if not self.cancelled:
                self.cancelled_at = now
            self.cancelled += math.floor(outcome.cancelled - old)
        if outcome.succeeded or now - self.run_at > 4 * policy.failure_window:
            self.run = 0
        if outcome.failed:
            self.run_at = now
            self.run = outcome.failed + (0 if outcome.succeeded else self.run)
        if ended or not outcome.in_flight:
            self.silent = self.missed = 0.0
            self.waiting = max(0, outcome.in_flight - latency.held) if ended else 0
        else:
            self.silent += elapsed
            self.waiting += outcome.issued
        if outcome.utilization is not None:
            self.observe_load(outcome.utilization, elapsed)

    def observe_load(self, utilization: float, elapsed: float) -> None:
        """Take in how busy it says it is."""
        utilization = min(1.0, max(0.0, utilization))
        step = 1.0 - math.exp(-elapsed / self._policy.latency_window)
        old = utilization if self.load is None else self.load
        self.load = old + (utilization - old) * step

    def follow_load(self, median: float, elapsed: float) -> None:
        """Move the factor of the load towards where all are as busy as the ``median``."""
        if self.load is None:
            return
        bound = math.log(self._policy.utilization_clamp)
        target = math.log((median + 0.05) / (self.load + 0.05))
        step = 1.0 - math.exp(-elapsed / self._policy.latency_damping)
        self.load_log_factor += (max(-bound, min(bound, target)) - self.load_log_factor) * step

    def forget_load(self, elapsed: float) -> None:
        """Answers do not tell any more how busy it is: what they told counts for less and less."""
        if self.load_log_factor:
            self.load_log_factor *= math.exp(-elapsed / _REPLACED)
            if abs(self.load_log_factor) < _NOTHING:
                self.load, self.load_log_factor = None, 0.0

    def complaint(
        self,
        outcome: Outcome,
        others: Tally,
        reference: Reference,
        others_ended: int,
        elapsed: float,
    ) -> tuple[Cause, str] | None:
        """Say what is so wrong with one that serves that it must be taken out, if anything.

        ``others`` are the calls of all other endpoints lately, ``others_ended`` those that
        ended in this report.
        """
        policy = self._policy
        wary = self.ejection.flaps and not self.ejection.calm(self.tally.at)
        enough = policy.relapse_failures if wary else policy.consecutive_failures
        if not outcome.succeeded and self.run >= enough:
            return "failures", f"{self.run} calls failed in a row"
        others_calls = others.succeeded + others.failed
        usual = others.failed / others_calls if others_calls >= 1 else 0.0
        for lately in (outcome, self.tally):  # alone, the report shows a fault that is new
            calls = lately.succeeded + lately.failed
            if outcome.failed and calls >= policy.failure_rate_calls:
                rate = lately.failed / calls
                if rate >= policy.failure_rate and usual < rate / 2:
                    whose = f"{usual:.0%} of the others'"
                    return "failures", f"{rate:.0%} of its calls failed, {whose}"
        if outcome.cancelled and (why := self._deserted(others, enough)):
            return "failures", why
        if self.silent and others_ended:
            return self._silence(reference, elapsed)
        return None

    def _deserted(self, others: Tally, enough: int) -> str:
        """Say so if callers gave up who would not have, were it like the ``others``.

        Its worker hangs, say, and its health checks pass. Callers who go away, or whose deadlines
        nobody can hold, do so at all endpoints; one who goes away alone does so at one moment.
        """
        policy, tally = self._policy, self.tally
        usual = others.cancelled_part
        if (
            self.cancelled >= enough
            and tally.at - self.cancelled_at >= policy.stuck_after
            and usual**self.cancelled <= policy.chance
        ):
            return f"{self.cancelled} calls in a row were given up by their callers"
        rate = tally.cancelled / tally.calls
        spread = 1.0 / tally.calls + 1.0 / (others.calls + 1.0)
        noise = math.sqrt(usual * (1.0 - usual) * spread)
        if (
            tally.calls >= policy.failure_rate_calls
            and rate >= policy.failure_rate
            and rate - usual >= max(rate / 2, _NO_CHANCE * noise)
        ):
            return f"callers gave up {rate:.0%} of its calls, {usual:.0%} of the others'"
        return ""

    def avoided(self, elapsed: float) -> str:
        """Say so if the edge keeps calls from it since some broke off, though its share is whole.

        Of one that goes down, an edge that avoids it at once sends few failures and then nothing.
        """
        expected = self.latency.pace * elapsed
        if self.run < self._policy.relapse_failures or expected < _SURELY_SOME:
            return ""
        return f"{self.run} calls failed, and the edge avoids it"

    def _silence(self, reference: Reference, elapsed: float) -> tuple[Cause, str] | None:
        policy = self._policy
        known = [m for m in (self.latency.mean, reference.others(None)) if m]
        in_flight = self.in_flight - self.latency.held
        self.missed += in_flight * elapsed / max(*known, 1e-3) if known else 0.0
        if (
            self.silent >= policy.stuck_after
            and min(self.waiting, in_flight) >= policy.stuck_calls
            and self.missed >= policy.stuck_missed
        ):
            waits = f"{in_flight:.0f} calls wait, none was answered for {self.silent:.1f} s"
            return "silence", waits
        return None

    def slowness(
        self, outcome: Outcome, reference: Reference, elapsed: float
    ) -> tuple[Cause, str] | None:
        """Follow the latency; say so if it is so slow that it must be taken out."""
        policy = self._policy
        latency = self.latency
        others = reference.others(latency.cautious_mean)
        if not others:
            return None
        excess = latency.excess(others)
        ended = outcome.succeeded + outcome.failed
        in_flight = outcome.in_flight - latency.held
        score = latency.suspect(in_flight, ended, others, policy.slow_outlier)
        enough = policy.slow_outlier_calls
        if self.ejection.state == "warming" and self.ejection.relapsing("slow"):
            enough /= 2
        if score >= enough:
            excess = max(excess, policy.slow_outlier)
            return "slow", f"{excess:.1f} x slower than usual, against the others"
        usual = excess < policy.slow_outlier / 2 or not latency.learnt
        if usual and latency.evidence(others) >= 1.0:
            latency.learn(others, elapsed, policy)
        latency.follow(reference.median, elapsed, policy)
        return None

    def eject(self, cause: Cause, why: str, now: float) -> None:
        """Take it out; forget what its fault would do to its latency."""
        if cause == "slow":
            self.latency.get_used_to(_ALARM)
        self.latency.forget()
        self.silent = self.missed = 0.0
        self.run = self.waiting = self.cancelled = 0
        self.ejection.eject(cause, why, now)

    def step(self, now: float) -> None:
        """Do what is due by time alone."""
        ejection = self.ejection
        due = ejection.until
        slow = ejection.state == "ejected" and ejection.cause == "slow"
        draining = self.in_flight > 0 and self.silent < _DRAINED
        if slow and draining and due <= now < due + _LONGEST_DRAIN:
            return  # the next report tells whether its old calls have come to an end
        if ejection.step(now) and ejection.state == "probing":
            self.probe()

    def probe(self) -> None:
        """Begin to be probed: what is in flight by now is old, and says nothing."""
        self.latency.held = self.in_flight
        self.latency.forget()
        self.silent = 0.0
        self.cancelled = 0

    def probed(
        self,
        outcome: Outcome,
        others: Tally,
        reference: Reference,
        elapsed: float,
        now: float,
    ) -> tuple[bool, str]:
        """Judge one that is probed; return whether it is well, and what is wrong.

        Not well and nothing wrong: not known yet.
        """
        policy, ejection, latency = self._policy, self.ejection, self.latency
        ejection.issued += outcome.issued
        ended = outcome.succeeded + outcome.failed
        new = min(ended, max(0, ejection.issued - ejection.counted))
        failed = min(outcome.failed, new)
        ejection.counted += new
        ejection.passed += new - failed
        if failed:
            return False, f"{failed} of {ejection.counted} probes failed"
        if self.cancelled and others.cancelled_part**self.cancelled <= policy.probe_chance:
            again = "" if self.cancelled == 1 else f", {self.cancelled} times"
            return False, f"a probe was given up by its caller{again}"
        usual = latency.usual(reference.others(None) or 0.0)
        in_flight = self.in_flight - latency.held
        patience = max(2 * policy.stuck_after, policy.slow_outlier * usual)
        if self.silent >= patience and in_flight:
            return False, f"a probe was not answered for {self.silent:.1f} s"
        answered = ejection.passed >= policy.probe_calls
        if ejection.cause != "slow" or not usual:
            return answered, ""
        times = 2 * policy.slow_outlier
        toll = slow_toll(usual / elapsed, times)
        latency.score += new * toll - in_flight
        if latency.score < 0.0:
            # As slow as before. It does no harm with as few calls as it gets, so they go on: its
            # healing is noticed the sooner. Those that still run will speak for it at their end,
            # which must not outweigh that they were seen to run.
            latency.score = max(latency.score, -toll * in_flight)
            ejection.probing_since = now
        if now - ejection.began >= policy.slow_accepted:
            latency.get_used_to(times)
            return True, ""
        waited = now - ejection.probing_since >= policy.slow_probing
        return answered and (latency.score >= _SURELY_WELL or (waited and new > 0)), ""
