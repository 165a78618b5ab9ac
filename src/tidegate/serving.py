"""``serve()``: a node for as long as a block of Python runs.

The node is ``tidegate serve`` in processes of its own, tied to this one by
:mod:`tidegate.guard`; nothing of it is imported here.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
from pathlib import Path
from typing import Self

from tidegate.client import AsyncClient, Client, Model
from tidegate.config.loading import nearest
from tidegate.config.node import NodeConfig
from tidegate.errors import ConfigurationError, TidegateError
from tidegate.guarded_node import GuardedNode, start_node


class Server:
    """A node that this process has started; :func:`serve` makes it.

    It runs between entering and leaving a ``with`` block (or ``async with``), or between
    :meth:`start` and :meth:`stop`. It ends with this process in any case, even if that is
    killed.
    """

    def __init__(
        self,
        repository: str | os.PathLike[str],
        timeout: float,
        allow_failed: bool,
        options: dict[str, object],
    ) -> None:
        self.repository = Path(repository)
        self._timeout = timeout
        self._allow_failed = allow_failed
        self._options = options
        self._node: GuardedNode | None = None
        self._client: Client | None = None
        self._async_client: AsyncClient | None = None

    @property
    def url(self) -> str:
        """Where it answers over HTTP, as ``http://127.0.0.1:40123``."""
        return self._running().address.url("http")

    @property
    def grpc_url(self) -> str:
        """Where it answers over gRPC."""
        return self._running().address.url("grpc")

    @property
    def client(self) -> Client:
        """A client of it, over HTTP; closed with the server."""
        if self._client is None:
            self._client = Client(self.url, ca_file=self._authorities())
        return self._client

    @property
    def async_client(self) -> AsyncClient:
        """A client of it for asyncio, over HTTP; closed with ``async with``."""
        if self._async_client is None:
            self._async_client = AsyncClient(self.url, ca_file=self._authorities())
        return self._async_client

    def model(self, name: str, version: str | int | None = None) -> Model:
        """Return a handle of a model, as :meth:`tidegate.Client.model` does."""
        return self.client.model(name, version)

    def start(self) -> Self:
        """Start it, and return when its models are ready; :meth:`stop` ends it.

        For notebooks, where one cell starts the server and others use it. An earlier one of
        the same repository that was started so is stopped first: a cell can be run again.

        Raises:
            TidegateError: see :func:`serve`.
        """
        place = self.repository.resolve()
        if (earlier := _started.pop(place, None)) is not None:
            earlier.stop()
        self.__enter__()
        _started[place] = self
        return self

    def stop(self) -> None:
        """Stop it: running requests are answered first. Nothing of it is left.

        A Ctrl-C meanwhile cuts what still runs.
        """
        _started.pop(self.repository.resolve(), None)
        node, self._node = self._node, None
        client, self._client = self._client, None
        # The asynchronous client belongs to its event loop, which closes it.
        self._async_client = None
        if client is not None:
            client.close()
        if node is not None:
            node.stop()

    def __enter__(self) -> Self:
        if self._node is not None:
            raise RuntimeError(f"{self!r} runs already")
        self._node = start_node(self.repository, self._options, self._timeout)
        try:
            if not self._allow_failed:
                self._node.check_models()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        starting = asyncio.create_task(asyncio.to_thread(self.__enter__))
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            # A thread cannot be interrupted: what it starts is stopped as soon as it stands.
            with contextlib.suppress(TidegateError):
                await starting
            await asyncio.to_thread(self.stop)
            raise

    async def __aexit__(self, *exc: object) -> None:
        if self._async_client is not None:
            await self._async_client.close()
        await asyncio.to_thread(self.stop)

    def __repr__(self) -> str:
        where = "not running" if self._node is None else self._node.address.url("http")
        return f"<Server of {self.repository}: {where}>"

    def _authorities(self) -> Path | None:
        address = self._running().address
        address.check()
        return address.ca_file

    def _running(self) -> GuardedNode:
        if self._node is None:
            raise RuntimeError(f"{self!r}: use it in a with block, or start() it")
        return self._node


def serve(
    repository: str | os.PathLike[str],
    *,
    timeout: float = 300.0,
    allow_failed: bool = False,
    **options: object,
) -> Server:
    """Serve the models in a folder for as long as a ``with`` block runs.

    ::

        with serve("./models") as server:
            answer = server.model("digits").infer({"image": images})

    The node listens on a free port of this machine and ends with the block: processes, memory
    and files. If this process ends without leaving the block, killed even, so does the node.

    Args:
        repository: the folder of models, as ``tidegate serve`` takes it.
        timeout: seconds until every model has to be ready.
        allow_failed: serve the others when a model cannot be.
        options: those of ``tidegate serve``, with underscores: ``port=8000``,
            ``max_message_size="256MiB"``. Variables and ``tidegate.yaml`` count, too, but for
            the ports and the run directory.

    Returns:
        What ``with`` and ``async with`` take; both give it back once its models are ready.

    Raises:
        ConfigurationError: there is no such option (at once), or its value is wrong.
        ModelError: a model cannot be served; the message says which, and why.
        NodeError: the node cannot be started.
        RuntimeMissing: this is an install without the serving parts.
        DeadlineExceeded: the models were not ready in time.
    """
    for name in options:
        if name not in NodeConfig.model_fields:
            hint = nearest(name, NodeConfig.model_fields)
            raise ConfigurationError(f"serve() has no option {name!r}: {hint}")
    return Server(repository, timeout, allow_failed, options)


_started: dict[Path, Server] = {}
"""What :meth:`Server.start` has started, by repository."""


@atexit.register
def _stop_started() -> None:
    for server in list(_started.values()):
        server.stop()
