"""The endpoints of one model as a client in direct mode sees them: who gets the next call.

Pure: time is passed in, and whoever uses a pool from several threads locks.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from tidegate.balancing.balancer import Balancer
from tidegate.balancing.outcome import Outcome
from tidegate.balancing.policy import BalancingPolicy
from tidegate.balancing.turns import Turns
from tidegate.balancing.verdict import Verdict
from tidegate.protocols.open_inference.endpoints import ModelEndpoint

REPORT_INTERVAL = 0.25
"""Seconds between two reports to the balancer, as a gateway's edge makes them."""
_FIRST_REST, _LONGEST_REST = 0.5, 3.0
"""Seconds for which one that refused a connection is left alone; doubled with each refusal."""
_PROBED_SHARE = 0.02
"""The most that one who is probed gets of the calls of another priority."""
_SICK = ("ejected", "probing")
_MOST_VERSIONS = 64


@dataclass(frozen=True, slots=True)
class EndpointState:
    """What a client in direct mode thinks of one endpoint of a model.

    ``state`` is ``new``, ``serving``, ``warming`` (its share grows), ``ejected``, ``probing`` (a
    few calls see whether it has healed) or ``refused`` (it took no connection). ``weight`` is
    relative to the others of its ``priority``. ``reason`` says in words why it is so.
    """

    address: str
    priority: int
    weight: int
    state: str
    in_flight: int
    reason: str


@dataclass(slots=True)
class _Count:
    """What one endpoint did since the last report."""

    issued: int = 0
    succeeded: int = 0
    failed: int = 0
    in_flight: int = 0
    busy: float = 0.0
    """Seconds that its calls took, added up: those that still run up to ``at``."""
    at: float = 0.0

    def step(self, now: float) -> None:
        self.busy += self.in_flight * (now - self.at)
        self.at = now


@dataclass(slots=True)
class _Rest:
    """Until when an endpoint that could not be connected to is left alone."""

    until: float
    seconds: float = _FIRST_REST
    tried: bool = False
    """Whether a call was sent to see whether it is back."""


class Pool:
    """Balances over endpoints by what its own calls saw."""

    def __init__(self, policy: BalancingPolicy, now: float) -> None:
        self._policy = policy
        self._endpoints: dict[str, ModelEndpoint] = {}
        self._levels: dict[int, Balancer] = {}
        self._verdicts: dict[int, Mapping[str, Verdict]] = {}
        self._seen = 0
        self._turns: dict[str, Turns] = {}
        self._counts: dict[str, _Count] = {}
        self._rests: dict[str, _Rest] = {}
        self._wake = math.inf
        self._reported = now

    def update(self, endpoints: Iterable[ModelEndpoint], now: float) -> None:
        """Take the whole set as it is now; who stays keeps what is known of it."""
        self._endpoints = {endpoint.address: endpoint for endpoint in endpoints}
        levels: dict[int, dict[str, int]] = {}
        for endpoint in self._endpoints.values():
            levels.setdefault(endpoint.priority, {})[endpoint.address] = endpoint.weight
        self._levels = {p: self._levels.get(p) or Balancer(self._policy) for p in levels}
        for priority, bases in levels.items():
            self._levels[priority].update(bases, now)
        self._counts = {a: c for a, c in self._counts.items() if a in self._endpoints}
        self._rests = {a: r for a, r in self._rests.items() if a in self._endpoints}
        self._judge(now)
        self._deal(now)

    def pick(
        self, version: str, tried: Collection[str], now: float, *, desperate: bool = False
    ) -> str | None:
        """Return who gets a call of ``version`` (empty: whichever is the default).

        It is none that was ``tried``, and unless ``desperate`` none that just refused a
        connection. ``None``: nobody is left.
        """
        self._report(now)
        if now >= self._wake:
            self._deal(now)
        if desperate:
            found = self._least_busy(self._candidates(version, tried))
        else:
            found = self._turns_of(version, now).pick(tried)
            if found is None and tried:
                avoided = {*tried, *self._resting(now)}
                found = self._least_busy(self._candidates(version, avoided))
        rest = self._rests.get(found or "")
        if rest is not None:
            # One call tries it; the others go elsewhere until it is known what became of that.
            rest.until, rest.tried = now + _LONGEST_REST, True
            self._deal(now)
        return found

    def has(self, version: str) -> bool:
        """Whether somebody takes calls of ``version``."""
        return any(_takes(endpoint, version) for endpoint in self._endpoints.values())

    def endpoint(self, address: str) -> ModelEndpoint:
        """Return one of them."""
        return self._endpoints[address]

    def anybody_well(self, *, but: str) -> bool:
        """Whether an endpoint other than ``but`` is well."""
        return any(
            verdict.state not in _SICK and address != but and address not in self._rests
            for found in self._verdicts.values()
            for address, verdict in found.items()
        )

    def states(self, now: float) -> tuple[EndpointState, ...]:
        """Return what is thought of each endpoint."""
        return tuple(self._state(address, now) for address in sorted(self._endpoints))

    def _state(self, address: str, now: float) -> EndpointState:
        priority = self._endpoints[address].priority
        verdict = self._verdicts[priority][address]
        count, rest = self._counts.get(address), self._rests.get(address)
        in_flight = count.in_flight if count else 0
        if rest is not None:
            words = "it took no connection, and is tried again "
            words += f"in {rest.until - now:.1f} s" if now < rest.until else "with the next call"
            return EndpointState(address, priority, 0, "refused", in_flight, words)
        return EndpointState(
            address, priority, verdict.weight, verdict.state, in_flight, verdict.reason
        )

    def begun(self, address: str, now: float) -> None:
        """A call was sent to ``address``."""
        count = self._counts.setdefault(address, _Count(at=now))
        count.step(now)
        count.in_flight += 1
        count.issued += 1

    def ended(self, address: str, good: bool | None, now: float) -> None:
        """It has ended: well or badly, or in a way that says nothing of the endpoint."""
        count = self._counts.get(address)
        if count is None or not count.in_flight:
            return  # it left the set meanwhile
        count.step(now)
        count.in_flight -= 1
        if good:
            count.succeeded += 1
        elif good is False:
            count.failed += 1
        elif count.issued:
            count.issued -= 1
        if good is not None and self._rests.pop(address, None) is not None:
            self._deal(now)

    def refused(self, address: str, now: float) -> None:
        """No connection to ``address`` could be made."""
        if address not in self._endpoints:
            return
        rest = self._rests.get(address)
        if rest is None:
            self._rests[address] = _Rest(now + _FIRST_REST)
        elif rest.tried:
            rest.seconds = min(2 * rest.seconds, _LONGEST_REST)
            rest.until, rest.tried = now + rest.seconds, False
        self._deal(now)

    def _report(self, now: float) -> None:
        elapsed = now - self._reported
        if elapsed < REPORT_INTERVAL:
            return
        self._reported = now
        outcomes: dict[int, dict[str, Outcome]] = {priority: {} for priority in self._levels}
        for address, count in self._counts.items():
            count.step(now)
            if count.issued or count.in_flight or count.succeeded or count.failed:
                priority = self._endpoints[address].priority
                outcomes[priority][address] = _outcome(count, elapsed)
            count.issued = count.succeeded = count.failed = 0
            count.busy = 0.0
        for priority, balancer in self._levels.items():
            balancer.observe(outcomes[priority], elapsed, now)
        self._judge(now)

    def _judge(self, now: float) -> None:
        self._verdicts = {p: balancer.verdicts(now) for p, balancer in self._levels.items()}
        seen = sum(balancer.version for balancer in self._levels.values())
        if seen != self._seen:
            self._seen = seen
            self._deal(now)

    def _deal(self, now: float) -> None:
        """Renew whose turn it is."""
        resting = self._resting(now)
        self._wake = min((self._rests[a].until for a in resting), default=math.inf)
        for version in self._turns:
            self._turns[version].set(self._candidates(version, resting))

    def _resting(self, now: float) -> set[str]:
        return {address for address, rest in self._rests.items() if now < rest.until}

    def _turns_of(self, version: str, now: float) -> Turns:
        turns = self._turns.get(version)
        if turns is None:
            turns = Turns(self._candidates(version, self._resting(now)))
            if len(self._turns) < _MOST_VERSIONS:
                self._turns[version] = turns
        return turns

    def _candidates(self, version: str, avoided: Collection[str]) -> Mapping[str, float]:
        """Return weights: of the first priority in which somebody is well, and of who is probed.

        If nobody is well anywhere, of the first in which anybody gets calls.
        """
        resort: dict[str, float] = {}
        probed: dict[str, float] = {}
        for priority in sorted(self._levels):
            weights: dict[str, float] = {}
            well = False
            for address, verdict in self._verdicts[priority].items():
                endpoint = self._endpoints[address]
                if address in avoided or not verdict.weight or not _takes(endpoint, version):
                    continue
                weights[address] = verdict.weight
                well = well or verdict.state not in _SICK
            if well:
                most = _PROBED_SHARE * sum(weights.values())
                return weights | {address: min(w, most) for address, w in probed.items()}
            resort = resort or weights
            probed.update((a, w) for a, w in weights.items() if self._probed(a))
        return resort or {
            address: endpoint.weight
            for address, endpoint in self._endpoints.items()
            if _takes(endpoint, version) and address not in avoided
        }

    def _probed(self, address: str) -> bool:
        priority = self._endpoints[address].priority
        return self._verdicts[priority][address].state == "probing"

    def _least_busy(self, weights: Mapping[str, float]) -> str | None:
        def busy(address: str) -> float:
            count = self._counts.get(address)
            return ((count.in_flight if count else 0) + 1) / weights[address]

        return min(weights, key=busy, default=None)


def _takes(endpoint: ModelEndpoint, version: str) -> bool:
    return not version or endpoint.versions is None or version in endpoint.versions


def _outcome(count: _Count, elapsed: float) -> Outcome:
    # The mean: between two calls of one thread, nothing is ever in flight.
    return Outcome(count.succeeded, count.failed, count.issued, count.busy / elapsed)
