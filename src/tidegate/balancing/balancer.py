"""The balancer of one cluster: outcomes in, weights out, each with its reason.

The caller tells it the endpoints (:meth:`Balancer.update`) and, about four times a second, what
became of their calls (:meth:`Balancer.observe`), and sends :meth:`Balancer.verdicts` to whoever
picks when :attr:`Balancer.version` has grown. Only endpoints with outcomes, and those on their
way out or in, cost time.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType

from tidegate.balancing.latency import Reference
from tidegate.balancing.noticeable import is_noticeable
from tidegate.balancing.outcome import Outcome
from tidegate.balancing.policy import BalancingPolicy
from tidegate.balancing.reasons import HEALTHY, explain
from tidegate.balancing.record import Record, Tally
from tidegate.balancing.scale import scale_of
from tidegate.balancing.verdict import MAX_WEIGHT, Verdict

_EXPLAINED = 1.0
"""Seconds for which the figures of a verdict that stands may be old."""
_RECENT = 10.0
"""Seconds without calls after which an endpoint does not count among those that get any."""
_NOBODY = Reference(())


class Balancer:
    """A synchronous state machine; ``now`` is in seconds and never goes back."""

    def __init__(self, policy: BalancingPolicy | None = None) -> None:
        self._policy = policy or BalancingPolicy()
        self._records: dict[str, Record] = {}
        self._verdicts: dict[str, Verdict] = {}
        self._version = 0
        self._scale = scale_of({})
        self._restless: set[str] = set()  # those whose verdict changes with time alone
        self._due = math.inf
        self._out: set[str] = set()
        self._panic = False
        self._overflow: Collection[str] = ()
        self._leaning = False
        self._active: set[str] = set()  # those with calls in flight by the latest report
        self._failing: set[str] = set()  # those of which calls failed in it
        self._tally = Tally(0.0)
        self._rate = 0.0  # calls per second
        self._observed_at = 0.0
        self._crowd = 0.0  # calls in flight for each endpoint that serves
        self._mean_base = 1.0
        self._capacity: float | None = None  # what the shares of probed ones are measured by

    @property
    def version(self) -> int:
        """A number that grows whenever a weight changes by as much as who picks should know."""
        return self._version

    @property
    def panic(self) -> bool:
        """Whether so many are sick that none is left out."""
        return self._panic

    @property
    def leaning(self) -> bool:
        """Whether it would be a panic, if there were no overflow that is well."""
        return self._leaning

    def follow(self, policy: BalancingPolicy) -> None:
        """Decide by another policy from now on; what is known of the endpoints stays."""
        self._policy = policy
        for record in self._records.values():
            record.follow(policy)

    def update(self, bases: Mapping[str, int], now: float, overflow: Collection[str] = ()) -> None:
        """Set the endpoints, each with its configured weight, 0 for none of the calls.

        Those that stay keep what is known of them. A newcomer to a cluster that already serves
        begins with a small share; in a cluster without any, all begin with the full one.

        ``overflow`` are those of the last priority, where there are several: while they are well
        they take the calls of those that are sick, however many these are.

        Raises:
            ValueError: a weight is negative. Nothing has changed.
        """
        for address, base in bases.items():
            if base < 0:
                raise ValueError(f"the weight of {address} is {base}: it must not be negative")
        for address in self._records.keys() - bases.keys():
            del self._records[address], self._verdicts[address]
            self._version += 1
            for known in (self._restless, self._out, self._active, self._failing):
                known.discard(address)
        established = any(r.ejection.state == "serving" for r in self._records.values())
        scale = scale_of(bases)
        stale = set(bases) if scale != self._scale else set()
        self._scale = scale
        self._overflow = frozenset(overflow)
        self._capacity = None
        positive = [base for base in bases.values() if base]
        self._mean_base = sum(positive) / len(positive) if positive else 1.0
        for address, base in bases.items():
            record = self._records.get(address)
            if record is None:
                record = self._records[address] = Record(self._policy, base, "new", now)
                record.ejection.ramp = self._policy.slow_start if established else 0.0
                stale.add(address)
            elif record.base != base:
                record.rebase(base)
                stale.add(address)
        # In the order in which they were given, which is that of the verdicts too.
        self._decide([address for address in bases if address in stale], now)

    def observe(self, outcomes: Mapping[str, Outcome], elapsed: float, now: float) -> None:
        """Take in one report: the outcomes of all endpoints that had calls.

        ``elapsed`` is the time in seconds that it covers. One that is missing had no calls and
        has none in flight; one that is not known is passed over. Since the report before, nobody
        had calls but in that time.
        """
        elapsed = max(elapsed, 1e-3)
        self._rest(now - elapsed - self._observed_at)
        self._observed_at = now
        touched = self._step(now)
        known: list[tuple[str, Record, Outcome]] = []
        for address in self._active - outcomes.keys():
            record = self._records[address]
            record.in_flight = record.latency.held = 0
        avoided = [a for a in self._failing if a not in outcomes or outcomes[a].is_over]
        self._active.clear()
        self._failing.clear()
        succeeded = failed = cancelled = issued = 0
        for address, outcome in outcomes.items():
            found = self._records.get(address)
            if found is None:
                continue
            known.append((address, found, outcome))
            succeeded += outcome.succeeded
            failed += outcome.failed
            cancelled += outcome.cancelled
            issued += outcome.issued
            if outcome.in_flight:
                self._active.add(address)
            if outcome.failed:
                self._failing.add(address)
            found.observe(outcome, elapsed, now)
        self._tally.add(succeeded, failed, cancelled, now, self._policy.failure_window)
        self._follow_traffic(issued, sum(each.in_flight for _, _, each in known), elapsed)
        reference = self._reference(known)
        self._follow_loads(known, elapsed)
        for _, record, outcome in known:
            others_ended = succeeded + failed - outcome.succeeded - outcome.failed
            self._judge(record, outcome, reference, others_ended, elapsed, now)
        for address in avoided if succeeded else ():
            record = self._records[address]
            if not record.ejection.out and (why := record.avoided(elapsed)):
                record.eject("failures", why, now)
                touched.add(address)
        self._capacity = None
        touched.update(address for address, _, _ in known)
        touched.update(self._probed())
        self._decide(touched, now)

    def _follow_traffic(self, issued: int, in_flight: float, elapsed: float) -> None:
        """Move the means of what the cluster has to do towards one report."""
        self._rate += (issued / elapsed - self._rate) * (1.0 - math.exp(-elapsed))
        crowd = in_flight / max(1, len(self._records) - len(self._out))
        step = 1.0 - math.exp(-elapsed / self._policy.crowd_window)
        self._crowd += (crowd - self._crowd) * step

    def _rest(self, idle: float) -> None:
        """Take in that there were no calls, and no reports, for so many seconds."""
        if idle > 0:
            self._rate *= math.exp(-idle)
            self._crowd *= math.exp(-idle / self._policy.crowd_window)

    def _judge(
        self,
        record: Record,
        outcome: Outcome,
        reference: Reference,
        others_ended: int,
        elapsed: float,
        now: float,
    ) -> None:
        ejection = record.ejection
        if ejection.state == "ejected":
            return
        others = self._tally.without(record.tally)
        if ejection.state == "probing":
            well, wrong = record.probed(outcome, others, reference, elapsed, now)
            if wrong:
                record.eject(ejection.cause, wrong, now)
            elif well:
                record.latency.forget()
                ejection.recover(now)
            return
        if ejection.state == "new" and outcome.succeeded + outcome.failed:
            if ejection.ramp:
                ejection.warm(now, ejection.ramp)
            else:
                ejection.serve(now)
        complaint = record.complaint(outcome, others, reference, others_ended, elapsed)
        if complaint is None and len(reference) > 1:
            complaint = record.slowness(outcome, reference, elapsed)
        if complaint is not None:
            record.eject(*complaint, now)

    def _reference(self, known: list[tuple[str, Record, Outcome]]) -> Reference:
        """The latencies of those that serve; nobody's while nothing can be told from them."""
        if not any(r.latency.seen >= 1.0 or r.silent or r.ejection.out for _, r, _ in known):
            return _NOBODY
        records = self._records
        serving: Iterable[Record] = records.values()
        if self._out:
            serving = [record for name, record in records.items() if name not in self._out]
        means = [record.latency.cautious_mean for record in serving]
        return Reference(mean for mean in means if mean is not None)

    def _follow_loads(self, known: list[tuple[str, Record, Outcome]], elapsed: float) -> None:
        loaded = [r for _, r, outcome in known if outcome.utilization is not None]
        if len(loaded) > 1:
            median = Reference(r.load or 0.0 for r in loaded).median
            for record in loaded:
                record.follow_load(median, elapsed)
        silent = [r for _, r, each in known if each.utilization is None and each.succeeded]
        if silent and len(loaded) == 1:
            silent += loaded  # there is nobody left to compare it with
        for record in silent:
            record.forget_load(elapsed)

    def verdicts(self, now: float) -> Mapping[str, Verdict]:
        """Return the verdict on each endpoint: a view that later calls change.

        States and weights are those of now; the other figures may be a second old.
        """
        self._advance(now)
        return MappingProxyType(self._verdicts)

    def _advance(self, now: float) -> None:
        if now >= self._due:
            self._decide(self._step(now), now)

    def _step(self, now: float) -> set[str]:
        """Do what is due by time; return whom it concerns."""
        if now < self._due:
            return set()
        for address in self._restless:
            self._records[address].step(now)
        return set(self._restless)

    def _probed(self) -> list[str]:
        return [a for a in self._out if self._records[a].ejection.state == "probing"]

    def _decide(self, stale: Collection[str], now: float) -> None:
        """Renew the verdicts on ``stale``, and on all that are out when panic comes or goes."""
        for address in stale:
            if self._records[address].ejection.out:
                self._out.add(address)
            else:
                self._out.discard(address)
        sick = self._too_many_out(self._records)
        panic = sick and (not self._overflow or self._too_many_out(self._overflow))
        if (sick and not panic) != self._leaning:
            self._leaning = not self._leaning
            self._version += 1
        if panic != self._panic:
            self._panic = panic
            stale = {*stale, *self._out}
        for address in stale:
            self._publish(address, now)
        self._due = min(
            (
                due
                for address in self._restless
                if (due := self._records[address].ejection.next_change(now)) is not None
            ),
            default=math.inf,
        )

    def _too_many_out(self, among: Iterable[str]) -> bool:
        """Whether so many of these are sick that those that are left would break down."""
        if not self._out:
            return False
        told = [address for address in among if self._records[address].base]
        out = len(self._out.intersection(told))
        most = min(len(told) - 1, math.floor(len(told) * self._policy.max_ejected + 1e-9))
        return out > max(0, most)

    def _publish(self, address: str, now: float) -> None:
        record = self._records[address]
        ejection = record.ejection
        if ejection.next_change(now) is None:
            self._restless.discard(address)
        else:
            self._restless.add(address)
        old = self._verdicts.get(address)
        weight = self._weight(record, now)
        if old is None or is_noticeable(record, old, weight, now, beside=bool(self._out)):
            self._version += 1
            record.published_at = now
        else:
            weight = old.weight
            settled = ejection.state == "serving" == old.state and old.base == record.base
            if settled and now - record.explained_at < _EXPLAINED:
                return
        record.explained_at = now
        self._verdicts[address] = self._verdict(record, weight, now)

    def _weight(self, record: Record, now: float) -> int:
        ejection = record.ejection
        if not record.base:
            return 0
        if ejection.out and not self._panic:
            return 0 if ejection.state == "ejected" else self._probe_weight(record)
        full = record.effective
        if not record.ordinary:
            full *= record.load_factor * ejection.warmth(now)
        if full != self._mean_base:
            full *= self._returned(full)
        full *= record.latency.factor * self._scale
        return min(MAX_WEIGHT, max(1, round(full)))

    def _returned(self, wanted: float) -> float:
        """What gives back, on average, what who picks divides a weight by.

        As many calls as are ``wanted`` of an endpoint are in flight there, whatever its latency:
        the slower, the fewer come.
        """
        crowd = self._crowd
        bias = self._policy.active_request_bias
        return float(((1.0 + crowd * wanted / self._mean_base) / (1.0 + crowd)) ** bias)

    def _verdict(self, record: Record, weight: int, now: float) -> Verdict:
        ejection = record.ejection
        if record.ordinary and record.base:
            # As are thousands of which one changes.
            mean = record.latency.mean
            return Verdict(weight, "serving", record.base, mean_latency=mean, reason=HEALTHY)
        sick = (len(self._out), len(self._records)) if self._panic else None
        return Verdict(
            weight=weight,
            state=ejection.state,
            base=record.base,
            reliability=record.reliability,
            latency=record.latency.factor,
            utilization=record.load_factor,
            warmth=ejection.warmth(now),
            mean_latency=record.latency.mean,
            until=ejection.until if ejection.state == "ejected" else None,
            reason=explain(record, sick, now),
        )

    def _probe_weight(self, record: Record) -> int:
        """The weight that gets an endpoint a few calls per second, whatever the others get."""
        policy, ejection = self._policy, record.ejection
        bias = policy.active_request_bias
        # Not the effective weight, which its failures have brought down to next to nothing.
        full = max(1, min(MAX_WEIGHT, round(record.base * self._scale)))
        if record.awaited >= 2 * policy.probe_calls:
            return 1  # enough are on their way
        slow = ejection.cause == "slow"
        part = policy.slow_probe_share if slow else policy.probe_share
        wanted = max(policy.probe_rate, part * self._rate)
        if self._rate <= wanted:
            return full
        if self._capacity is None:
            recent = self._tally.at - _RECENT
            self._capacity = sum(
                self._verdicts[address].weight / (other.crowd + 1.0) ** bias
                for address, other in self._records.items()
                if address in self._verdicts
                and other.tally.at >= recent
                and not other.ejection.out
            )
        share = wanted / self._rate
        return max(1, min(full, round(self._capacity * share / (1.0 - share))))
