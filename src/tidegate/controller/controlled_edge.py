"""The edge of a node or of a gateway, from the claim on its port until it is drained.

The stages, in the order in which a controller goes through them: :meth:`ControlledEdge.claimed`,
:meth:`~ControlledEdge.adopt`, :meth:`~ControlledEdge.listen`, :meth:`~ControlledEdge.start`,
:meth:`~ControlledEdge.keep`; then :meth:`~ControlledEdge.drain` and
:meth:`~ControlledEdge.release`. Between them a controller does what is its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from pathlib import Path
from typing import TypeVar

from tidegate.controller.api import ControllerApi
from tidegate.controller.edge_keeper import EdgeKeeper
from tidegate.controller.edge_logs import EdgeLogs
from tidegate.controller.machine import check_free
from tidegate.controller.run_directory import GatewayRecord, NodeRecord, RunDirectory
from tidegate.controller.server_calls import ServerCalls
from tidegate.edge.control import ControlServer
from tidegate.edge.load_reports import LoadReport
from tidegate.edge.pools import GatewayTopology
from tidegate.edge.settings import EdgeSettings
from tidegate.edge.topology import Topology
from tidegate.errors import AddressInUse, EdgeFailed
from tidegate.protocols.grpc_frames import PREFIX_SIZE
from tidegate.protocols.open_inference.documents import LARGEST
from tidegate.replica import lifeline
from tidegate.replica.exchange import OpenConnections
from tidegate.replica.http import Server
from tidegate.telemetry.logs import LogSettings

log = logging.getLogger(__name__)

_LAST_WORD = 1.0
"""Seconds that an Envoy has to acknowledge that nothing is ready any more."""

_Record = TypeVar("_Record", NodeRecord, GatewayRecord)


class ControlledEdge:
    """One Envoy, its logs, and the sockets on which it finds its controller.

    Args:
        settings: what Envoy is started with.
        directory: where sockets, logs and records lie.
        logs: when the edge's logs are rotated.
        announce: is told, in lines, what happens.
    """

    def __init__(
        self,
        settings: EdgeSettings,
        directory: RunDirectory,
        logs: LogSettings,
        announce: Callable[[str], None],
    ) -> None:
        self.settings = settings
        """What Envoy is told together with the topology; others count when it is told next."""
        self.process = EdgeKeeper(settings, directory, announce)
        self.control: ControlServer
        """What tells Envoy its configuration, once it listens."""
        self.adopted = False
        """Whether this Envoy served before its controller was there."""
        self.hurry = asyncio.Event()
        """Set when the end is not to wait for the requests that are being run."""
        self._directory = directory
        self._announce = announce
        self._logs = EdgeLogs(
            directory.edge_log, directory.access_log, logs, self.process.reopen_logs
        )
        self._tasks: list[asyncio.Task[None]] = []
        self._stack = contextlib.AsyncExitStack()

    @contextlib.asynccontextmanager
    async def claimed(self) -> AsyncIterator[None]:
        """Be the one controller of the port; if the block ends well, until :meth:`release`.

        Raises:
            AddressInUse: another controller lives.
            ConfigurationError: the run directory cannot be used.
        """
        self._directory.create()
        self._directory.lock()
        async with self._stack as stack:
            stack.callback(self._directory.unlock)
            yield
            self._stack = stack.pop_all()

    def adopt(self, kind: type[_Record], serves: Path) -> _Record | None:
        """Adopt the edge that an earlier controller left, or make sure that one can be started.

        Args:
            kind: what a controller of this kind records.
            serves: what is to be served.

        Returns:
            What the earlier controller recorded, if its edge is adopted.

        Raises:
            AddressInUse: somebody else has the port, or an edge that serves something else.
        """
        self._stack.callback(os.close, lifeline.hold(self._directory.lifeline))
        record = self._directory.load()
        self.adopted = self.process.adopt(None if record is None else record.edge)
        if record is None or not self.adopted:
            check_free(self.settings.host, self.settings.port)
            return None
        if not isinstance(record, kind) or record.serves != serves:
            port = self.settings.port
            raise AddressInUse(
                f"port {port} is taken: an edge that serves {record.serves} runs there without a "
                f"controller; stop it with 'tidegate stop --port {port}', or serve that again"
            )
        return record

    async def listen(
        self,
        calls: ServerCalls,
        why: Callable[[str, bool], Exception],
        on_load: Callable[[LoadReport], None] | None = None,
    ) -> None:
        """Listen on the sockets that Envoy knows; nothing is told to it yet.

        Args:
            calls: what is answered about the whole server.
            why: says why a call for a model is not served (see :class:`ControllerApi`).
            on_load: takes Envoy's reports of what became of the calls.

        Raises:
            EdgeFailed: a socket cannot be made.
        """
        api = ControllerApi(calls, why)
        connections = OpenConnections()
        connections.refuse = api.refuse
        await self._stack.enter_async_context(
            Server(
                self._directory.api_socket,
                api.handle,
                LARGEST,
                room=PREFIX_SIZE,
                connections=connections,
                opener=calls.open_stream,
            )
        )
        self.control = await self._stack.enter_async_context(
            ControlServer(self._directory.ads_socket, self._rejected, on_load)
        )

    async def start(self, topology: Topology | GatewayTopology, save: Callable[[], None]) -> None:
        """Have an Envoy run that serves ``topology``; return when it does.

        An adopted one is not told anything before: an early, incomplete answer would take traffic
        from what runs.

        Args:
            topology: what is to be served.
            save: records the edge.

        Raises:
            EdgeFailed: Envoy cannot be started, or refuses its configuration.
        """
        await self.publish(topology)
        await self.process.start()
        # At once: a controller that is killed now must be able to find it again.
        save()
        await self.control.wait_acknowledged()

    async def publish(self, topology: Topology | GatewayTopology) -> None:
        """Tell Envoy, as :meth:`ControlServer.publish` does.

        Raises:
            EdgeFailed: it refused that, or did not acknowledge it in time.
        """
        await self.control.publish(topology, self.settings)

    def keep(
        self, on_change: Callable[[], None], tasks: Mapping[str, Coroutine[None, None, None]]
    ) -> None:
        """Keep Envoy running and its logs small, and run ``tasks`` by their names, until drained.

        ``on_change`` is called when there is a new Envoy.
        """
        own = {
            "keep the edge's logs": self._logs.keep(),
            "keep the edge": self.process.keep(on_change),
        }
        self._tasks = [
            asyncio.create_task(task, name=name) for name, task in {**tasks, **own}.items()
        ]

    async def drain(self, topology: Callable[[], Topology | GatewayTopology]) -> None:
        """End the tasks, tell Envoy ``topology``, in which nothing is ready, and end Envoy."""
        # The edge's keeper, too: an edge that it started from now on would be left behind.
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            with contextlib.suppress(EdgeFailed):
                await self.control.publish(topology(), self.settings, timeout=_LAST_WORD)
            await self.process.stop(self.hurry)
        except Exception:
            log.exception("the edge cannot be drained: it is ended at once")
            await self.process.kill()

    async def release(self) -> None:
        """Remove what the run directory holds, but for the logs, and leave the port to others."""
        self._directory.remove()
        await self._stack.aclose()

    def _rejected(self, words: str) -> None:
        self._announce(f"Envoy refused its configuration: {words}")
