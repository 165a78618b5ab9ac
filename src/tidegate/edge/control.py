"""The server that Envoy gets its configuration from: a thin shell round :mod:`.ads`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2
from envoy.service.load_stats.v3 import lrs_pb2, lrs_pb2_grpc

from tidegate.edge.ads import RUNTIME, Session, Snapshot
from tidegate.edge.gateway_resources import GatewayResources
from tidegate.edge.load_reports import LoadReport, read_report, subscription
from tidegate.edge.names import RUNTIME as RUNTIME_NAME
from tidegate.edge.pools import GatewayTopology
from tidegate.edge.resources import snapshot_of
from tidegate.edge.settings import EdgeSettings
from tidegate.edge.topology import Topology, check_socket_path
from tidegate.errors import EdgeFailed

_UNLIMITED = -1
_STOP_GRACE = 0.5
ACKNOWLEDGE_TIMEOUT = 30.0
"""Seconds in which a connected Envoy acknowledges; it takes milliseconds."""


@dataclass(eq=False, slots=True)
class _Stream:
    session: Session
    outgoing: asyncio.Queue[discovery_pb2.DiscoveryResponse | None] = field(
        default_factory=asyncio.Queue
    )

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
        if isinstance(topology, GatewayTopology):
            self._target = self._gateway.snapshot(topology, settings)
        else:
            self._target = snapshot_of(topology, settings)
        self._published += 1
        for stream in self._streams:
            stream.send(stream.session.set_target(self._target))
        self._note_progress()
        if self._streams:
            await self.wait_acknowledged(timeout)

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
            self._target = Snapshot({**self._target.resources, RUNTIME: {RUNTIME_NAME: runtime}})
            for stream in self._streams:
                stream.send(stream.session.set_target(self._target))
            self._note_progress()
        if self._on_load is not None:
            self._on_load(self._gateway.by_server(report))

    async def _serve(
        self, requests: AsyncIterator[discovery_pb2.DiscoveryRequest]
    ) -> AsyncIterator[discovery_pb2.DiscoveryResponse]:
        stream = _Stream(Session(self._accepted))
        self._streams.append(stream)
        if self._target is not None:
            stream.send(stream.session.set_target(self._target))
        reading = asyncio.create_task(self._read(stream, requests))
        try:
            while (response := await stream.outgoing.get()) is not None:
                yield response
        finally:
            reading.cancel()
            self._streams.remove(stream)
            self._note_progress()

    async def _read(
        self, stream: _Stream, requests: AsyncIterator[discovery_pb2.DiscoveryRequest]
    ) -> None:
        try:
            async for request in requests:
                stream.send(stream.session.on_request(request))
                words = stream.session.take_rejection()
                if words is not None:
                    self._take_back(stream, words)
                self._note_progress()
        finally:
            stream.outgoing.put_nowait(None)

    def _take_back(self, stream: _Stream, words: str) -> None:
        """Go back to what Envoy accepted last, so that one that starts anew gets that."""
        self._on_rejected(words)
        if stream is not self._streams[-1]:
            return
        self._rejected = (self._published, words)
        if self._accepted is None or self._target is self._accepted:
            return
        self._target = self._accepted
        for each in self._streams:
            each.send(each.session.set_target(self._target))

    def _note_progress(self) -> None:
        if (
            self._streams
            and self._streams[-1].session.settled
            and self._rejected[0] < self._published
        ):
            self._acknowledged = self._published
            self._accepted = self._target
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)


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
