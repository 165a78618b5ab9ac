"""``/metrics`` of a gateway's admin port."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, get_args

from tidegate.balancing.verdict import State
from tidegate.controller.edge_figures import PATTERN, EdgeFigures
from tidegate.controller.process_figures import write_controller
from tidegate.errors import EdgeFailed
from tidegate.gateway.models import ModelMembers, PoolMembers
from tidegate.telemetry import names
from tidegate.telemetry.exposition import Page

if TYPE_CHECKING:
    from tidegate.gateway.controller import GatewayController


class Metrics:
    """Collects the metrics of a gateway when they are asked for."""

    def __init__(self, controller: GatewayController) -> None:
        self._controller = controller
        self._started = time.time()
        self._edge = EdgeFigures()

    async def page(self) -> Page:
        """Ask the edge, and return what it and the controller know."""
        controller, page = self._controller, Page()
        try:
            stats = await controller.edge.process.stats(PATTERN)
        except EdgeFailed:
            stats = None
        await controller.calls.endpoint_health.look(controller.plan.clusters)
        now = time.monotonic()
        if stats is not None:
            clusters = {name: each.model for name, each in controller.plan.clusters.items()}
            self._edge.note(stats, clusters, now)
        page.add(names.EDGE_UP, int(stats is not None))
        self._edge.write(page, controller.members, now)
        for model in controller.members.values():
            for pool in model.pools:
                self._write_pool(page, model, pool)
        page.add(names.NODES, len(controller.registry.describe(controller.clock.now())))
        problem = controller.settings.problem or controller.problem
        page.add(names.CONFIG_PROBLEM, int(problem is not None))
        write_controller(page, self._started, controller.edge)
        return page

    def _write_pool(self, page: Page, model: ModelMembers, pool: PoolMembers) -> None:
        controller = self._controller
        verdicts = controller.balancers.verdicts(pool.name, controller.clock.now())
        place = model.name, pool.part_of(model.name)
        states = Counter(verdicts[endpoint.address].state for endpoint in pool.endpoints)
        for state in get_args(State):
            page.add(names.ENDPOINTS, states[state], *place, state)
        page.add(names.ENDPOINT_EJECTIONS, controller.balancers.ejections(pool.name), *place)
        without = controller.calls.endpoint_health.not_asked(
            pool.name, (endpoint.address for endpoint in pool.endpoints)
        )
        shares = controller.balancers.shares(pool, controller.clock.now(), without)
        for endpoint in pool.endpoints:
            labels = (*place, endpoint.address)
            sums = controller.calls.figures.of(pool.name, endpoint.address)
            page.add(names.ENDPOINT_SHARE, shares[endpoint.address], *labels)
            page.add(names.ENDPOINT_CALLS, sums.succeeded, *labels, "succeeded")
            page.add(names.ENDPOINT_CALLS, sums.failed, *labels, "failed")
            page.add(names.ENDPOINT_CALLS, sums.cancelled, *labels, "cancelled")
            page.add(names.ENDPOINT_IN_FLIGHT, sums.in_flight, *labels)
