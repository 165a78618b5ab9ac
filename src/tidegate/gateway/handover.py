"""Make before break: the old endpoints of a pool stay until one of the new ones can answer. Pure.

An endpoint gets no calls before it has passed a check, so a pool whose endpoints are all replaced
at once would be without any for a moment. Here they stay for all who read the pool: the balancer,
the status, and clients that call endpoints directly and are told of healthy ones alone.

The edge does the same for each of its clusters (see ``_leaving`` in
:mod:`tidegate.edge.gateway_resources`): those of one version or protocol may all be replaced while
the pool, of which this decides, keeps others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tidegate.gateway.endpoints import Endpoint
from tidegate.gateway.models import PoolMembers

LONGEST = 5.0
"""Seconds that the old ones stay at most: the new ones may never be well."""


class Handover:
    """Knows who was in each pool; ``now`` is in seconds and never goes back."""

    def __init__(self) -> None:
        self._in_force: dict[str, tuple[Endpoint, ...]] = {}
        self._until: dict[str, float] = {}

    @property
    def pending(self) -> bool:
        """Whether old endpoints of some pool stay for now."""
        return bool(self._until)

    def members(
        self, pool: PoolMembers, healthy: Callable[[str, str], bool], now: float
    ) -> PoolMembers:
        """Return who is to be in a pool of which ``pool`` says who should be.

        ``healthy`` says of a pool's name and an address whether that has passed a check.
        """
        name, wanted = pool.name, pool.endpoints
        old = self._in_force.get(name, ())
        stays = {endpoint.address for endpoint in old}.intersection(e.address for e in wanted)
        if wanted and old and not stays:
            until = self._until.setdefault(name, now + LONGEST)
            if now < until and not any(healthy(name, endpoint.address) for endpoint in wanted):
                return PoolMembers(name, (*wanted, *old))
        self._until.pop(name, None)
        self._in_force[name] = wanted
        return pool

    def forget_all_but(self, names: Iterable[str]) -> None:
        """Forget the pools that there are no more."""
        for gone in self._in_force.keys() - set(names):
            del self._in_force[gone]
            self._until.pop(gone, None)
