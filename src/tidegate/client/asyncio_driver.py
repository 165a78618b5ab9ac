"""Takes the steps of calls in an event loop."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from functools import partial
from typing import Any

from tidegate.client.calls import Incoming, T
from tidegate.client.connection import AsyncTransport, Connection
from tidegate.client.steps import PATIENCE, Ask, Beside, Retire, Steps

_log = logging.getLogger(__name__)


class AsyncioDriver:
    """Keeps the connections of one client.

    Args:
        connection: to the client's own server.
        name: how errors call the client.
    """

    def __init__(self, connection: Connection, name: str) -> None:
        self._connection = connection
        self._name = name
        self._transports: dict[Connection, AsyncTransport] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    async def drive(self, steps: Steps[T]) -> T:
        """Take ``steps`` to their end and return their value."""
        try:
            step = next(steps)
            while True:
                try:
                    answer = await self._take(step)
                except BaseException as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(answer)
        except StopIteration as done:
            value: T = done.value
            return value

    async def close(self) -> None:
        """Close the connections; there are no more calls."""
        self._closed = True
        running, self._running = self._running, {}
        for task in running.values():
            task.cancel()
        await asyncio.gather(*running.values(), return_exceptions=True)
        transports, self._transports = self._transports, {}
        for transport in transports.values():
            await transport.close()

    async def _take(self, step: Any) -> Incoming | None:
        if isinstance(step, Ask):
            transport = self._opened(step.connection or self._connection)
            if step.worry is None:
                return await transport.exchange(step.outgoing, step.timeout)
            waiting = _Waiting(partial(self._start, step.worry))
            try:
                return await transport.exchange(step.outgoing, step.timeout)
            finally:
                waiting.end()
        if isinstance(step, Beside):
            await self._beside(step)
        elif isinstance(step, Retire):
            await self._retire(step.gone)
        else:
            await asyncio.sleep(step.seconds)
        return None

    def _opened(self, connection: Connection) -> AsyncTransport:
        self._check()
        transport = self._transports.get(connection)
        if transport is None:
            transport = self._transports[connection] = _open(connection)
        return transport

    def _check(self) -> None:
        loop = asyncio.get_running_loop()
        if self._closed:
            raise RuntimeError(f"{self._name} is closed; make another client")
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise RuntimeError(
                f"{self._name} belongs to another event loop; make one client for each loop"
            )

    async def _beside(self, step: Beside) -> None:
        self._check()
        task = self._start(step)
        if step.wait:
            await asyncio.wait({task}, timeout=None if math.isinf(step.wait) else step.wait)

    def _start(self, step: Beside) -> asyncio.Task[None]:
        task = self._running.get(step.key)
        if task is None:
            task = self._running[step.key] = asyncio.create_task(self._run(step))
        return task

    async def _run(self, step: Beside) -> None:
        try:
            await self.drive(step.begin())
        except Exception:
            # What servers do is in what the steps keep. A client that was closed does not mind.
            if not self._closed:
                _log.exception("what was to be done beside calls of %s", self._name)
        finally:
            self._running.pop(step.key, None)

    async def _retire(self, gone: tuple[Connection, ...]) -> None:
        for transport in [self._transports.pop(connection, None) for connection in gone]:
            if transport is not None:
                await transport.close()


class _Waiting:
    """A call whose answer is waited for: again and again, something is done about it."""

    def __init__(self, act: Callable[[], object]) -> None:
        self._act = act
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(PATIENCE, self._passed)

    def end(self) -> None:
        """The answer is there."""
        self._timer.cancel()

    def _passed(self) -> None:
        self._timer = self._loop.call_later(PATIENCE, self._passed)
        self._act()


def _open(connection: Connection) -> AsyncTransport:
    """Make the transport, whose library is imported only now."""
    if connection.address.grpc:
        from tidegate.client.grpc_transport import AsyncGrpcTransport

        return AsyncGrpcTransport(connection)
    from tidegate.client.http_transport import AsyncHttpTransport

    return AsyncHttpTransport(connection)
