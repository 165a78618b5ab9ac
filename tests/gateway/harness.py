"""A real gateway for tests: ``tidegate gateway`` as a process, and its file."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import yaml

from tests.edge.harness import call, channel, message
from tests.node.harness import START, ServedNode, fetch
from tidegate.controller.run_directory import RunDirectory
from tidegate.edge.admin import AdminClient


class ServedGateway(ServedNode):
    """``async with`` starts a gateway of ``document`` and waits until it is ready.

    ``repository`` is the file.
    """

    SAYS = "gateway of "

    def __init__(self, document: object, *options: str, wait_ready: bool = True) -> None:
        folder = Path(tempfile.mkdtemp(prefix="tgw", dir="/tmp"))
        super().__init__(folder / "gateway.yaml", *options, wait_ready=wait_ready)
        self.write(document)

    def command(self) -> tuple[str, ...]:
        return "gateway", str(self.repository)

    async def __aexit__(self, *exc: object) -> None:
        await super().__aexit__(*exc)
        shutil.rmtree(self.repository.parent, ignore_errors=True)

    def write(self, document: object) -> None:
        """Replace the file at once, by a document or by text as it is."""
        text = document if isinstance(document, str) else yaml.safe_dump(document)
        new = self.repository.with_name("new")
        new.write_text(text)
        new.replace(self.repository)

    async def edit(self, document: object) -> None:
        """Replace the file, and wait until the settings are in effect."""
        generation = (await self.status())["generation"]
        self.write(document)
        await self.eventually(lambda s: s["generation"] > generation)

    async def eventually(self, holds: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """Wait until ``/status`` says so."""
        async with asyncio.timeout(START):
            while not holds(status := await self.status()):  # noqa: ASYNC110 - over HTTP
                await asyncio.sleep(0.02)
        return status

    async def endpoints(self, model: str = "m") -> dict[str, dict[str, Any]]:
        """What ``/status`` says of each endpoint of a model, by address."""
        return endpoints_of(await self.status(), model)

    async def healthy(self, *models: str) -> None:
        """Wait until every endpoint of these models is healthy, and their calls are led there."""
        names = models or ("m",)
        await self.eventually(
            lambda status: all(
                found and all(e["health"] == "healthy" for e in found.values())
                for found in (endpoints_of(status, model) for model in names)
            )
        )
        await self.led(*names)

    async def led(self, *models: str) -> None:
        """Wait until the edge has routes for these models: it gets them last."""

        async def routed() -> bool:
            record = RunDirectory(self.run_dir, self.port).load()
            if record is None or record.edge is None:
                return False
            admin = AdminClient(Path(record.edge["admin_socket"]))
            routes = (await admin.get("/config_dump?resource=dynamic_route_configs")).decode()
            return all(f'"model/{model}"' in routes for model in models)

        await until(routed)

    async def admin(self, path: str) -> Any:
        """``GET`` from the admin API, JSON."""
        code, body = await asyncio.to_thread(fetch, f"http://127.0.0.1:{self.admin_port}{path}")
        assert code == 200, body
        return json.loads(body)

    async def ask(self, request: bytes | None = None, **options: Any) -> Any:
        """One call over gRPC, on a connection of its own."""
        async with channel(self.port) as connection:
            return await call(connection, message() if request is None else request, **options)

    async def refusal(self, request: bytes | None = None, **options: Any) -> tuple[str, str]:
        """The code and the words of a call that fails."""
        try:
            answer = await self.ask(request, **options)
        except grpc.aio.AioRpcError as error:
            return error.code().name, error.details() or ""
        raise AssertionError(f"answered: {answer}")


def endpoints_of(status: dict[str, Any], model: str) -> dict[str, dict[str, Any]]:
    """The endpoints of a model's first pool in ``/status``, by address."""
    for each in status["models"]:
        if each["name"] == model:
            return {e["address"]: e for e in each["pools"][0]["endpoints"]}
    return {}


class Traffic:
    """Calls to a gateway, ``width`` at a time, until it is left; ``errors`` holds what failed."""

    def __init__(self, gateway: ServedNode, width: int = 16, **options: Any) -> None:
        self._gateway = gateway
        self._width = width
        self._options = options
        self.answers: list[str] = []
        self.errors: list[str] = []
        self._stopping = False

    async def __aenter__(self) -> Traffic:
        # As clients are by default: what a GOAWAY refused is sent again on a new connection.
        self._channels = [
            channel(self._gateway.port, **{"grpc.enable_retries": 1}) for _ in range(4)
        ]
        self._tasks = [
            asyncio.create_task(self._run(self._channels[i % 4])) for i in range(self._width)
        ]
        await self.more(50)
        return self

    async def _run(self, connection: grpc.aio.Channel) -> None:
        while not self._stopping:
            try:
                self.answers.append(
                    (await call(connection, message(), **self._options))["replica"]
                )
            except grpc.aio.AioRpcError as error:
                self.errors.append(f"{error.code().name}: {error.details()}")
                await asyncio.sleep(0.01)

    async def more(self, count: int, of: str | None = None) -> None:
        """Wait until so many more calls were answered, by anybody or by one server."""

        def done() -> int:
            return len(self.answers) if of is None else self.answers.count(of)

        await until(self._reached(done, done() + count))

    def _reached(self, done: Callable[[], int], goal: int) -> Callable[[], Awaitable[bool]]:
        async def reached() -> bool:
            return done() >= goal or len(self.errors) > 1000

        return reached

    def since(self, mark: int) -> dict[str, float]:
        """The share of each server among the answers since there were ``mark``."""
        answers = self.answers[mark:]
        return {name: answers.count(name) / len(answers) for name in set(answers)}

    async def __aexit__(self, *exc: object) -> None:
        self._stopping = True
        await asyncio.gather(*self._tasks)
        for connection in self._channels:
            await connection.close()


async def until(condition: Callable[[], Awaitable[bool]], timeout: float = START) -> None:
    """Wait until ``condition`` holds."""
    async with asyncio.timeout(timeout):
        while not await condition():  # noqa: ASYNC110 - it is in another process
            await asyncio.sleep(0.01)
