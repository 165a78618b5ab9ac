"""``/metrics`` of the admin port: one scrape for the whole node."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from typing import TYPE_CHECKING

import psutil

from tidegate.controller.edge_figures import PATTERN, EdgeFigures
from tidegate.controller.process_figures import write_controller
from tidegate.edge.names import MODEL_PREFIX
from tidegate.errors import EdgeFailed
from tidegate.node.fleet import ReplicaState
from tidegate.node.gpus import Gpus
from tidegate.node.statistics import Key
from tidegate.telemetry import names
from tidegate.telemetry.exposition import Page
from tidegate.telemetry.ledger import Ledger
from tidegate.telemetry.statistics import ModelStats

if TYPE_CHECKING:
    from tidegate.node.controller import Controller

_STATES = {state: state.value.replace(" ", "_") for state in ReplicaState}


class Metrics:
    """Collects the metrics of a node when they are asked for; nothing runs in between."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._started = time.time()
        self._edge = EdgeFigures()
        self._gpus = Gpus()
        self._cpu: Ledger[tuple[int, float], Key, float] = Ledger()
        self._cpu_of: set[tuple[int, float]] = set()
        self._lock = asyncio.Lock()

    async def page(self) -> Page:
        """Ask everybody, and return what they said; who does not answer is left out."""
        async with self._lock:
            sums, edge, gpus = await asyncio.gather(
                self._controller.statistics.collect(),
                self._ask_edge(),
                asyncio.to_thread(self._gpus.look),
            )
            page = Page()
            for key, stats in sorted(sums.items()):
                _write_stats(page, key, stats)
            self._write_edge(page, edge)
            processes = self._write_replicas(page)
            for gpu in gpus:
                label = str(gpu.index)
                page.add(names.GPU_MEMORY_USED, gpu.used, label)
                page.add(names.GPU_MEMORY, gpu.total, label)
                if gpu.utilization is not None:
                    page.add(names.GPU_UTILIZATION, gpu.utilization, label)
                for pid, used in gpu.by_process.items():
                    if pid in processes:
                        page.add(names.REPLICA_GPU_MEMORY, used, *processes[pid], label)
            self._write_node(page)
            return page

    async def _ask_edge(self) -> dict[str, int] | None:
        try:
            return await self._controller.edge.process.stats(PATTERN)
        except EdgeFailed:
            return None

    def _write_edge(self, page: Page, stats: dict[str, int] | None) -> None:
        fleet, now = self._controller.fleet, time.monotonic()
        if stats is not None:
            clusters = {MODEL_PREFIX + key: re.split("[:@]", key)[0] for key in fleet.clusters()}
            self._edge.note(stats, clusters, now)
        page.add(names.EDGE_UP, int(stats is not None))
        self._edge.write(page, fleet.models, now)

    def _write_replicas(self, page: Page) -> dict[int, tuple[str, str, str]]:
        """Write what the processes take; return the labels of each by its pid."""
        controller = self._controller
        processes: dict[int, tuple[str, str, str]] = {}
        running: set[tuple[int, float]] = set()
        for generation in controller.fleet.generations():
            key = generation.model, generation.version
            version = generation.model, str(generation.version)
            for label in _STATES.values():
                page.add(names.REPLICAS, 0, *version, label)
            for replica in generation.replicas.values():
                page.add(names.REPLICAS, 1, *version, _STATES[replica.state])
                place = (*version, str(replica.index))
                if replica.spec is not None:
                    depth = controller.statistics.queue_depths.get(replica.spec.id)
                    if depth is not None:
                        page.add(names.QUEUE_DEPTH, depth, *place)
                if replica.pid is None:
                    continue
                processes[replica.pid] = place
                with contextlib.suppress(psutil.Error):
                    process = psutil.Process(replica.pid)
                    page.add(names.REPLICA_MEMORY, process.memory_info().rss, *place)
                    source, times = (replica.pid, process.create_time()), process.cpu_times()
                    self._cpu.note(source, key, times.user + times.system)
                    running.add(source)
        now = time.monotonic()
        for source in self._cpu_of - running:
            self._cpu.end(source, now)
        self._cpu_of = running
        crashes = controller.statistics.crashes()
        for (model, number), seconds in sorted(self._cpu.sums(crashes, now).items()):
            page.add(names.REPLICA_CPU, seconds, model, str(number))
        for (model, number), count in sorted(crashes.items()):
            page.add(names.REPLICA_CRASHES, count, model, str(number))
        return processes

    def _write_node(self, page: Page) -> None:
        controller = self._controller
        fleet = controller.fleet
        for state in ("ready", "not_ready", "unloaded"):
            page.add(names.MODELS, 0, state)
        for model in fleet.models:
            page.add(names.MODELS, 1, fleet.state(model).replace(" ", "_"))
        for (model, protocol), count in sorted(controller.unserved.items()):
            page.add(names.UNSERVED, count, model, protocol)
        write_controller(page, self._started, controller.edge)


def _write_stats(page: Page, key: Key, stats: ModelStats) -> None:
    labels = key[0], str(key[1])
    for protocol, codes in stats.requests.items():
        for code, count in codes.items():
            page.add(names.REQUESTS, count, *labels, protocol, code)
    page.add_histogram(names.REQUEST_DURATION, stats.request_duration, *labels)
    page.add_histogram(names.QUEUE_DURATION, stats.queue_duration, *labels)
    page.add_histogram(names.COMPUTE_DURATION, stats.compute_duration, *labels)
    page.add_histogram(names.BATCH_SIZE, stats.batch_size, *labels)
