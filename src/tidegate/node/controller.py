"""The controller of a node: watches the repository, keeps replicas, tells the edge.

It is never on the path of an inference. When it dies, the edge and the replicas go on; the
next controller of the same port adopts them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from tidegate.clock import Clock, MonotonicClock
from tidegate.config.node import NodeConfig
from tidegate.controller.api import (
    ControllerApi,
    extension_names,
    server_extension,
    server_metadata,
)
from tidegate.controller.edge_keeper import EdgeKeeper
from tidegate.controller.edge_logs import EdgeLogs
from tidegate.controller.grpc_services import HealthCalls, ReflectionCalls
from tidegate.controller.machine import check_free, usable_cores
from tidegate.controller.run_directory import NodeRecord, RunDirectory, log_settings
from tidegate.controller.server_calls import ServerCalls
from tidegate.edge.control import ControlServer
from tidegate.edge.settings import EdgeSettings
from tidegate.edge.topology import Endpoint, Topology
from tidegate.errors import AddressInUse, EdgeFailed, ModelNotFound
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
from tidegate.protocols.grpc_frames import PREFIX_SIZE
from tidegate.protocols.open_inference.documents import LARGEST
from tidegate.replica import lifeline
from tidegate.replica.exchange import OpenConnections
from tidegate.replica.flight import read_suspects
from tidegate.replica.http import Server
from tidegate.replica.spec import ReplicaSpec
from tidegate.repository.entries import ModelEntry, Repository

log = logging.getLogger(__name__)

_RETRY_PUBLISH = 2.0


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
        self._changed = asyncio.Event()
        self._waiters: list[asyncio.Future[None]] = []
        """Those who wait for the edge to be told."""
        self._settled = False
        self._adopted = False
        self._draining = False
        self._hurry = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._stack = contextlib.AsyncExitStack()
        self.trust = NodeTrust(config, self._retrusted, announce)
        self.edge_ready = False
        """Whether the edge knows what the node serves, and that it is ready."""
        self._settings = EdgeSettings(
            host=config.host,
            port=config.port,
            controller_socket=str(directory.api_socket),
            max_message_size=config.max_message_size,
            access_log=directory.access_log if config.access_log else None,
            drain_timeout=config.drain_timeout,
            idle_timeout=config.idle_timeout,
            threads=config.envoy_threads or max(1, int(usable_cores())),
            envoy=config.envoy,
            origins=config.allowed_origins or (),
            tls=self.trust.tls,
        )
        self.edge = EdgeKeeper(self._settings, directory, announce)
        self._edge_logs = EdgeLogs(
            directory.edge_log, directory.access_log, log_settings(config), self.edge.reopen_logs
        )
        self.replicas = Replicas(
            self.fleet,
            directory,
            config,
            ProcessLauncher(),
            self._clock,
            changed=self._changed.set,
            announce=announce,
            crashed=self._crashed,
            ended=self.statistics.ended,
        )
        self.joining = Joining(config, self.fleet, announce)
        self.health = HealthCalls(lambda: self.ready, self.fleet.health)
        self.shared_memory = SharedMemoryCalls(config.shared_memory_prefix, directory.regions)
        control = ModelControl(self, public=config.public_control)
        tensorflow_serving = TensorFlowServingCalls(self.fleet, control, self.repository)
        self.calls = ServerCalls(
            (
                self.health.extension(),
                ReflectionCalls().extension(),
                server_extension(lambda: self.ready, self._extension_names),
                Description(self.fleet, lambda: self.calls.endpoints).extension(),
                ModelList(self.fleet).extension(),
                StatisticsCalls(self.fleet, self.statistics).extension(),
                endpoints_extension(),
                control.extension(),
                tensorflow_serving.extension(),
                self.shared_memory.extension(),
                TraceCalls(lambda: self.fleet.models).extension(),
                LogCalls(self._log_from).extension(),
            )
        )
        """What is answered about the whole node."""

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
        self.directory.create()
        self.directory.lock()
        self._stack.callback(self.directory.unlock)
        try:
            self.joining.check()
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
        """Adopt the edge that runs, or make sure that one can be started."""
        self._stack.callback(os.close, lifeline.hold(self.directory.lifeline))
        record = self.directory.load()
        self._adopted = self.edge.adopt(record.edge if record is not None else None)
        if not self._adopted:
            check_free(self.config.host, self.config.port)
        elif isinstance(record, NodeRecord) and record.repository == self.repository:
            self.fleet.unloaded.update(record.unloaded)
        elif record is not None:
            raise AddressInUse(
                f"port {self.config.port} is taken: an edge that serves {record.serves} runs "
                f"there without a controller; stop it with 'tidegate stop --port "
                f"{self.config.port}', or serve that repository again"
            )

    async def _start(self) -> None:
        api = ControllerApi(self.calls, Unserved(self.fleet, self.unserved).why)
        connections = OpenConnections()
        connections.refuse = api.refuse
        await self._stack.enter_async_context(
            Server(
                self.directory.api_socket,
                api.handle,
                LARGEST,
                room=PREFIX_SIZE,
                connections=connections,
                opener=self.calls.open_stream,
            )
        )
        self.control = await self._stack.enter_async_context(
            ControlServer(self.directory.ads_socket, self._rejected)
        )
        self._quarantine = Quarantine(self._noticeboard.read())
        self.shared_memory.take_over(adopted=self._adopted)
        count = await self.replicas.adopt()
        if self._adopted:
            s = "" if count == 1 else "s"
            self.announce(f"adopted the running edge and {count} replica{s}")
            self._settled = True
        await self._followed.look()
        # Silent until here: an early, incomplete answer would take traffic from what runs.
        await self.control.publish(self._topology(), self._settings)
        await self.edge.start()
        # At once: a controller that is killed now must be able to find it again.
        self._save()
        await self.control.wait_acknowledged()
        self._tasks = [
            asyncio.create_task(self._apply_changes(), name="apply changes"),
            asyncio.create_task(self._followed.follow(), name="watch the repository"),
            asyncio.create_task(self._edge_logs.keep(), name="keep the edge's logs"),
            asyncio.create_task(self.trust.follow(), name="follow the certificates"),
            asyncio.create_task(self.edge.keep(self._edge_is_back), name="keep the edge"),
        ]
        self._changed.set()
        self.joining.start()

    async def _give_up(self) -> None:
        """End what was started in vain; an edge that served before goes on, as its replicas do."""
        if self._adopted:
            return
        await self.edge.kill()
        await self.replicas.end()
        self.directory.remove()

    def hurry(self) -> None:
        """Stop without waiting for the requests that are being run."""
        self._hurry.set()

    async def __aexit__(self, *exc: object) -> None:
        """Leave the gateways, drain the edge, then end the replicas; the logs are left."""
        # First of all: until they know, gateways go on sending calls.
        await self.joining.leave(self._hurry)
        self._draining = True
        self.health.changed()
        # The edge's keeper, too: an edge that it started from now on would be left behind.
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            try:
                with contextlib.suppress(EdgeFailed):
                    await self.control.publish(self._topology(), self._settings, timeout=1.0)
                await self.edge.stop(self._hurry)
            except Exception:
                log.exception("the edge cannot be drained: it is ended at once")
                await self.edge.kill()
            await self.replicas.end()
        finally:
            self.directory.remove()
            await self._stack.aclose()

    def _save(self) -> None:
        self.directory.save(
            NodeRecord(
                repository=self.repository,
                config=self.config,
                edge=self.edge.record(),
                unloaded=tuple(sorted(self.fleet.unloaded)),
            )
        )

    def _retrusted(self) -> None:
        self._settings = replace(self._settings, tls=self.trust.tls)
        self._changed.set()

    def _log_from(self, level: int) -> None:
        self._noticeboard.log_from(level)
        self._changed.set()

    def _edge_is_back(self) -> None:
        # What was to be retired while there was no edge still waits for it.
        self._changed.set()
        self._save()

    def _rejected(self, words: str) -> None:
        self.announce(f"Envoy refused its configuration: {words}")

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
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await waiter

    def apply_soon(self) -> None:
        """Tell the edge anew, whether something has changed or not."""
        self._changed.set()

    def _follow(self) -> None:
        """Start what should run by now."""
        for generation in self.fleet.update(self._followed.found):
            self.replicas.start(generation)
        for generation in self.fleet.generations():
            if generation.desired and not generation.final:
                self.replicas.start(generation)
        self._changed.set()

    async def _apply_changes(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            waiters, self._waiters = self._waiters, []
            try:
                await self._apply()
                for waiter in waiters:
                    if not waiter.done():
                        waiter.set_result(None)
            except Exception as error:
                self._waiters += waiters
                if not isinstance(error, EdgeFailed):
                    log.exception("a change cannot be applied")
                self.announce(f"a change is not in effect yet: {error}")
                asyncio.get_running_loop().call_later(_RETRY_PUBLISH, self._changed.set)

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
        await self.control.publish(topology, self._settings)
        self.edge_ready = topology.ready
        self.joining.changed()
        self.health.changed()
        if not self.edge.serving:
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
