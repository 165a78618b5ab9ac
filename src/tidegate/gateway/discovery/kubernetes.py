"""Endpoints from the EndpointSlices of Kubernetes: a list, and then a watch."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tidegate.errors import TidegateError
from tidegate.gateway.discovery.kubernetes_api import Cluster, Gone, SliceApi
from tidegate.gateway.discovery.kubernetes_slices import SliceSet
from tidegate.gateway.discovery.source import (
    STAY,
    EndpointReport,
    Problem,
    RetryDelays,
    Sleep,
    Tell,
)
from tidegate.gateway.endpoints import Traits

_LASTED = 1.0
"""A watch that lasted so many seconds was a good one."""


def of_service(name: str) -> str:
    """Return the label selector of the slices of a service."""
    return f"kubernetes.io/service-name={name}"


@dataclass(slots=True)
class EndpointSlices:
    """A :class:`~tidegate.gateway.discovery.source.Source`: what a selector selects in a cluster.

    Pods that are ready get calls. A set without any is told as it is: the cluster knows. When the
    API server cannot be asked, the last known set stays, and it is asked again, less and less
    often, up to every half minute.
    """

    cluster: Callable[[], Cluster]
    """Called whenever connecting; a ConfigurationError of it is told as the problem."""
    selector: str
    """``kubernetes.io/service-name=resnet`` or any other label selector."""
    port: str | None = None
    """Name or number of the pods' port; ``None``: the only one."""
    traits: Traits = field(default_factory=Traits)
    watch_seconds: float = 60.0
    sleep: Sleep = asyncio.sleep
    now: Callable[[], float] = time.monotonic
    _trouble: str | None = None

    async def follow(self, tell: Tell, problem: Problem) -> None:
        """List and watch; see :class:`~tidegate.gateway.discovery.source.Source`."""
        report, delays = EndpointReport(tell, problem), RetryDelays()
        while True:
            try:
                cluster = self.cluster()
                async with SliceApi(cluster, self.selector, self.watch_seconds) as api:
                    await self._list_and_watch(api, report, delays)
            except Gone:
                pass  # Nothing is wrong: the server has tidied up.
            except TidegateError as error:
                self._trouble = f"{self.selector}: {error}; {STAY}"
                report.failed(self._trouble)
            await self.sleep(delays.failed())

    async def _list_and_watch(
        self, api: SliceApi, report: EndpointReport, delays: RetryDelays
    ) -> None:
        """List once and watch on and on; ends by an error only."""
        slices = SliceSet(self.port, self.traits)
        following = slices.add_page(await api.page(""))
        while following:
            following = slices.add_page(await api.page(following))
        self._report(slices, report)
        while True:
            begun = self.now()
            async with api.watch(slices.version) as events:
                self._trouble = None
                self._report(slices, report)
                async for together in events:
                    # All first, then one report: a roll-out changes many slices at a time.
                    changed = [slices.apply(e["type"], e["object"]) for e in together]
                    delays.succeeded()
                    if any(changed):
                        self._report(slices, report)
            if self.now() - begun >= _LASTED:
                delays.succeeded()
            else:
                await self.sleep(delays.failed())

    def _report(self, slices: SliceSet, report: EndpointReport) -> None:
        endpoints, wrong = slices.endpoints()
        words = None if wrong is None else f"{self.selector}: {wrong}"
        report.found(endpoints, self._trouble or words)
