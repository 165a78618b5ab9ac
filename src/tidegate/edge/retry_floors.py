"""How many retries a cluster may have at least, by what is in flight on its busiest server.

When a server dies, all its calls are tried again at the same moment. Envoy's budget is a share of
the calls in flight, and a server that has stopped to answer has gathered most of them.
"""

from __future__ import annotations

from collections.abc import Mapping

from tidegate.edge.load_reports import EndpointLoad, LoadReport

LEAST = 16
"""Retries at a time that are never too many: shares of so few calls are a matter of chance."""
_ROOM = 2
"""The calls of a server that is silent can double before the next report."""
_CALM = 40
"""Reports, ten seconds, for which a floor stays when there is less to do."""


class RetryFloors:
    """The floors of all clusters, in powers of two; ``floors`` names those above the least."""

    def __init__(self) -> None:
        self.floors: dict[str, int] = {}
        self._calm: dict[str, int] = {}

    def observe(self, report: LoadReport) -> bool:
        """Take a report of all clusters with calls; return whether a floor has changed."""
        before = dict(self.floors)
        for cluster in {*self.floors, *report.clusters}:
            wanted = _floor(report.clusters.get(cluster, {}))
            floor = self.floors.get(cluster, LEAST)
            if wanted >= floor:
                self._calm.pop(cluster, None)
                if wanted > floor:
                    self.floors[cluster] = wanted
                continue
            calm = self._calm[cluster] = self._calm.get(cluster, 0) + 1
            if calm >= _CALM:
                del self._calm[cluster]
                self.floors[cluster] = floor // 2
                if floor // 2 <= LEAST:
                    del self.floors[cluster]
        return self.floors != before


def _floor(endpoints: Mapping[str, EndpointLoad]) -> int:
    most = max((load.in_flight for load in endpoints.values()), default=0)
    return max(LEAST, 1 << (_ROOM * most - 1).bit_length()) if most else LEAST
