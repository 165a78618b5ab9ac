"""One edge with fake replicas, and the clients that call it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import httptools

from tests.edge.fake_replica import FakeReplica
from tests.ports import free_port
from tidegate.edge.control import ControlServer
from tidegate.edge.process import EnvoyProcess
from tidegate.edge.settings import EdgeSettings
from tidegate.edge.topology import Endpoint, Topology
from tidegate.protocols import open_inference

INFER = open_inference.MODEL_INFER
MIB = 2**20


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def string(number: int, value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def message(model: str = "m", version: str = "", payload: int = 0) -> bytes:
    """A ModelInferRequest: name, version and raw_input_contents."""
    out = string(1, model)
    if version:
        out += string(2, version)
    if payload:
        out += string(7, bytes(payload))
    return out


@dataclass
class Answer:
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class _Parser:
    def __init__(self) -> None:
        self.answer = Answer()
        self.done = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self.answer.headers[name.decode().lower()] = value.decode()

    def on_body(self, body: bytes) -> None:
        self.answer.body += body

    def on_message_complete(self) -> None:
        self.done = True


class Rest:
    """A keep-alive HTTP/1.1 client that sends what it is told, right or wrong."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.writer: asyncio.StreamWriter | None = None

    async def open(self) -> None:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)

    async def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
            with contextlib.suppress(OSError):
                await self.writer.wait_closed()
            self.writer = None

    async def send(self, data: bytes) -> None:
        if self.writer is None:
            await self.open()
        assert self.writer is not None
        self.writer.write(data)
        with contextlib.suppress(ConnectionError):
            await self.writer.drain()

    async def receive(self) -> Answer:
        parser = _Parser()
        http = httptools.HttpResponseParser(parser)
        while not parser.done:
            data = await self.reader.read(MIB)
            if not data:
                raise ConnectionError("closed before the end of an answer")
            http.feed_data(data)
        parser.answer.status = http.get_status_code()
        if parser.answer.headers.get("connection") == "close":
            await self.close()
        return parser.answer

    async def call(self, method: str, path: str, body: bytes = b"", **headers: str) -> Answer:
        lines = [f"{method} {path} HTTP/1.1", "host: test"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        if body or method == "POST":
            lines.append(f"content-length: {len(body)}")
        await self.send("\r\n".join([*lines, "", ""]).encode() + body)
        return await self.receive()


async def rest(port: int, method: str, path: str, body: bytes = b"", **headers: str) -> Answer:
    client = Rest(port)
    try:
        return await client.call(method, path, body, **headers)
    finally:
        await client.close()


def channel(port: int, **options: Any) -> grpc.aio.Channel:
    defaults = {
        "grpc.max_send_message_length": -1,
        "grpc.max_receive_message_length": -1,
        "grpc.use_local_subchannel_pool": 1,
        "grpc.enable_retries": 0,
    }
    return grpc.aio.insecure_channel(
        f"127.0.0.1:{port}", options=list({**defaults, **options}.items())
    )


async def call(
    channel: grpc.aio.Channel,
    request: bytes,
    method: str = INFER,
    timeout: float | None = 60,
    compression: grpc.Compression | None = None,
    **metadata: str,
) -> Any:
    """Return what the fake replica says it got; its bytes if that is not JSON."""
    response = await channel.unary_unary(method)(
        request,
        timeout=timeout,
        compression=compression,
        metadata=[(k.replace("_", "-"), v) for k, v in metadata.items()],
    )
    return json.loads(response) if response[:1] == b"{" else response


async def failure(awaitable: Awaitable[Any]) -> tuple[grpc.StatusCode, str]:
    try:
        await awaitable
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details() or ""
    raise AssertionError("the call was answered")


async def until(condition: Callable[[], Awaitable[bool]], timeout: float = 60) -> None:
    """Wait until ``condition`` holds."""
    async with asyncio.timeout(timeout):
        while not await condition():  # noqa: ASYNC110 - the condition is in another process
            await asyncio.sleep(0.02)


class Edge:
    """A control server, an Envoy and replicas in one short directory."""

    def __init__(self, run_dir: Path, settings: EdgeSettings) -> None:
        self.run_dir = run_dir
        self.settings = settings
        self.rejections: list[str] = []
        self.replicas: dict[str, FakeReplica] = {}
        self.clusters: dict[str, tuple[Endpoint, ...]] = {}
        self.ready = True
        self.metadata = b'{"name":"tidegate"}'
        self.sole: str | None = None
        """Whose calls go unread, while it is served."""
        self.tasks: dict[str, str] = {}
        self.stack = contextlib.AsyncExitStack()

    @property
    def port(self) -> int:
        return self.settings.port

    async def __aenter__(self) -> Edge:
        self.control = ControlServer(self.run_dir / "ads.sock", self.rejections.append)
        await self.control.__aenter__()
        self.envoy = await EnvoyProcess.start(self.run_dir, self.settings)
        self.channel = await self.stack.enter_async_context(channel(self.port))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.envoy.kill()
        await self.control.__aexit__(None, None, None)
        await self.stack.aclose()

    async def replica(self, name: str, idle_timeout: float = 60.0) -> FakeReplica:
        (self.run_dir / f"{name}.sock").unlink(missing_ok=True)
        fake = FakeReplica(str(self.run_dir / f"{name}.sock"), name, idle_timeout)
        await self.stack.enter_async_context(fake)
        self.replicas[name] = fake
        return fake

    async def serve(self, **models: str) -> None:
        """Publish models, each with its replicas' names: ``m="a b"``; ``__`` stands for ``:``."""
        self.clusters = {}
        for key, names in models.items():
            endpoints = []
            for name in names.split():
                name, _, weight = name.partition("=")
                if name not in self.replicas:
                    await self.replica(name)
                endpoints.append(Endpoint(self.replicas[name].socket, int(weight or 100)))
            self.clusters[key.replace("__", ":")] = tuple(endpoints)
        await self.publish()

    def topology(self) -> Topology:
        sole = self.sole if self.sole in self.clusters else None
        tasks = {task: model for task, model in self.tasks.items() if model in self.clusters}
        return Topology(self.clusters, self.ready, self.metadata, sole, tasks)

    async def publish(self) -> None:
        await self.control.publish(self.topology(), self.settings)
        await self.control.wait_acknowledged()

    def change(self, **changes: Any) -> None:
        self.settings = replace(self.settings, **changes)

    async def call(self, request: bytes | None = None, **options: Any) -> Any:
        return await call(self.channel, message() if request is None else request, **options)

    async def failure(self, request: bytes | None = None, **options: Any) -> tuple[str, str]:
        code, words = await failure(self.call(request, **options))
        return code.name, words

    async def rest(self, method: str, path: str, body: bytes = b"", **headers: str) -> Answer:
        return await rest(self.port, method, path, body, **headers)


@dataclass
class Load:
    """Calls in flight from ``start`` to ``stop``; what failed is kept with its reason."""

    edge: Edge
    width: int = 16
    done: int = 0
    errors: list[str] = field(default_factory=list)
    stopping: bool = False
    headers: dict[str, str] = field(default_factory=dict)

    async def _run(self, channel: grpc.aio.Channel) -> None:
        while not self.stopping:
            try:
                await call(channel, message(payload=64), **self.headers)  # type: ignore[arg-type]
                self.done += 1
            except grpc.aio.AioRpcError as error:
                self.errors.append(f"{error.code().name}: {error.details()}")

    async def _run_rest(self) -> None:
        client = Rest(self.edge.port)
        while not self.stopping:
            fresh = client.writer is None
            try:
                answer = await client.call("POST", "/v2/models/m/infer", b"{}", **self.headers)
                if answer.status != 200:
                    self.errors.append(f"{answer.status}: {answer.body!r}")
                self.done += 1
            except OSError as error:
                # A connection that was reset in the queue of the listening socket was refused.
                self.errors.append(f"REST {'refused' if fresh else 'lost'}: {error!r}")
                await client.close()
        await client.close()

    async def __aenter__(self) -> Load:
        # As clients are by default: what a GOAWAY refused is sent again on a new connection.
        options = {"grpc.enable_retries": 1}
        self.channels = [channel(self.edge.port, **options) for _ in range(4)]
        self.tasks = [
            asyncio.create_task(self._run(self.channels[i % 4])) for i in range(self.width)
        ] + [asyncio.create_task(self._run_rest()) for _ in range(4)]
        await self.more(200)
        return self

    async def more(self, count: int) -> None:
        """Wait until so many more calls were answered."""
        goal = self.done + count

        async def reached() -> bool:
            return self.done >= goal or len(self.errors) > 20

        await until(reached)

    async def stop(self) -> None:
        self.stopping = True
        await asyncio.gather(*self.tasks)

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
        for each in self.channels:
            await each.close()


def edge_settings(run_dir: Path, **changes: Any) -> EdgeSettings:
    base = EdgeSettings(
        "127.0.0.1", free_port(), str(run_dir / "controller.sock"), drain_timeout=5.0
    )
    return replace(base, **changes)


@contextlib.asynccontextmanager
async def running_edge(run_dir: Path, **settings: Any) -> AsyncIterator[Edge]:
    async with Edge(run_dir, edge_settings(run_dir, **settings)) as edge:
        yield edge
