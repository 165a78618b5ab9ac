"""Keeps one replica of a generation running: starts it, watches it, starts it again."""

from __future__ import annotations

import asyncio
import itertools
import logging
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tidegate.clock import Clock
from tidegate.config.node import NodeConfig
from tidegate.controller.back_off import BackOff
from tidegate.controller.machine import available_memory, size_on_disk, usable_cores
from tidegate.controller.run_directory import RunDirectory, log_settings
from tidegate.errors import ConfigurationError
from tidegate.node.fleet import Generation, Replica, ReplicaState
from tidegate.node.launcher import Launcher, ReplicaProcess, log_tail
from tidegate.replica.spec import Failed, Ready, ReplicaSpec

log = logging.getLogger(__name__)

_KILL_AFTER = 5.0
_RETRY = 2.0


@dataclass(slots=True)
class Surroundings:
    """What all keepers of a node share."""

    directory: RunDirectory
    config: NodeConfig
    launcher: Launcher
    clock: Clock
    loads: asyncio.Semaphore
    """One for each model that may be loading."""
    ids: itertools.count[int]
    changed: Callable[[], None]
    """Called after the state of a replica has changed."""
    announce: Callable[[str], None]
    """Tells the operator, in a line."""
    crashed: Callable[[ReplicaSpec], None]
    """Called when a replica has died by itself."""
    ended: Callable[[ReplicaSpec], None]
    """Called when a replica's process has ended, however it did."""
    replica_count: Callable[[], int]
    """How many replicas the machine's cores are shared by."""


class Keeper:
    """Keeps one replica; one task does that until :meth:`end`."""

    def __init__(self, around: Surroundings, generation: Generation, index: int) -> None:
        self._around = around
        self._generation = generation
        self._index = index
        self._process: ReplicaProcess | None = None
        self._back_off = BackOff()
        self._last_flight: Path | None = None
        """The recorder of a process that died, until there is a new process."""
        self._ending = False
        self._task: asyncio.Task[None] | None = None

    @property
    def generation(self) -> Generation:
        """Whose replica it keeps."""
        return self._generation

    @property
    def _replica(self) -> Replica:
        return self._generation.replicas[self._index]

    def start(self) -> None:
        """Begin with a new process."""
        self._generation.replicas[self._index] = Replica(self._index)
        self._task = asyncio.create_task(self._keep_on(), name=f"keeper of {self._named()}")

    def adopt(self, process: ReplicaProcess) -> None:
        """Begin with a process that is ready."""
        self._process = process
        self._task = asyncio.create_task(self._keep_on(), name=f"keeper of {self._named()}")

    async def end(self) -> None:
        """Let the replica drain and end; it is not started again."""
        self._ending = True
        self._replica.state = ReplicaState.DRAINING
        if self._process is not None:
            await self._process.end(self._around.config.drain_timeout + _KILL_AFTER)
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._clean()
        self._forget_flight()

    def _named(self) -> str:
        return f"{self._generation.model}:{self._generation.version}#{self._index}"

    async def _keep_on(self) -> None:
        """Keep the replica, whatever goes wrong: files that vanish, a system without room."""
        while True:
            try:
                await self._keep()
                return
            except Exception as error:
                log.exception("%s cannot be kept", self._named())
                await self._go_back(f"cannot be run: {type(error).__name__}: {error}")
            await asyncio.sleep(_RETRY)

    async def _go_back(self, reason: str) -> None:
        """Be where there is no process, unless it is ready."""
        replica = self._replica
        if self._process is not None:
            if replica.state is ReplicaState.READY:
                return
            await self._process.end(_KILL_AFTER)
            self._process = None
        replica.ready = replica.pid = None
        replica.state = ReplicaState.BACKING_OFF
        self._generation.failure = reason
        self._around.announce(f"{self._named()} {reason}; it is tried again")
        self._around.changed()

    async def _keep(self) -> None:
        around = self._around
        while True:
            if self._process is None and not await self._launch():
                return
            ready_at = around.clock.now()
            process = self._process
            if process is not None:
                status = await process.wait()
                if self._ending:
                    return
                self._process = None
                self._died(status)
            served = around.clock.now() - ready_at if self._replica.ready is not None else 0.0
            self._replica.ready = None
            delay = self._back_off.crashed(served)
            self._replica.restarts += 1
            self._replica.state = ReplicaState.BACKING_OFF
            around.changed()
            if delay:
                around.announce(f"{self._named()} starts again in {delay:g} s")
            await asyncio.sleep(delay)

    async def _launch(self) -> bool:
        """Start a process and wait until it is ready; say whether to go on keeping it.

        Afterwards there is a ready process, or none: then it is to be tried again.
        """
        around, generation = self._around, self._generation
        async with around.loads:
            if self._ending:
                return False
            refusal = await asyncio.to_thread(self._does_not_fit)
            if refusal is not None:
                return self._failed(refusal)
            self._replica.state = ReplicaState.STARTING
            spec = self._spec()
            elsewhere = spec.config.interpreter
            where = "" if elsewhere is None else f" by {elsewhere}"
            around.announce(f"{self._named()} loading ({spec.runtime}{where})")
            file = spec.socket.with_suffix(".json")
            try:
                self._process = await around.launcher.launch(spec, file, self._log())
            except ConfigurationError as error:
                return self._failed(str(error))
            self._replica.spec, self._replica.pid = spec, self._process.pid
            try:
                event = await self._process.started(around.config.start_timeout)
            except TimeoutError:
                await self._process.end(_KILL_AFTER)
                self._process = None
                self._clean()
                return self._failed(
                    f"was not ready within {around.config.start_timeout:g} s (start_timeout)"
                )
            # One that failed has given back its memory before the next one loads.
            status = None if isinstance(event, Ready) else await self._process.wait()
        if isinstance(event, Ready):
            self._became_ready(event)
            return True
        self._process = None
        if isinstance(event, Failed):
            self._clean()
            return self._failed(event.reason)
        self._died(status)
        if status == -signal.SIGKILL and not generation.live:
            return self._failed(
                "was killed by the system while it was loading: most likely it does not fit in "
                f"memory; {available_memory() >> 20} MiB are available"
            )
        return True

    def _became_ready(self, event: Ready) -> None:
        generation = self._generation
        self._replica.ready = event
        self._replica.state = ReplicaState.READY
        self._forget_flight()
        generation.failure = None
        batches = f"batches of up to {event.max_batch_size}" if event.batching else "no batching"
        self._around.announce(
            f"{self._named()} ready in {event.seconds:.1f} s on {event.device}, {batches}"
        )
        self._around.changed()

    def _failed(self, reason: str) -> bool:
        """Note why the model cannot be loaded; say whether to try again."""
        generation = self._generation
        generation.failure = reason
        self._around.announce(f"{self._named()} failed: {reason}")
        if generation.live:
            return True  # it worked before: what is wrong may pass
        generation.final = True
        self._replica.state = ReplicaState.FAILED
        self._around.changed()
        return False

    def _died(self, status: int | None) -> None:
        how = "ended" if status is None else f"ended with status {status}"
        if status is not None and status < 0:
            how = f"was killed by {signal.Signals(-status).name}"
        self._around.announce(f"{self._named()} {how}")
        spec = self._replica.spec
        if spec is not None:
            self._around.crashed(spec)
            # The other replicas read what it was running when its requests come to them.
            self._forget_flight()
            self._last_flight = spec.flight
        self._clean()
        if self._back_off.looping:
            self._generation.failure = (
                f"it crashes again and again: {how}; the last lines of its log: "
                f"{log_tail(self._log())}"
            )

    def _clean(self) -> None:
        """Forget the process that has ended, and remove its files."""
        self._replica.pid = None
        spec = self._replica.spec
        if spec is not None:
            self._around.ended(spec)
            own = spec.socket, spec.socket.with_suffix(".json"), spec.flight, spec.last_words
            for file in own:
                if file != self._last_flight:
                    file.unlink(missing_ok=True)

    def _forget_flight(self) -> None:
        if self._last_flight is not None:
            self._last_flight.unlink(missing_ok=True)
            self._last_flight = None

    def _does_not_fit(self) -> str | None:
        needed = size_on_disk(self._generation.entry.path)
        available = available_memory()
        if needed <= available:
            return None
        return (
            f"does not fit in memory: its files have {needed >> 20} MiB and "
            f"{available >> 20} MiB are available"
        )

    def _log(self) -> Path:
        generation = self._generation
        directory = self._around.directory
        return directory.replica_log(generation.model, generation.version, self._index)

    def _spec(self) -> ReplicaSpec:
        around, generation = self._around, self._generation
        number = next(around.ids)
        config = generation.config
        shared = around.config.shared_memory_prefix
        share = config.resources.cpu or usable_cores() / max(1, around.replica_count())
        return ReplicaSpec(
            id=number,
            index=self._index,
            fingerprint=generation.entry.fingerprint,
            model=generation.model,
            version=generation.version,
            path=generation.entry.path,
            folder=generation.entry.folder,
            runtime=generation.entry.runtime,
            config=config,
            socket=around.directory.replicas / f"{number}.sock",
            lifeline=around.directory.lifeline,
            notices=around.directory.notices,
            regions=None if shared is None else around.directory.regions,
            threads=config.resources.threads or max(1, round(share)),
            max_message_size=around.config.max_message_size,
            drain_timeout=around.config.drain_timeout,
            idle_timeout=around.config.idle_timeout,
            log=self._log(),
            log_settings=log_settings(around.config),
            otlp_endpoint=around.config.otlp_endpoint,
        )
