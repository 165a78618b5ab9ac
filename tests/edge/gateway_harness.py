"""One gateway's edge with fake servers on ports, and what is reported of them."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc

from tests.edge.fake_server import FakeServer
from tests.edge.harness import Edge, channel, edge_settings, until
from tests.ports import free_port
from tidegate.edge.control import ControlServer
from tidegate.edge.load_reports import EndpointLoad, LoadReport
from tidegate.edge.pools import GatewayTopology, Pool, RoutedModel, Server, Servers, TrafficPolicy
from tidegate.edge.process import EnvoyProcess
from tidegate.protocols.registry import GATEWAY_ROUTINGS


class ServerProcess:
    """A fake server that can be killed and stopped."""

    def __init__(self, process: asyncio.subprocess.Process, name: str, address: str) -> None:
        self.process, self.name, self.address = process, name, address

    @classmethod
    async def start(cls, name: str, port: int = 0, host: str = "127.0.0.1") -> ServerProcess:
        """Start one, on a port that stays free for another after it has been killed."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.edge.fake_server", str(port or free_port()), name, host,
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        return cls(process, name, (await process.stdout.readline()).decode().strip())

    async def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        # Reads to the end, so that no pipe is left to the next test.
        await self.process.communicate()

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def release(self) -> None:
        """Let it answer the calls that it holds."""
        self.process.send_signal(signal.SIGUSR1)


class Gateway(Edge):
    """An edge whose topology is a gateway's: the model ``m`` and its pool, unless told more."""

    def __init__(self, run_dir: Path, **settings: Any) -> None:
        changes = {"gateway": True, "load_reports": True, "routings": GATEWAY_ROUTINGS}
        super().__init__(run_dir, edge_settings(run_dir, **{**changes, **settings}))
        self.servers: dict[str, FakeServer] = {}
        self.reports: list[LoadReport] = []
        self.report_event = asyncio.Event()
        self.models: dict[str, RoutedModel] = {}

    async def __aenter__(self) -> Gateway:
        self.control = self.new_control()
        await self.control.__aenter__()
        self.envoy = await EnvoyProcess.start(self.run_dir, self.settings)
        self.channel = await self.stack.enter_async_context(channel(self.port))
        return self

    def new_control(self) -> ControlServer:
        """A control server as a controller has it that starts."""
        return ControlServer(self.run_dir / "ads.sock", self.rejections.append, self._on_load)

    def _on_load(self, report: LoadReport) -> None:
        self.reports.append(report)
        self.report_event.set()

    async def server(self, name: str, **options: Any) -> FakeServer:
        server = FakeServer(name, **options)
        await self.stack.enter_async_context(server)
        self.servers[name] = server
        return server

    def topology(self) -> GatewayTopology:  # type: ignore[override]
        return GatewayTopology(self.models, self.ready, self.metadata)

    async def route(self, *servers: Server, model: str = "m", **traffic: Any) -> None:
        """Serve a model from ``servers``."""
        self.models[model] = RoutedModel(
            model, Pool(model, Servers(servers)), TrafficPolicy(**traffic)
        )
        await self.publish()

    async def serve_from(self, *names: str, **traffic: Any) -> None:
        """Serve ``m`` from fake servers: ``a``, or ``a=300`` for its weight."""
        servers = []
        for text in names:
            name, _, weight = text.partition("=")
            fake = self.servers.get(name) or await self.server(name)
            servers.append(Server(fake.address, weight=int(weight or 100)))
        await self.route(*servers, **traffic)

    async def answers(self) -> bool:
        """Whether a call is answered."""
        try:
            await self.call()
        except grpc.aio.AioRpcError:
            return False
        return True

    async def is_answered_by(self, name: str) -> bool:
        """Whether a call is answered, and by this one."""
        try:
            return bool((await self.call())["replica"] == name)
        except grpc.aio.AioRpcError:
            return False

    async def shares(self, count: int) -> Counter[str]:
        """Call so many times, one after the other; return who answered."""
        return Counter([(await self.call())["replica"] for _ in range(count)])

    def total(self, cluster: str = "pool/m") -> dict[str, EndpointLoad]:
        """Add up all reports so far; ``in_flight`` and ``utilization`` are the last ones."""
        found: dict[str, EndpointLoad] = {}
        for report in self.reports:
            for address, load in report.clusters.get(cluster, {}).items():
                before = found.get(address, EndpointLoad(0, 0, 0, 0))
                found[address] = replace(
                    load,
                    succeeded=before.succeeded + load.succeeded,
                    failed=before.failed + load.failed,
                    issued=before.issued + load.issued,
                )
        return found

    async def reported(self, condition: Callable[[], bool]) -> None:
        """Wait until the reports say so."""
        async with asyncio.timeout(60):
            while not condition():
                self.report_event.clear()
                await self.report_event.wait()

    async def warm(self, cluster: str = "pool/m") -> None:
        """Wait until Envoy counts the calls of a cluster: it leaves out the first moment."""

        async def seen() -> bool:
            await self.call()
            return bool(self.total(cluster))

        await until(seen)

        def quiet() -> bool:
            return bool(self.reports) and cluster not in self.reports[-1].clusters

        await self.reported(quiet)
        self.reports.clear()


@contextlib.asynccontextmanager
async def processes(names: Iterable[str]) -> AsyncIterator[list[ServerProcess]]:
    started = [await ServerProcess.start(name) for name in names]
    try:
        yield started
    finally:
        for each in started:
            await each.kill()


@contextlib.asynccontextmanager
async def mute_server() -> AsyncIterator[str]:
    """A server that accepts and never answers; yields its address."""
    writers: list[asyncio.StreamWriter] = []

    async def say_nothing(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)

    async with await asyncio.start_server(say_nothing, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        try:
            yield f"{host}:{port}"
        finally:
            for writer in writers:
                writer.transport.abort()
