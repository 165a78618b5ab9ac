"""How many retries a cluster may have at least, by what is in flight on its busiest server.

When a server dies, all its calls are tried again at the same moment. Envoy's budget is a share of
the calls in flight, and a server that has stopped to answer has gathered most of them.
"""

from __future__ import annotations

from collections.abc import Mapping

from tidegate.edge.load_reports import EndpointLoad, LoadReport

LEAST = 64
"""Retries at a time that are never too many: shares of so few calls are a matter of chance."""
_ROOM = 3
"""What is in flight is seen four times a second, and is more at other moments."""
_STEP = 4
"""A floor that must rise does so by a quarter more, so that it need not at the next report."""
_CALM = 40
"""Reports, ten seconds, for which a floor stays when there is less to do."""


class RetryFloors:
    """The floors of all clusters; ``floors`` names those above the least."""

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
                    self.floors[cluster] = wanted + wanted // _STEP
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
    return max(LEAST, _ROOM * most)
