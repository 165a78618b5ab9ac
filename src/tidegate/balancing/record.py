"""What is known of one endpoint, and what speaks against it."""

from __future__ import annotations

import math

from tidegate.balancing.ejection import Cause, Ejection
from tidegate.balancing.latency import Latency, Reference
from tidegate.balancing.outcome import Outcome
from tidegate.balancing.policy import BalancingPolicy
from tidegate.balancing.verdict import State
from tidegate.balancing.window import window_weight

_CLEARLY_SLOW = 2
"""Reports in a row in which an outlier must be slow: one alone may be a pause of its process."""
_WELL = 0.6
"""The part of an outlier's latency below which a probed endpoint counts as well again."""
_ENOUGH_PROBING = 1.0
"""Seconds after which few probes that were quick are believed."""


class Tally:
    """Calls that ended lately, with time forgotten."""

    __slots__ = ("_at", "failed", "succeeded")

    def __init__(self, now: float) -> None:
        self.succeeded = 0.0
        self.failed = 0.0
        self._at = now

    def add(self, succeeded: int, failed: int, now: float, window: float) -> None:
        """Add calls that ended now."""
        kept = math.exp(min(0.0, self._at - now) / window)
        self.succeeded = self.succeeded * kept + succeeded
        self.failed = self.failed * kept + failed
        self._at = now


class Record:
    """One endpoint: its weight, its latency, its life."""

    __slots__ = (
        "_policy", "base", "effective", "ejection", "in_flight", "latency", "load",
        "load_log_factor", "missed", "published_at", "run", "run_at", "silent", "tally", "waiting",
    )  # fmt: skip

    def __init__(self, policy: BalancingPolicy, base: int, state: State, now: float) -> None:
        self._policy = policy
        self.base = base
        self.effective = float(base)
        self.latency = Latency()
        self.ejection = Ejection(policy, state, now)
        self.in_flight = 0.0
        self.published_at = now
        self.load: float | None = None
        self.load_log_factor = 0.0
        self.tally = Tally(now)
        self.run = 0  # failures without a success between them
        self.run_at = now
        self.silent = 0.0  # seconds since a call ended, while some were in flight
        self.waiting = 0.0  # calls issued since then
        self.missed = 0.0  # calls that should have ended meanwhile

    @property
    def reliability(self) -> float:
        """The effective weight over the configured one."""
        return self.effective / self.base if self.base else 1.0

    def rebase(self, base: int) -> None:
        """Take a new configured weight; the effective one keeps its place below it."""
        self.effective = max(min(1.0, base), base * self.reliability)
        self.base = base

    def observe(self, outcome: Outcome, elapsed: float, now: float) -> None:
        """Take the numbers of one report in; what they mean is for :meth:`complaint`."""
        policy = self._policy
        ended = outcome.succeeded + outcome.failed
        self.in_flight = outcome.in_flight
        latency = self.latency
        latency.held = min(latency.held, outcome.in_flight)
        if not self.ejection.out and 4 * outcome.failed <= ended:
            # Failures are quicker than answers, or slower: they tell nothing of the latency.
            in_flight = outcome.in_flight - latency.held
            latency.observe(in_flight, ended, elapsed, policy.latency_window)
        self.effective = window_weight(
            self.effective, self.base, outcome.succeeded, outcome.failed
        )
        self.tally.add(outcome.succeeded, outcome.failed, now, policy.failure_window)
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
        if not outcome.succeeded and self.run >= policy.consecutive_failures:
            return "failures", f"{self.run} calls failed in a row"
        tally = self.tally
        calls = tally.succeeded + tally.failed
        if outcome.failed and calls >= policy.failure_rate_calls:
            rate = tally.failed / calls
            others_calls = others.succeeded + others.failed
            usual = others.failed / others_calls if others_calls >= 1 else 0.0
            if rate >= policy.failure_rate and usual < rate / 2:
                return "failures", f"{rate:.0%} of its calls failed, {usual:.0%} of the others'"
        if self.silent and others_ended:
            return self._silence(reference, elapsed)
        return None

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
        now_slow = (outcome.in_flight - latency.held) * elapsed > ended * latency.limit(
            others, policy.slow_outlier
        )
        latency.slow_reports = latency.slow_reports + 1 if now_slow else 0
        warming = self.ejection.state == "warming" and self.ejection.cause == "slow"
        enough = policy.slow_outlier_calls / (3 if warming and self.ejection.flaps else 1)
        if (
            excess >= policy.slow_outlier
            and latency.slow_reports >= _CLEARLY_SLOW
            and latency.seen >= enough
        ):
            return "slow", f"{excess:.1f} x slower than usual, against the others"
        if latency.evidence(others) >= 1.0 and excess < policy.slow_outlier / 2:
            latency.learn(others, elapsed, policy)
        latency.follow(reference.median, elapsed, policy)
        return None

    def eject(self, cause: Cause, why: str, now: float) -> None:
        """Take it out; forget what its fault would do to its latency."""
        if cause == "slow":
            self.latency.grow_suspicious()
        self.latency.forget()
        self.silent = self.missed = 0.0
        self.run = self.waiting = 0
        self.ejection.eject(cause, why, now)

    def probe(self) -> None:
        """Begin to be probed: what is in flight by now is old, and says nothing."""
        self.latency.held = self.in_flight
        self.latency.forget()
        self.silent = 0.0

    def probed(
        self, outcome: Outcome, reference: Reference, elapsed: float, now: float
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
        latency.observe(self.in_flight - latency.held, new, elapsed, 10.0)
        others = reference.others(None) or 0.0
        limit = latency.limit(others, policy.slow_outlier)
        if self.silent >= max(2 * policy.stuck_after, limit) and self.in_flight > latency.held:
            return False, f"a probe was not answered for {self.silent:.1f} s"
        if not ejection.passed or ejection.cause != "slow" or not limit:
            return ejection.passed >= policy.probe_calls, ""
        mean = latency.mean or 0.0
        if latency.seen >= 2 and mean >= limit * _WELL:
            return False, f"probes took {mean * 1e3:.0f} ms, usual are {others * 1e3:.0f} ms"
        sure = ejection.counted * limit * _WELL >= 2 * elapsed
        sure = sure or now - ejection.probing_since >= _ENOUGH_PROBING
        return ejection.passed >= policy.probe_calls and sure, ""
