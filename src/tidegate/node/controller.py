"""The controller of a node: watches the repository, keeps replicas, tells the edge.

It is never on the path of an inference. When it dies, the edge and the replicas go on; the
next controller of the same port adopts them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from tidegate.clock import Clock, MonotonicClock
from tidegate.config.node import NodeConfig
from tidegate.controller.api import extension_names, server_extension, server_metadata
from tidegate.controller.changes import Changes
from tidegate.controller.controlled_edge import ControlledEdge
from tidegate.controller.edge_settings import common_settings
from tidegate.controller.grpc_services import HealthCalls, ReflectionCalls
from tidegate.controller.run_directory import NodeRecord, RunDirectory, log_settings
from tidegate.controller.server_calls import Extension, ServerCalls
from tidegate.edge.topology import Endpoint, Topology
from tidegate.errors import ModelNotFound
from tidegate.node.description import Description
from tidegate.node.endpoints_calls import endpoints_extension
from tidegate.node.fleet import Fleet
from tidegate.node.followed_repository import FollowedRepository
from tidegate.node.joining import Joining
from tidegate.node.launcher import ProcessLauncher
from tidegate.node.model_control import ModelControl
from tidegate.node.model_list import ModelList
from tidegate.node.noticeboard import Noticeboard
from tidegate.node.quarantine import Quarantine
from tidegate.node.replicas import Replicas
from tidegate.node.settings_calls import LogCalls, TraceCalls
from tidegate.node.shared_memory_calls import SharedMemoryCalls
from tidegate.node.statistics import Statistics
from tidegate.node.statistics_calls import StatisticsCalls
from tidegate.node.tensorflow_serving_calls import TensorFlowServingCalls
from tidegate.node.trust import NodeTrust
from tidegate.node.unserved import Unserved
from tidegate.replica.flight import read_suspects
from tidegate.replica.spec import ReplicaSpec
from tidegate.repository.entries import ModelEntry, Repository


class Controller:
    """Runs a node; ``async with`` starts or adopts it, and stops edge and replicas at the end."""

    def __init__(
        self,
        repository: Path,
        config: NodeConfig,
        directory: RunDirectory,
        announce: Callable[[str], None],
        clock: Clock | None = None,
    ) -> None:
        self.repository = repository
        self.config = config
        self.directory = directory
        self.announce = announce
        self.fleet = Fleet()
        self._clock = clock or MonotonicClock()
        self._followed = FollowedRepository(repository, self._clock, self._follow, announce)
        self._quarantine = Quarantine()
        self._noticeboard = Noticeboard(directory.notices)
        self.statistics = Statistics(self.fleet, self._clock)
        self.unserved: Counter[tuple[str, str]] = Counter()
        """Calls of models without replicas, by model and protocol."""
        self._changes = Changes(self._apply, announce)
        self._settled = False
        self._draining = False
        self.trust = NodeTrust(config, self._retrusted, announce)
        self.edge_ready = False
        """Whether the edge knows what the node serves, and that it is ready."""
        self.edge = ControlledEdge(
            common_settings(config, directory, self.trust.tls),
            directory,
            log_settings(config),
            announce,
        )
        self.replicas = Replicas(
            self.fleet,
            directory,
            config,
            ProcessLauncher(),
            self._clock,
            changed=self._changes.note,
            announce=announce,
            crashed=self._crashed,
            ended=self.statistics.ended,
        )
        self.joining = Joining(config, self.fleet, announce)
        self.health = HealthCalls(lambda: self.ready, self.fleet.health)
        self.shared_memory = SharedMemoryCalls(config.shared_memory_prefix, directory.regions)
        self.calls = ServerCalls(self._extensions())
        """What is answered about the whole node."""

    def _extensions(self) -> tuple[Extension, ...]:
        control = ModelControl(self, public=self.config.public_control)
        return (
            self.health.extension(),
            ReflectionCalls().extension(),
            server_extension(lambda: self.ready, self._extension_names),
            Description(self.fleet, lambda: self.calls.endpoints).extension(),
            ModelList(self.fleet).extension(),
            StatisticsCalls(self.fleet, self.statistics).extension(),
            endpoints_extension(),
            control.extension(),
            TensorFlowServingCalls(self.fleet, control, self.repository).extension(),
            self.shared_memory.extension(),
            TraceCalls(lambda: self.fleet.models).extension(),
            LogCalls(self._log_from).extension(),
        )

    @property
    def found(self) -> Repository:
        """The repository as it was last seen."""
        return self._followed.found

    @property
    def ready(self) -> bool:
        """Whether every model that can be loaded was ready, and nothing is being stopped."""
        return self._settled and not self._draining

    async def __aenter__(self) -> Controller:
        """Start what does not run yet.

        Raises:
            AddressInUse: a live controller or somebody else has the port.
            EdgeFailed: Envoy cannot be started, or refuses its configuration.
            ConfigurationError: the repository or the run directory cannot be used, or gateways
                cannot be told where this node is.
        """
        async with self.edge.claimed():
            self.joining.check()
            record = self.edge.adopt(NodeRecord, self.repository)
            if record is not None:
                self.fleet.unloaded.update(record.unloaded)
            try:
                await self._start()
            except BaseException:
                await self._give_up()
                raise
        return self

    async def _start(self) -> None:
        await self.edge.listen(self.calls, Unserved(self.fleet, self.unserved).why)
        self._quarantine = Quarantine(self._noticeboard.read())
        self.shared_memory.take_over(adopted=self.edge.adopted)
        count = await self.replicas.adopt()
        if self.edge.adopted:
            s = "" if count == 1 else "s"
            self.announce(f"adopted the running edge and {count} replica{s}")
            self._settled = True
        await self._followed.look()
        await self.edge.start(self._topology(), self._save)
        self.edge.keep(
            self._edge_is_back,
            {
                "apply changes": self._changes.follow(),
                "watch the repository": self._followed.follow(),
                "follow the certificates": self.trust.follow(),
            },
        )
        self._changes.note()
        self.joining.start()

    async def _give_up(self) -> None:
        """End what was started in vain; an edge that served before goes on, as its replicas do."""
        if self.edge.adopted:
            return
        await self.edge.process.kill()
        await self.replicas.end()
        self.directory.remove()

    def hurry(self) -> None:
        """Stop without waiting for the requests that are being run."""
        self.edge.hurry.set()

    async def __aexit__(self, *exc: object) -> None:
        """Leave the gateways, drain the edge, then end the replicas; the logs are left."""
        # First of all: until they know, gateways go on sending calls.
        await self.joining.leave(self.edge.hurry)
        self._draining = True
        self.health.changed()
        try:
            await self.edge.drain(self._topology)
            await self.replicas.end()
        finally:
            await self.edge.release()

    def _save(self) -> None:
        self.directory.save(
            NodeRecord(
                repository=self.repository,
                config=self.config,
                edge=self.edge.process.record(),
                unloaded=tuple(sorted(self.fleet.unloaded)),
            )
        )

    def _retrusted(self) -> None:
        self.edge.settings = replace(self.edge.settings, tls=self.trust.tls)
        self._changes.note()

    def _log_from(self, level: int) -> None:
        self._noticeboard.log_from(level)
        self._changes.note()

    def _edge_is_back(self) -> None:
        # What was to be retired while there was no edge still waits for it.
        self._changes.note()
        self._save()

    def _crashed(self, spec: ReplicaSpec) -> None:
        self.statistics.crashed(spec)
        suspects = read_suspects(spec.flight)
        if self._quarantine.died(suspects):
            self.announce(
                f"a request to {spec.model} was being run when two replicas died: it is "
                "quarantined"
            )
            # At once: those that are started in place of the dead read it.
            self._noticeboard.tell(self.fleet, self._quarantine.digests)

    async def take(self, model: str, *, unloaded: bool) -> None:
        """Look at a model now, complete or not, and serve it or not from now on.

        Raises:
            ModelNotFound: it is not in the repository.
            ConfigurationError: the repository cannot be read.
        """
        await self._followed.look_at(model, partial(self._take, model, unloaded))
        self._follow()

    def _take(self, model: str, unloaded: bool, entry: ModelEntry | None) -> None:
        if entry is None and model not in self.fleet.models:
            raise ModelNotFound(f"there is no model {model!r} in the repository")
        if unloaded:
            self.fleet.unloaded.add(model)
        else:
            self.fleet.unloaded.discard(model)
            # What could not be loaded may have failed for a reason that has passed.
            for generation in list(self.fleet.generations(model)):
                if generation.final:
                    self.fleet.forget(generation)
                    self.replicas.retire(generation)
        self._save()

    async def applied(self) -> None:
        """Wait until the edge has been told of the next change, and of all there were before."""
        await self._changes.applied()

    def apply_soon(self) -> None:
        """Tell the edge anew, whether something has changed or not."""
        self._changes.note()

    def _follow(self) -> None:
        """Start what should run by now."""
        for generation in self.fleet.update(self._followed.found):
            self.replicas.start(generation)
        for generation in self.fleet.generations():
            if generation.desired and not generation.final:
                self.replicas.start(generation)
        self._changes.note()

    async def _apply(self) -> None:
        """Bring the edge to what the fleet says; then, and only then, let the retired go."""
        self.fleet.make_live()
        if not self._settled and self.fleet.settled:
            self._settled = True
            self.announce("ready")
        retired = self.fleet.retired()
        if retired:
            await self.joining.withdraw()
        topology = self._topology()
        await self.edge.publish(topology)
        self.edge_ready = topology.ready
        self.joining.changed()
        self.health.changed()
        if not self.edge.process.serving:
            return
        # What was given up may have come back while the edge was told.
        still = self.fleet.retired()
        for generation in retired:
            if generation not in still:
                continue
            self.announce(f"{generation.model}:{generation.version} draining")
            self.fleet.forget(generation)
            self.replicas.retire(generation)
        self._noticeboard.tell(self.fleet, self._quarantine.digests)

    def _topology(self) -> Topology:
        explains = (Endpoint(str(self.directory.api_socket)),)
        clusters = {}
        for key, replicas in self.fleet.clusters().items():
            endpoints = tuple(Endpoint(str(r.spec.socket)) for r in replicas if r.spec)
            clusters[key] = endpoints or explains
        sole = _sole(clusters) if explains not in clusters.values() else None
        metadata = server_metadata(self._extension_names())
        tasks = self.fleet.tasks()
        return Topology(clusters, self.ready, metadata, sole, tasks)

    def _extension_names(self) -> tuple[str, ...]:
        return extension_names(self.calls.extensions)


def _sole(clusters: Mapping[str, object]) -> str | None:
    """Return the model of these clusters, when they are one model's in one version."""
    model, *others = {re.split("[:@]", key)[0] for key in clusters} or {""}
    single = sum(":" in key for key in clusters) <= 1
    return model if model in clusters and single and not others else None
