"""The controller of a gateway: finds machines, decides how work is shared, tells the edge.

It is never on the path of an inference. When it dies, the edge goes on with the shares that it
was told last; the next controller of the same port adopts it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from tidegate.clock import Clock, MonotonicClock
from tidegate.config.endpoints import Endpoints
from tidegate.config.gateway import GatewayConfig
from tidegate.controller.api import server_metadata
from tidegate.controller.changes import Changes
from tidegate.controller.controlled_edge import ControlledEdge
from tidegate.controller.run_directory import GatewayRecord, RunDirectory, log_settings
from tidegate.controller.tokens import TokenFile
from tidegate.edge.load_reports import LoadReport
from tidegate.edge.plan import Plan
from tidegate.edge.pools import GatewayTopology
from tidegate.edge.settings import EdgeSettings
from tidegate.gateway.balancers import Balancers
from tidegate.gateway.calls import GatewayCalls
from tidegate.gateway.descriptors import REMEDY, short_of_files
from tidegate.gateway.edge_settings import edge_settings
from tidegate.gateway.endpoints import Endpoint
from tidegate.gateway.entries import entries_of, source_of
from tidegate.gateway.handover import Handover
from tidegate.gateway.memory import Memory
from tidegate.gateway.models import ModelMembers, members_of, tasks_of
from tidegate.gateway.own_places import OwnPlaces
from tidegate.gateway.registry import Registry
from tidegate.gateway.settings import GatewaySettings
from tidegate.gateway.sources import Sources

_TICK = 0.25
"""Seconds between looks at what time changes: shares that grow, ejections that end."""
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
        listening = (config.host, config.port), (config.admin_host, config.admin_port)
        self.own_places = OwnPlaces(listening, self.clock)
        self.sources = Sources(source_of, self._found, announce)
        self._memory = Memory(directory.path / "endpoints.json")
        self._handover = Handover()
        self._changes = Changes(self._apply, announce, _TICK)
        self._stale = True
        """Whether who is where has changed since the members were gathered."""
        self._planned: GatewayTopology | None = None
        self._told: tuple[GatewayTopology | None, EdgeSettings | None] = (None, None)
        """What Envoy has acknowledged."""
        self._short_of_files = False
        self._settled = False
        self._draining = False
        settings = edge_settings(config, directory, self.settings.trust)
        self.edge = ControlledEdge(settings, directory, log_settings(config), announce)
        self.calls = GatewayCalls(self)

    @property
    def config(self) -> GatewayConfig:
        """The settings in effect."""
        return self.settings.config

    def token(self) -> str | None:
        """Return what nodes must know to join."""
        return None if self._token is None else self._token.read()

    @property
    def problem(self) -> str | None:
        """Why the edge is not as it should be, if it is not."""
        return self._changes.problem

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
        async with self.edge.claimed():
            self.edge.adopt(GatewayRecord, self.file)
            try:
                await self._start()
            except BaseException:
                await self._give_up()
                raise
        return self

    async def _start(self) -> None:
        await self.edge.listen(self.calls.server, self.calls.why, self._observe)
        if self.edge.adopted:
            self.announce("adopted the running edge")
        tasks = self._memory.recall(self.sources, self.registry, self.clock.now())
        self.settings.remember(tasks)
        self.settings.follow()
        self._resettled()
        # Silent until something is known: too early an answer takes traffic from what runs.
        await self.settings.first_told(_FIRST_LOOK)
        await self.sources.first_told(_FIRST_LOOK)
        await self.edge.start(self._topology(), self._save)
        self._settled = True
        self.edge.keep(self._edge_is_back, {"apply changes": self._changes.follow()})
        self._found()

    async def _give_up(self) -> None:
        await self._stop_following()
        if self.edge.adopted:
            return
        await self.edge.process.kill()
        self.directory.remove()

    def hurry(self) -> None:
        """Stop without waiting for the requests that are being run."""
        self.edge.hurry.set()

    async def __aexit__(self, *exc: object) -> None:
        """Drain the edge: health fails first, then connections end, then the process."""
        self._draining = True
        self.calls.health.changed()
        try:
            await self._stop_following()
            await self.edge.drain(self._topology)
        finally:
            await self.edge.release()

    async def _stop_following(self) -> None:
        await self.sources.close()
        await self.settings.close()

    def _resettled(self) -> None:
        """Take up other settings."""
        self.sources.want(entries_of(self.config, self.settings.tasks))
        self.edge.settings = edge_settings(self.config, self.directory, self.settings.trust)
        self._found()

    def _found(self) -> None:
        self._stale = True
        self._changes.note()

    def joined(self) -> None:
        """Take up that nodes have come or gone."""
        self._found()

    async def applied(self) -> None:
        """Wait until the edge has been told of all that is known by now."""
        self._found()
        await self._changes.applied()

    def _observe(self, report: LoadReport) -> None:
        outcomes = self.calls.figures.note(report, self.plan.pools)
        self.balancers.observe(outcomes, report.elapsed, self.clock.now())
        self._changes.note()

    async def _apply(self) -> None:
        if self._handover.pending:
            await self.calls.endpoint_health.look(self.plan.clusters, at_most=_TICK)
        await self._forget_silent()
        told = self._topology(), self.edge.settings
        if told[0] == self._told[0] and told[1] is self._told[1]:
            return
        self._told = None, None  # of what is refused, it may have taken a part
        await self.edge.publish(told[0])
        self._told = told
        self.calls.health.changed()
        self._memory.keep(self.sources, self.registry, self.settings.tasks)

    async def _forget_silent(self) -> None:
        """Forget the nodes that nobody hears, and that fail their health checks, too."""
        silent = self.registry.silent(self.clock.now())
        if not silent:
            return
        health = self.calls.endpoint_health
        await health.look(self.plan.clusters)
        failing = health.nowhere_well(silent.values())
        names = [name for name, address in silent.items() if address in failing]
        for name in self.registry.note_unwell(names, self.clock.now()):
            self.announce(f"node {name} is forgotten: it is silent, and fails its health checks")
            self._stale = True

    def _topology(self) -> GatewayTopology:
        now = self.clock.now()
        if self.registry.expire(now):
            self._stale = True
        if self._stale:
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
        self.own_places.begin()
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
        self.tasks = tasks_of(self.config, dict(self.registry.tasks(now)), self.settings.tasks)
        self.balancers.update(self.members.values(), now)
        addresses = {p.name: frozenset(e.address for e in p.endpoints) for p in pools}
        self.calls.figures.keep(addresses)
        health.keep(addresses)
        short = short_of_files(len(frozenset().union(*addresses.values())))
        if short is not None and not self._short_of_files:
            self.announce(f"{short}; {REMEDY}")
        self._short_of_files = short is not None
        # Looked at again until the new ones are well.
        self._stale = self._handover.pending

    def _found_by(self, entry: Endpoints) -> tuple[Endpoint, ...]:
        return self.own_places.without(self.sources.found(entry))

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
        unwell += [
            {"source": f"endpoint {address}", "problem": "left out: this gateway listens there"}
            for address in self.own_places.met
        ]
        return [*self.sources.states(), *self.settings.problems(), *unwell]

    def _save(self) -> None:
        self.directory.save(
            GatewayRecord(file=self.file, config=self.config, edge=self.edge.process.record())
        )

    def _edge_is_back(self) -> None:
        self._found()
        self._save()
