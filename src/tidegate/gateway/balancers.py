"""One balancer for each pool: from reports to the servers that the edge is told of."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import repeat
from operator import is_

from tidegate.balancing.balancer import Balancer
from tidegate.balancing.outcome import Outcome
from tidegate.balancing.policy import BalancingPolicy
from tidegate.balancing.verdict import Verdict
from tidegate.edge.pools import HeaderPool, Pool, RoutedModel, Server, Servers
from tidegate.gateway.endpoints import Endpoint
from tidegate.gateway.models import ModelMembers, PoolMembers

POLICY = BalancingPolicy()


class Balancers:
    """Decides the shares of all endpoints; ``now`` is in seconds from an arbitrary zero."""

    def __init__(self, policy: BalancingPolicy = POLICY) -> None:
        self._policy = policy
        self._balanced: dict[str, _Balanced] = {}
        self._routed: dict[str, _Routed] = {}
        self._busy: set[str] = set()
        """The pools with calls when :meth:`observe` was last called."""

    def update(self, models: Iterable[ModelMembers], now: float) -> None:
        """Take what pools there are, and who is in them; what is known of those who stay holds."""
        named = {pool.name: (pool, model.slow_start) for model in models for pool in model.pools}
        for name in self._balanced.keys() - named.keys():
            del self._balanced[name]
            self._routed.pop(name, None)
        for name, (pool, slow_start) in named.items():
            balanced = self._balanced.get(name)
            if balanced is None:
                balanced = self._balanced[name] = _Balanced()
            if balanced.policy is None or balanced.policy.slow_start != slow_start:
                balanced.follow(replace(self._policy, slow_start=slow_start))
            balanced.update(pool, now)

    def observe(
        self, outcomes: Mapping[str, Mapping[str, Outcome]], elapsed: float, now: float
    ) -> None:
        """Take what became of the calls of ``elapsed`` seconds, by pool and address."""
        # Those that had calls, and have none now, are told so once.
        for pool in outcomes.keys() | self._busy:
            balanced = self._balanced.get(pool)
            if balanced is not None:
                balanced.balancer.observe(outcomes.get(pool, {}), elapsed, now)
        self._busy = set(outcomes)

    def routed(self, model: ModelMembers, now: float) -> RoutedModel:
        """Return a model as the edge is told of it: the same object while nothing changes."""
        pools = [self._balanced[pool.name].pool(now) for pool in model.pools]
        known = self._routed.get(model.name)
        if known is not None and known.model is model and all(map(is_, known.pools, pools)):
            return known.routed
        by_name = {pool.name: pool for pool in pools}
        canary, mirror = model.canary, model.mirror
        routed = RoutedModel(
            name=model.name,
            pool=by_name[model.pool.name],
            traffic=model.traffic,
            canary=None if canary is None else (canary[0], by_name[canary[1].name]),
            mirror=None if mirror is None else (mirror[0], by_name[mirror[1].name]),
            headers=tuple(
                HeaderPool(name, value, by_name[pool.name]) for name, value, pool in model.headers
            ),
        )
        # What is planned for the same object is not planned anew.
        if known is not None and known.routed == routed:
            routed = known.routed
        self._routed[model.name] = _Routed(model, pools, routed)
        return routed

    def verdicts(self, pool: str, now: float) -> Mapping[str, Verdict]:
        """Return what is decided about each endpoint of a pool, by address."""
        balanced = self._balanced.get(pool)
        return {} if balanced is None else balanced.balancer.verdicts(now)

    def shares(
        self, pool: PoolMembers, now: float, without: Collection[str] = ()
    ) -> dict[str, float]:
        """Return the part of the calls of its priority that each endpoint is to get.

        Those at the addresses ``without`` get none: the edge's own checks keep calls from them.
        """
        verdicts = self.verdicts(pool.name, now)
        weights = {
            e.address: 0 if e.address in without else verdicts[e.address].weight
            for e in pool.endpoints
        }
        totals: dict[int, int] = {}
        for endpoint in pool.endpoints:
            weight = weights[endpoint.address]
            totals[endpoint.priority] = totals.get(endpoint.priority, 0) + weight
        return {e.address: weights[e.address] / (totals[e.priority] or 1) for e in pool.endpoints}

    def ejections(self, pool: str) -> int:
        """Return how many times endpoints of a pool were left out."""
        balanced = self._balanced.get(pool)
        return 0 if balanced is None else balanced.ejections


@dataclass(frozen=True, slots=True)
class _Routed:
    """What a model and its pools became, as they were then."""

    model: ModelMembers
    pools: list[Pool]
    routed: RoutedModel


class _Balanced:
    """A pool's balancer, and the pool as it was told last: the same one while nothing changes."""

    def __init__(self) -> None:
        self.policy: BalancingPolicy | None = None
        self.balancer = Balancer()
        self._members: PoolMembers | None = None
        self._pool: Pool | None = None
        self._version = -1
        self._out: set[str] = set()
        self._moved: Mapping[str, int] = {}
        self.ejections = 0

    def follow(self, policy: BalancingPolicy) -> None:
        """Decide by another policy from now on."""
        self.policy = policy
        self.balancer.follow(policy)

    def update(self, members: PoolMembers, now: float) -> None:
        """Take who is in the pool."""
        if members == self._members:
            return
        self._members, self._pool = members, None
        bases = {e.address: e.weight for e in members.endpoints}
        self.balancer.update(bases, now, _overflow(members.endpoints))

    def pool(self, now: float) -> Pool:
        """Return the pool with the weights of this moment."""
        assert self._members is not None
        verdicts = self.balancer.verdicts(now)
        if self._pool is None or self.balancer.version != self._version:
            self._version = self.balancer.version
            out = {a for a, verdict in verdicts.items() if verdict.state == "ejected"}
            self.ejections += len(out - self._out)
            self._out = out
            self._pool = self._renewed(self._members, verdicts)
        return self._pool

    def _renewed(self, members: PoolMembers, verdicts: Mapping[str, Verdict]) -> Pool:
        """Return the pool anew; servers of which nothing has changed are the same objects."""
        endpoints = members.endpoints
        moved, before = _moved(endpoints, verdicts), self._pool
        known: Iterable[Server | None] = repeat(None) if before is None else before.servers
        leaning = self.balancer.leaning
        servers = (
            _server(
                server, e, verdicts[e.address].weight, moved.get(e.address, e.priority), leaning
            )
            for e, server in zip(endpoints, known)
        )
        # Which calls they get does not depend on their weights.
        same = before is not None and moved == self._moved
        self._moved = moved
        renewed = Servers if before is None or not same else before.servers.renewed
        return Pool(members.name, renewed(servers))


def _moved(endpoints: Iterable[Endpoint], verdicts: Mapping[str, Verdict]) -> dict[str, int]:
    """Return the priorities of those that are probed where nobody of their own priority serves.

    A weight shares the calls of one priority. Alone in the first, one that is probed would get
    all calls; it gets its few among those of the next priority that serves.
    """
    serving: set[int] = set()
    probed: list[Endpoint] = []
    for endpoint in endpoints:
        verdict = verdicts[endpoint.address]
        if verdict.state == "probing":
            probed.append(endpoint)
        elif verdict.weight:
            serving.add(endpoint.priority)
    return {
        endpoint.address: min(later)
        for endpoint in probed
        if endpoint.priority not in serving
        and (later := [number for number in serving if number > endpoint.priority])
    }


def _overflow(endpoints: Iterable[Endpoint]) -> frozenset[str]:
    """Return the addresses of the last priority, if there are others before it."""
    priorities = {e.priority for e in endpoints}
    if len(priorities) < 2:
        return frozenset()
    last = max(priorities)
    return frozenset(e.address for e in endpoints if e.priority == last)


def _server(
    known: Server | None, endpoint: Endpoint, weight: int, priority: int, leaning: bool
) -> Server:
    """Return what the edge is told of an endpoint; ``known`` if that is what it was told."""
    told, ejected = max(1, weight), weight == 0
    if known is not None:
        same = known.weight == told and known.ejected == ejected
        if same and known.priority == priority and known.last_resort == (ejected and leaning):
            return known
    return Server(
        address=endpoint.address,
        protocol=endpoint.protocol,
        rest=endpoint.rest,
        weight=told,
        priority=priority,
        ejected=ejected,
        # The overflow may not be well either: that only the edge's checks see.
        last_resort=ejected and leaning,
        versions=endpoint.versions,
        labels=endpoint.labels,
        secure=endpoint.secure,
        name=endpoint.name,
    )
