"""What became of all calls to each endpoint, of a report and summed over all of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tidegate.balancing.outcome import Outcome
from tidegate.edge.load_reports import EndpointLoad, LoadReport


@dataclass(slots=True)
class Sum:
    """Calls to one endpoint of a pool since the controller began; ``in_flight`` is of now.

    ``cancelled`` have ended without an answer: their callers went away, or their time was over.
    """

    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    issued: int = 0
    in_flight: int = 0
    early: int = 0
    """How many of those in flight were counted as ended already: over REST, the head of an answer
    says what it is, and its body may take a while."""

    def add(self, load: EndpointLoad) -> Outcome:
        """Add a report, and return it with the calls that were cancelled.

        The edge does not count these: they are those that were begun, have not ended, and are
        no longer in flight.
        """
        begun = self.in_flight - self.early + load.issued
        left = begun - load.succeeded - load.failed
        cancelled = max(0, left - load.in_flight)
        self.early = min(load.in_flight, max(0, load.in_flight - left))
        self.succeeded += load.succeeded
        self.failed += load.failed
        self.cancelled += cancelled
        self.issued += load.issued
        self.in_flight = load.in_flight
        return Outcome(
            load.succeeded, load.failed, load.issued, load.in_flight, load.utilization, cancelled
        )


class Figures:
    """Adds up reports, by pool and address; endpoints that are gone are forgotten."""

    def __init__(self) -> None:
        self._sums: dict[str, dict[str, Sum]] = {}
        self._busy: set[tuple[str, str]] = set()
        """Those with something in flight by the last report."""

    def note(
        self, report: LoadReport, pool_of: Mapping[str, str]
    ) -> dict[str, dict[str, Outcome]]:
        """Take a report; ``pool_of`` names the pool of each cluster in it.

        Returns what became of the calls since the one before, by pool and address.
        """
        by_pool: dict[str, list[Mapping[str, EndpointLoad]]] = {}
        for cluster, loads in report.clusters.items():
            pool = pool_of.get(cluster)
            if pool is not None:
                by_pool.setdefault(pool, []).append(loads)
        found = {pool: _summed(parts) for pool, parts in by_pool.items()}
        # Those that a report leaves out have nothing in flight.
        for pool, address in self._busy:
            if address in self._sums.get(pool, {}):
                found.setdefault(pool, {}).setdefault(address, _NOTHING)
        self._busy.clear()
        outcomes: dict[str, dict[str, Outcome]] = {}
        for pool, loads in found.items():
            sums, of_pool = self._sums.setdefault(pool, {}), outcomes.setdefault(pool, {})
            for address, load in loads.items():
                of_pool[address] = sums.setdefault(address, Sum()).add(load)
                if load.in_flight:
                    self._busy.add((pool, address))
        return outcomes

    def keep(self, members: Mapping[str, frozenset[str]]) -> None:
        """Forget all but these addresses of these pools."""
        self._sums = {
            pool: {address: s for address, s in sums.items() if address in members[pool]}
            for pool, sums in self._sums.items()
            if pool in members
        }

    def of(self, pool: str, address: str) -> Sum:
        """Return the sums of one endpoint."""
        return self._sums.get(pool, {}).get(address) or Sum()


_NOTHING = EndpointLoad(0, 0, 0, 0)


def _summed(parts: Iterable[Mapping[str, EndpointLoad]]) -> dict[str, EndpointLoad]:
    """Add up what the clusters of one pool say of the same endpoints."""
    first, *others = parts
    sums = dict(first)
    for loads in others:
        for address, load in loads.items():
            before = sums.get(address)
            sums[address] = load if before is None else _both(before, load)
    return sums


def _both(one: EndpointLoad, other: EndpointLoad) -> EndpointLoad:
    return EndpointLoad(
        one.succeeded + other.succeeded,
        one.failed + other.failed,
        one.issued + other.issued,
        one.in_flight + other.in_flight,
        one.utilization if other.utilization is None else other.utilization,
    )
