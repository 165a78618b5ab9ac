"""What became of all calls to each endpoint, summed over the edge's reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tidegate.edge.load_reports import LoadReport


@dataclass(slots=True)
class Sum:
    """Calls to one endpoint of a pool since the controller began; ``in_flight`` is of now."""

    succeeded: int = 0
    failed: int = 0
    issued: int = 0
    in_flight: int = 0


class Figures:
    """Adds up reports, by pool and address; endpoints that are gone are forgotten."""

    def __init__(self) -> None:
        self._sums: dict[str, dict[str, Sum]] = {}
        self._busy: list[Sum] = []
        """Those with something in flight by the last report."""

    def note(self, report: LoadReport, pool_of: Mapping[str, str]) -> None:
        """Take a report; ``pool_of`` names the pool of each cluster in it."""
        # Those that a report leaves out have nothing in flight.
        for each in self._busy:
            each.in_flight = 0
        self._busy.clear()
        for cluster, loads in report.clusters.items():
            pool = pool_of.get(cluster)
            if pool is None:
                continue
            sums = self._sums.setdefault(pool, {})
            for address, load in loads.items():
                each = sums.setdefault(address, Sum())
                each.succeeded += load.succeeded
                each.failed += load.failed
                each.issued += load.issued
                if load.in_flight:
                    each.in_flight += load.in_flight
                    self._busy.append(each)

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
