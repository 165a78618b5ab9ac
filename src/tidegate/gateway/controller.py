"""The controller of a gateway: finds machines, decides how work is shared, tells the edge.

It is never on the path of an inference. When it dies, the edge goes on with the shares that it
was told last; the next controller of the same port adopts it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from tidegate.clock import Clock, MonotonicClock
from tidegate.config.gateway import Endpoints, GatewayConfig
from tidegate.controller.api import ControllerApi, server_metadata
from tidegate.controller.edge_keeper import EdgeKeeper
from tidegate.controller.edge_logs import EdgeLogs
from tidegate.controller.machine import check_free
from tidegate.controller.run_directory import (
    GatewayRecord,
    RunDirectory,
    log_settings,
)
from tidegate.controller.tokens import TokenFile
from tidegate.edge.control import ControlServer
from tidegate.edge.load_reports import LoadReport
from tidegate.edge.plan import Plan
from tidegate.edge.pools import GatewayTopology
from tidegate.edge.settings import EdgeSettings
from tidegate.errors import AddressInUse, EdgeFailed
from tidegate.gateway.balancers import Balancers
from tidegate.gateway.calls import GatewayCalls
from tidegate.gateway.descriptors import REMEDY, short_of_files
from tidegate.gateway.edge_settings import edge_settings
from tidegate.gateway.endpoints import Endpoint
from tidegate.gateway.entries import entries_of, fixed_endpoint, source_of
from tidegate.gateway.handover import Handover
from tidegate.gateway.memory import Memory
from tidegate.gateway.models import ModelMembers, members_of, tasks_of
from tidegate.gateway.registry import Registry
from tidegate.gateway.settings import GatewaySettings
from tidegate.gateway.sources import Sources
from tidegate.protocols.grpc_frames import PREFIX_SIZE
from tidegate.protocols.open_inference.documents import LARGEST
from tidegate.replica import lifeline
from tidegate.replica.exchange import OpenConnections
from tidegate.replica.http import Server

log = logging.getLogger(__name__)

_TICK = 0.25
"""Seconds between looks at what time changes: shares that grow, ejections that end."""
_RETRY_PUBLISH = 2.0
_FIRST_LOOK = 3.0
"""Seconds that sources have before the edge is told without them."""


class GatewayController:
    """Runs a gateway; ``async with`` starts or adopts its edge, and stops it at the end.

    Args:
        file: ``gateway.yaml``.
        read: reads the settings, as they are now in the file, the variables and the options.
        config: the settings that the gateway starts with.
        directory: where sockets, logs and state live.
        announce: is told, in lines, what happens.
        clock: the time by which shares are decided.
    """

    def __init__(
        self,
        file: Path,
        read: Callable[[], GatewayConfig],
        config: GatewayConfig,
        directory: RunDirectory,
        announce: Callable[[str], None],
        clock: Clock | None = None,
    ) -> None:
        self.file = file
        self.directory = directory
        self.announce = announce
        self.clock = clock or MonotonicClock()
        self.settings = GatewaySettings(file, read, config, self._resettled, announce)
        self.members: dict[str, ModelMembers] = {}
        self.tasks: dict[str, str] = {}
        self.balancers = Balancers()
        self.plan = Plan(GatewayTopology({}, False, b""))
        registration = config.registration
        self.registry = Registry(registration.lease if registration is not None else 5.0)
        token_file = None if registration is None else registration.token_file
        self._token = None if token_file is None else TokenFile(token_file)
        self.sources = Sources(source_of, self._found, announce)
        self._memory = Memory(directory.path / "endpoints.json")
        self._settings = edge_settings(config, directory, self.settings.trust)
        self._handover = Handover()
        self._changed = asyncio.Event()
        self._stale = True
        """Whether who is where has changed since the members were gathered."""
        self._waiters: list[asyncio.Future[None]] = []
        self._planned: GatewayTopology | None = None
        self._told: GatewayTopology | None = None
        self._told_settings: EdgeSettings | None = None
        self._short_of_files = False
        self.problem: str | None = None
        """Why the edge is not as it should be, if it is not."""
        self._settled = False
        self._draining = False
        self._adopted = False
        self._hurry = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._stack = contextlib.AsyncExitStack()
        self.edge = EdgeKeeper(self._settings, directory, announce)
        self._edge_logs = EdgeLogs(
            directory.edge_log, directory.access_log, log_settings(config), self.edge.reopen_logs
        )
        self.calls = GatewayCalls(self)

    @property
    def config(self) -> GatewayConfig:
        """The settings in effect."""
        return self.settings.config

    def token(self) -> str | None:
        """Return what nodes must know to join."""
        return None if self._token is None else self._token.read()

    @property
    def ready(self) -> bool:
        """Whether the edge has its settings, and nothing is being stopped."""
        return self._settled and not self._draining

    async def __aenter__(self) -> GatewayController:
        """Start what does not run yet.

        Raises:
            AddressInUse: a live controller or somebody else has the port.
            EdgeFailed: Envoy cannot be started, or refuses its configuration.
            ConfigurationError: the run directory cannot be used.
        """
        self.directory.create()
        self.directory.lock()
        self._stack.callback(self.directory.unlock)
        try:
            self._find_edge()
            try:
                await self._start()
            except BaseException:
                await self._give_up()
                raise
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    def _find_edge(self) -> None:
        self._stack.callback(os.close, lifeline.hold(self.directory.lifeline))
        record = self.directory.load()
        self._adopted = self.edge.adopt(record.edge if record is not None else None)
        if not self._adopted:
            check_free(self.config.host, self.config.port)
        elif not isinstance(record, GatewayRecord) or record.file != self.file:
            what = "nothing that can be read" if record is None else record.serves
            raise AddressInUse(
                f"port {self.config.port} is taken: an edge that serves {what} runs there without "
                f"a controller; stop it with 'tidegate stop --port {self.config.port}'"
            )

    async def _start(self) -> None:
        api = ControllerApi(self.calls.server, self.calls.why)
        connections = OpenConnections()
        connections.refuse = api.refuse
        await self._stack.enter_async_context(
            Server(
                self.directory.api_socket,
                api.handle,
                LARGEST,
                room=PREFIX_SIZE,
                connections=connections,
                opener=self.calls.server.open_stream,
            )
        )
        self.control = await self._stack.enter_async_context(
            ControlServer(self.directory.ads_socket, self._rejected, self._observe)
        )
        if self._adopted:
            self.announce("adopted the running edge")
        tasks = self._memory.recall(self.sources, self.registry, self.clock.now())
        self.settings.remember(tasks)
        self.settings.follow()
        self._resettled()
        # Silent until something is known: too early an answer takes traffic from what runs.
        await self.settings.first_told(_FIRST_LOOK)
        await self.sources.first_told(_FIRST_LOOK)
        await self.control.publish(self._topology(), self._settings)
        await self.edge.start()
        self._save()
        await self.control.wait_acknowledged()
        self._settled = True
        self._tasks = [
            asyncio.create_task(self._apply_changes(), name="apply changes"),
            asyncio.create_task(self._edge_logs.keep(), name="keep the edge's logs"),
            asyncio.create_task(self.edge.keep(self._edge_is_back), name="keep the edge"),
        ]
        self._found()

    async def _give_up(self) -> None:
        await self._stop_following()
        if self._adopted:
            return
        await self.edge.kill()
        self.directory.remove()

    def hurry(self) -> None:
        """Stop without waiting for the requests that are being run."""
        self._hurry.set()

    async def __aexit__(self, *exc: object) -> None:
        """Drain the edge: health fails first, then connections end, then the process."""
        self._draining = True
        self.calls.health.changed()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._stop_following()
        try:
            try:
                with contextlib.suppress(EdgeFailed):
                    await self.control.publish(self._topology(), self._settings, timeout=1.0)
                await self.edge.stop(self._hurry)
            except Exception:
                log.exception("the edge cannot be drained: it is ended at once")
                await self.edge.kill()
        finally:
            self.directory.remove()
            await self._stack.aclose()

    async def _stop_following(self) -> None:
        await self.sources.close()
        await self.settings.close()

    def _resettled(self) -> None:
        """Take up other settings."""
        self.sources.want(entries_of(self.config, self.settings.tasks))
        self._settings = edge_settings(self.config, self.directory, self.settings.trust)
        self._found()

    def _found(self) -> None:
        self._stale = True
        self._changed.set()

    def joined(self) -> None:
        """Take up that nodes have come or gone."""
        self._found()

    async def applied(self) -> None:
        """Wait until the edge has been told of all that is known by now."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self._found()
        await waiter

    def _observe(self, report: LoadReport) -> None:
        outcomes = self.calls.figures.note(report, self.plan.pools)
        self.balancers.observe(outcomes, report.elapsed, self.clock.now())
        self._changed.set()

    async def _apply_changes(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_TICK):
                    await self._changed.wait()
            self._changed.clear()
            waiters, self._waiters = self._waiters, []
            try:
                await self._apply()
                self.problem = None
                for waiter in waiters:
                    if not waiter.done():
                        waiter.set_result(None)
            except Exception as error:
                self._waiters += waiters
                if not isinstance(error, EdgeFailed):
                    log.exception("a change cannot be applied")
                self.problem = f"a change is not in effect yet: {error}"
                self.announce(self.problem)
                await asyncio.sleep(_RETRY_PUBLISH)
                self._told = None
                self._found()

    async def _apply(self) -> None:
        if self._handover.pending:
            await self.calls.endpoint_health.look(self.plan.clusters, at_most=_TICK)
        topology = self._topology()
        if topology == self._told and self._settings is self._told_settings:
            return
        settings = self._settings
        await self.control.publish(topology, settings)
        self._told, self._told_settings = topology, settings
        self.calls.health.changed()
        self._memory.keep(self.sources, self.registry, self.settings.tasks)

    def _topology(self) -> GatewayTopology:
        now = self.clock.now()
        if self.registry.expire(now):
            self._stale = True
        if self._stale:
            self._stale = False
            self._gather(now)
        topology = GatewayTopology(
            models={name: self.balancers.routed(m, now) for name, m in self.members.items()},
            ready=self.ready or not self._settled,
            server_metadata=server_metadata(self.calls.extension_names()),
            tasks={task: name for task, name in self.tasks.items() if name in self.members},
        )
        if topology != self._planned:
            self.plan, self._planned = Plan(topology, self.plan), topology
        return topology

    def _gather(self, now: float) -> None:
        joined = self.registry.models(now)
        wanted = members_of(self.config, self._found_by, joined, self.settings.tasks)
        health = self.calls.endpoint_health
        self.members = {
            name: model.with_pools(
                lambda pool: self._handover.members(pool, health.is_healthy, now)
            )
            for name, model in wanted.items()
        }
        pools = [pool for model in self.members.values() for pool in model.pools]
        self._handover.forget_all_but(pool.name for pool in pools)
        # Looked at again until the new ones are well.
        self._stale = self._handover.pending
        self.tasks = tasks_of(self.config, dict(self.registry.tasks(now)), self.settings.tasks)
        self.balancers.update(self.members.values(), now)
        addresses = {p.name: frozenset(e.address for e in p.endpoints) for p in pools}
        self.calls.figures.keep(addresses)
        health.keep(addresses)
        short = short_of_files(len(frozenset().union(*addresses.values())))
        if short is not None and not self._short_of_files:
            self.announce(f"{short}; {REMEDY}")
        self._short_of_files = short is not None

    def _found_by(self, entry: Endpoints) -> tuple[Endpoint, ...]:
        fixed = fixed_endpoint(entry)
        return self.sources.found(entry) if fixed is None else (fixed,)

    def sources_state(self) -> list[Mapping[str, object]]:
        """Return what the sources of endpoints and of trust say, for people."""
        files: tuple[tuple[str, Memory | TokenFile | None], ...] = (
            ("memory", self._memory),
            ("token", self._token),
        )
        unwell = [
            {"source": f"{what} {file.path}", "problem": file.problem}
            for what, file in files
            if file is not None and file.problem is not None
        ]
        return [*self.sources.states(), *self.settings.problems(), *unwell]

    def _save(self) -> None:
        self.directory.save(
            GatewayRecord(file=self.file, config=self.config, edge=self.edge.record())
        )

    def _edge_is_back(self) -> None:
        self._found()
        self._save()

    def _rejected(self, words: str) -> None:
        self.announce(f"Envoy refused its configuration: {words}")
