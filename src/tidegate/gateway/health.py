"""How endpoints feel by the edge's own checks.

Source: https://www.envoyproxy.io/docs/envoy/latest/operations/admin#get--clusters
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from typing import Any, Literal, TypeAlias

from tidegate.clock import Clock
from tidegate.edge.plan import PlannedCluster
from tidegate.errors import EdgeFailed

Feeling: TypeAlias = Literal["healthy", "unhealthy", "unchecked", "broken off", "unknown"]
"""``unchecked``: has not passed its first check. ``broken off``: the edge leaves it alone for a
moment, because it broke off or could not be reached."""

NOT_ASKED: tuple[Feeling, ...] = ("unhealthy", "unchecked", "broken off")
"""What keeps calls away."""
_FAILING: tuple[Feeling, ...] = ("unhealthy", "unchecked")
_Parts: TypeAlias = dict[bool, Feeling]
"""How it feels by the clusters of REST alone (true), and by the others."""

_SHORTEST = 1.0
_SHARE = 20.0
"""It is asked for again after so many times as long as the last answer took."""


class EndpointHealth:
    """Asks the edge how endpoints feel, when somebody wants to know, and not too often."""

    def __init__(
        self, ask: Callable[[], Awaitable[Mapping[str, list[dict[str, Any]]]]], clock: Clock
    ) -> None:
        self._ask = ask
        self._clock = clock
        self._asked = float("-inf")
        self._took = 0.0
        self._known: dict[tuple[str, str], _Parts] = {}
        self._kept: Mapping[str, Collection[str]] | None = None
        self._asking = asyncio.Lock()

    async def look(
        self, clusters: Mapping[str, PlannedCluster], at_most: float = _SHORTEST
    ) -> None:
        """Make :meth:`of` tell of this moment, or of one at most so many seconds before.

        Where there are so many endpoints that the edge takes its time to answer, it is asked
        less often.
        """
        async with self._asking:
            began = self._clock.now()
            if began < self._asked + self._gap(at_most):
                return
            try:
                told = await self._ask()
            except EdgeFailed:
                return
            self._known = self._of_kept(_by_pool(told, clusters))
            self._asked = self._clock.now()
            self._took = self._asked - began

    def _gap(self, at_most: float) -> float:
        return max(at_most, _SHARE * self._took)

    @property
    def recent(self) -> bool:
        """Whether :meth:`of` tells of a moment that is not long ago."""
        return self._clock.now() <= self._asked + 2 * self._gap(_SHORTEST)

    def keep(self, pools: Mapping[str, Collection[str]]) -> None:
        """Forget all but these addresses, by pool: one that comes back later begins anew."""
        self._kept = pools
        self._known = self._of_kept(self._known)

    def _of_kept(self, known: Mapping[tuple[str, str], _Parts]) -> dict[tuple[str, str], _Parts]:
        kept = self._kept
        if kept is None:
            return dict(known)
        return {key: feels for key, feels in known.items() if key[1] in kept.get(key[0], ())}

    def is_healthy(self, pool: str, address: str) -> bool:
        """Say whether an endpoint of a pool has passed its last check."""
        return self.of(pool, address) == "healthy"

    def not_asked(self, pool: str, addresses: Iterable[str]) -> frozenset[str]:
        """Return those of a pool's addresses that get no calls, whatever was decided."""
        return frozenset(a for a in addresses if self.of(pool, a) in NOT_ASKED)

    def nowhere_well(self, addresses: Iterable[str]) -> frozenset[str]:
        """Return those of the addresses that pass no check in any pool; none if it is unknown."""
        if not self.recent:
            return frozenset()
        well = {address for (_, address), parts in self._known.items() if not _fails(parts)}
        return frozenset(addresses) - well

    def of(self, pool: str, address: str) -> Feeling:
        """Return how an endpoint of a pool feels."""
        parts = self._known.get((pool, address))
        return "unknown" if parts is None else _worst(parts.values())

    def only(self, pool: str, address: str) -> str:
        """Return over what alone one is not healthy, ``gRPC`` or ``REST``; else nothing."""
        parts = self._known.get((pool, address), {})
        unwell = [rest for rest, feels in parts.items() if feels != "healthy"]
        return ("REST" if unwell[0] else "gRPC") if len(unwell) == 1 < len(parts) else ""


def _worst(feelings: Iterable[Feeling]) -> Feeling:
    return next((feels for feels in feelings if feels != "healthy"), "healthy")


def _fails(parts: _Parts) -> bool:
    return all(feels in _FAILING for feels in parts.values())


def _by_pool(
    told: Mapping[str, Iterable[Mapping[str, Any]]], clusters: Mapping[str, PlannedCluster]
) -> dict[tuple[str, str], _Parts]:
    """Return what was told by pool and address; of clusters of a kind the worst counts."""
    found: dict[tuple[str, str], _Parts] = {}
    for name, hosts in told.items():
        cluster = clusters.get(name)
        if cluster is None:
            continue
        addresses = {cluster.place(server): server.address for server in cluster.servers}
        for host in hosts:
            place = host.get("address", {}).get("socket_address", {})
            text = str(place.get("address", ""))
            shown = f"[{text}]" if ":" in text else text
            address = addresses.get(f"{shown}:{place.get('port_value')}")
            if address is None:
                continue
            feeling = _feeling(host.get("health_status", {}))
            parts = found.setdefault((cluster.pool, address), {})
            parts[cluster.rest] = _worst((parts.get(cluster.rest, "healthy"), feeling))
    return found


def _feeling(status: Mapping[str, Any]) -> Feeling:
    if status.get("pending_active_hc"):
        return "unchecked"
    if status.get("failed_active_health_check"):
        return "unhealthy"
    return "broken off" if status.get("failed_outlier_check") else "healthy"
