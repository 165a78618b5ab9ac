"""The server that Envoy gets its configuration from: a thin shell round :mod:`.ads`."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2
from envoy.service.load_stats.v3 import lrs_pb2, lrs_pb2_grpc

from tidegate.edge.admin import AdminClient
from tidegate.edge.ads import RUNTIME, Session, Snapshot
from tidegate.edge.gateway_resources import GatewayResources
from tidegate.edge.load_reports import LoadReport, read_report, subscription
from tidegate.edge.names import ADMIN_SOCKET
from tidegate.edge.names import RUNTIME as RUNTIME_NAME
from tidegate.edge.pools import GatewayTopology
from tidegate.edge.resources import snapshot_of
from tidegate.edge.settings import EdgeSettings
from tidegate.edge.topology import Topology, check_socket_path
from tidegate.errors import EdgeFailed

_UNLIMITED = -1
_STOP_GRACE = 0.5
_WARMING = "cluster_manager.warming_clusters"
_WARM_POLL = 0.03
_WARM_TIMEOUT = 15.0
"""Seconds; every server answers a check of its health, or fails to, in less."""
ACKNOWLEDGE_TIMEOUT = 30.0
"""Seconds in which a connected Envoy acknowledges; it takes milliseconds."""


@dataclass(eq=False, slots=True)
class _Stream:
    session: Session
    admin: AdminClient | None
    """Of an Envoy whose clusters warm longer than it takes to tell it their endpoints."""
    outgoing: asyncio.Queue[discovery_pb2.DiscoveryResponse | None] = field(
        default_factory=asyncio.Queue
    )
    watch: asyncio.Task[None] | None = None
    """Waits until its clusters are warm."""

    def send(self, responses: list[discovery_pb2.DiscoveryResponse]) -> None:
        for response in responses:
            self.outgoing.put_nowait(response)


class ControlServer:
    """Serves the configuration on a Unix socket, in ``async with``.

    Until the first :meth:`publish` it is silent, and an Envoy that serves goes on as it is.

    Args:
        socket: the path to listen on; a socket that lies there is replaced.
        on_rejected: called with Envoy's own words whenever it refuses something.
        on_load: called with each report of what became of the calls, which an Envoy sends whose
            settings have ``load_reports``; addresses are those of the servers.
    """

    def __init__(
        self,
        socket: Path,
        on_rejected: Callable[[str], None],
        on_load: Callable[[LoadReport], None] | None = None,
    ) -> None:
        self._socket = socket
        self._on_rejected = on_rejected
        self._on_load = on_load
        self._gateway = GatewayResources()
        self._timer: asyncio.TimerHandle | None = None
        self._reporting: list[object] = []
        self._server: grpc.aio.Server | None = None
        # The last one is the Envoy that matters: during a hot restart the other is on its way out.
        self._streams: list[_Stream] = []
        self._target: Snapshot | None = None
        self._accepted: Snapshot | None = None
        self._published = 0
        self._acknowledged = 0
        self._rejected: tuple[int, str] = (0, "")
        self._waiters: set[asyncio.Future[None]] = set()

    async def __aenter__(self) -> ControlServer:
        try:
            check_socket_path(str(self._socket))
        except ValueError as error:
            raise EdgeFailed(str(error)) from None
        if self._socket.is_socket():
            self._socket.unlink()
        self._server = grpc.aio.server(
            options=[("grpc.max_receive_message_length", _UNLIMITED), ("grpc.so_reuseport", 0)]
        )
        ads_pb2_grpc.add_AggregatedDiscoveryServiceServicer_to_server(
            _Servicer(self._serve), self._server
        )
        lrs_pb2_grpc.add_LoadReportingServiceServicer_to_server(
            _LoadServicer(self._take_reports), self._server
        )
        try:
            self._server.add_insecure_port(f"unix:{self._socket}")
        except RuntimeError as error:
            raise EdgeFailed(
                f"cannot listen on {self._socket}: {error}. Is the run directory writable?"
            ) from error
        await self._server.start()
        self._socket.chmod(0o600)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._server is not None:
            # Streams that end by themselves are no errors in grpc's log, as cancelled ones are.
            for stream in self._streams:
                stream.outgoing.put_nowait(None)
            await self._server.stop(_STOP_GRACE)
            self._server = None
        self._socket.unlink(missing_ok=True)

    @property
    def connected(self) -> bool:
        """Whether an Envoy is connected."""
        return bool(self._streams)

    @property
    def generation(self) -> int:
        """How many times a configuration was published."""
        return self._published

    @property
    def rejected(self) -> bool:
        """Whether Envoy refused what was published last."""
        return 0 < self._published <= self._rejected[0]

    async def publish(
        self,
        topology: Topology | GatewayTopology,
        settings: EdgeSettings,
        timeout: float | None = ACKNOWLEDGE_TIMEOUT,
    ) -> None:
        """Make ``topology`` what Envoy serves; return when it does and new clusters are warm.

        With no Envoy connected it returns at once, and the next one that connects is told; see
        :meth:`wait_acknowledged`. A later call replaces an earlier one that still waits.

        Raises:
            EdgeFailed: Envoy refused it (its words are in the message, and it goes on with what
                it had), or did not acknowledge it in time.
        """
        self._published += 1
        if isinstance(topology, GatewayTopology):
            self._aim_at_gateway(topology, settings)
        else:
            self._aim_at(snapshot_of(topology, settings))
        if self._streams:
            await self.wait_acknowledged(timeout)

    def _aim_at_gateway(self, topology: GatewayTopology, settings: EdgeSettings) -> None:
        if self._timer is not None:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        self._aim_at(self._gateway.snapshot(topology, settings, loop.time()))
        if self._gateway.next_change < math.inf:
            self._timer = loop.call_at(
                self._gateway.next_change, self._aim_at_gateway, topology, settings
            )

    def _aim_at(self, target: Snapshot) -> None:
        self._target = target
        for stream in self._streams:
            stream.send(stream.session.set_target(target))
        self._note_progress()

    async def wait_acknowledged(self, timeout: float | None = ACKNOWLEDGE_TIMEOUT) -> None:
        """Wait until an Envoy serves what was published last, or something newer.

        Raises:
            EdgeFailed: it was refused, or was not acknowledged in ``timeout`` seconds.
        """
        serial = self._published
        try:
            async with asyncio.timeout(timeout):
                while self._acknowledged < serial:
                    if self._rejected[0] >= serial:
                        raise EdgeFailed(f"Envoy refused its configuration: {self._rejected[1]}")
                    await self._next_change()
        except TimeoutError:
            state = "is connected but" if self._streams else "has not connected and"
            raise EdgeFailed(
                f"Envoy {state} has not acknowledged its configuration in {timeout:g} s; "
                "its log in the run directory may say why"
            ) from None

    async def _next_change(self) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)

    async def _take_reports(
        self, reports: AsyncIterator[lrs_pb2.LoadStatsRequest]
    ) -> AsyncIterator[lrs_pb2.LoadStatsResponse]:
        """Ask for reports and hand them on; those of an Envoy that is on its way out are not."""
        stream = object()
        self._reporting.append(stream)
        try:
            async for request in reports:
                if not request.cluster_stats:
                    yield subscription()
                elif stream is self._reporting[-1]:
                    self._take_report(read_report(request))
        finally:
            self._reporting.remove(stream)

    def _take_report(self, report: LoadReport) -> None:
        runtime = self._gateway.observe(report)
        if runtime is not None and self._target is not None:
            self._aim_at(Snapshot({**self._target.resources, RUNTIME: {RUNTIME_NAME: runtime}}))
        if self._on_load is not None:
            self._on_load(self._gateway.by_server(report))

    async def _serve(
        self, requests: AsyncIterator[discovery_pb2.DiscoveryRequest]
    ) -> AsyncIterator[discovery_pb2.DiscoveryResponse]:
        first = await anext(aiter(requests), None)
        if first is None:
            return
        admin = _admin_of(first)
        stream = _Stream(Session(self._accepted, watched=admin is not None), admin)
        self._streams.append(stream)
        if self._target is not None:
            stream.send(stream.session.set_target(self._target))
        self._take(stream, first)
        reading = asyncio.create_task(self._read(stream, requests))
        try:
            while (response := await stream.outgoing.get()) is not None:
                yield response
        finally:
            reading.cancel()
            if stream.watch is not None:
                stream.watch.cancel()
            self._streams.remove(stream)
            self._note_progress()

    async def _read(
        self, stream: _Stream, requests: AsyncIterator[discovery_pb2.DiscoveryRequest]
    ) -> None:
        try:
            async for request in requests:
                self._take(stream, request)
        finally:
            stream.outgoing.put_nowait(None)

    def _take(self, stream: _Stream, request: discovery_pb2.DiscoveryRequest) -> None:
        stream.send(stream.session.on_request(request))
        words = stream.session.take_rejection()
        if words is not None:
            self._take_back(stream, words)
        self._note_progress()

    async def _until_warm(self, stream: _Stream, admin: AdminClient) -> None:
        """Tell a session when its clusters are warm; there is no event for that."""
        began = asyncio.get_running_loop().time()
        while (warming := stream.session.warming) is not None:
            try:
                warm = not await admin.gauge(_WARMING)
            except EdgeFailed:
                warm = True  # then it must do without
            late = asyncio.get_running_loop().time() - began > _WARM_TIMEOUT
            if warm or late:
                stream.send(stream.session.note_warm(warming))
                self._note_progress()
            else:
                await asyncio.sleep(_WARM_POLL)

    def _take_back(self, stream: _Stream, words: str) -> None:
        """Go back to what Envoy accepted last, so that one that starts anew gets that."""
        self._on_rejected(words)
        if stream is not self._streams[-1]:
            return
        self._rejected = (self._published, words)
        if self._accepted is None or self._target is self._accepted:
            return
        self._aim_at(self._accepted)

    def _note_progress(self) -> None:
        if (
            self._streams
            and self._streams[-1].session.settled
            and self._rejected[0] < self._published
        ):
            self._acknowledged = self._published
            self._accepted = self._target
        for stream in self._streams:
            watched = stream.watch is not None and not stream.watch.done()
            if stream.admin is not None and not watched and stream.session.warming is not None:
                stream.watch = asyncio.create_task(self._until_warm(stream, stream.admin))
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)


def _admin_of(first: discovery_pb2.DiscoveryRequest) -> AdminClient | None:
    """Read what Envoy tells of itself in the first request of a stream."""
    told = first.node.metadata.fields
    return AdminClient(Path(told[ADMIN_SOCKET].string_value)) if ADMIN_SOCKET in told else None


class _Servicer(ads_pb2_grpc.AggregatedDiscoveryServiceServicer):  # type: ignore[misc]
    """The name by which gRPC calls :meth:`ControlServer._serve`."""

    def __init__(
        self,
        serve: Callable[
            [AsyncIterator[discovery_pb2.DiscoveryRequest]],
            AsyncIterator[discovery_pb2.DiscoveryResponse],
        ],
    ) -> None:
        self._serve = serve

    async def StreamAggregatedResources(  # noqa: N802 - the protocol's name
        self, request_iterator: AsyncIterator[discovery_pb2.DiscoveryRequest], context: Any
    ) -> AsyncIterator[discovery_pb2.DiscoveryResponse]:
        async for response in self._serve(request_iterator):
            yield response


class _LoadServicer(lrs_pb2_grpc.LoadReportingServiceServicer):  # type: ignore[misc]
    """The name by which gRPC calls :meth:`ControlServer._take_reports`."""

    def __init__(
        self,
        serve: Callable[
            [AsyncIterator[lrs_pb2.LoadStatsRequest]], AsyncIterator[lrs_pb2.LoadStatsResponse]
        ],
    ) -> None:
        self._serve = serve

    async def StreamLoadStats(  # noqa: N802 - the protocol's name
        self, request_iterator: AsyncIterator[lrs_pb2.LoadStatsRequest], context: Any
    ) -> AsyncIterator[lrs_pb2.LoadStatsResponse]:
        async for response in self._serve(request_iterator):
            yield response
