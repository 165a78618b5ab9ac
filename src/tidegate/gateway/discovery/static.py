"""Endpoints that are written down and do not change."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from tidegate.gateway.discovery.source import EndpointReport, Problem, Tell
from tidegate.gateway.endpoints import Endpoint


@dataclass(frozen=True, slots=True)
class Static:
    """A :class:`~tidegate.gateway.discovery.source.Source` of endpoints that are given."""

    endpoints: Iterable[Endpoint]

    async def follow(self, tell: Tell, problem: Problem) -> None:
        """Tell them at once; see :class:`~tidegate.gateway.discovery.source.Source`."""
        EndpointReport(tell, problem).found(self.endpoints)
        await asyncio.Event().wait()
