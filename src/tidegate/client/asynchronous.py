"""The client whose calls are awaited."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Self

import numpy.typing as npt

from tidegate.client.asyncio_driver import AsyncioDriver
from tidegate.client.calls import T
from tidegate.client.face import (
    DEFAULT_TIMEOUT,
    DEFAULT_URL,
    Face,
    checked_version,
    wanted,
)
from tidegate.client.pool import EndpointState
from tidegate.client.result import InferResult
from tidegate.client.steps import Steps
from tidegate.protocols.open_inference.repository import IndexEntry
from tidegate.protocols.open_inference.statistics import VersionStatistics
from tidegate.types import ModelMetadata, Parameter, ServerMetadata


class AsyncClient(Face):
    """Calls the models of one server of the Open Inference Protocol v2, for asyncio.

    ::

        async with AsyncClient("grpc://127.0.0.1:8000") as client:
            answers = await asyncio.gather(*(client.infer("digits", image) for image in images))

    Arguments, calls and errors are those of :class:`~tidegate.client.Client`. A client belongs
    to the event loop of its first call. A call that is cancelled is cancelled on the server.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        binary: bool = True,
        headers: Mapping[str, str] | None = None,
        ca_file: str | os.PathLike[str] | None = None,
        certificate_file: str | os.PathLike[str] | None = None,
        key_file: str | os.PathLike[str] | None = None,
        max_answer_size: int = 2**30,
        direct: bool = False,
        endpoint_headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(
            url,
            timeout=timeout,
            binary=binary,
            headers=headers,
            ca_file=ca_file,
            certificate_file=certificate_file,
            key_file=key_file,
            max_answer_size=max_answer_size,
            direct=direct,
            endpoint_headers=endpoint_headers,
        )
        self._driver = AsyncioDriver(self._connection, repr(self))

    def model(self, name: str, version: str | int | None = None) -> AsyncModel:
        """Return a handle of a model, whose calls are awaited; see :meth:`Client.model`."""
        return AsyncModel(self, name, version)

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, npt.ArrayLike] | npt.ArrayLike,
        *,
        version: str | int | None = None,
        outputs: Sequence[str] | None = None,
        parameters: Mapping[str, Parameter] | None = None,
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> InferResult:
        """Run a model once; see :meth:`Client.infer`."""
        asked = wanted(model, version, inputs, outputs, parameters, request_id)
        return await self._drive(self._conversation.infer(asked, self._seconds(timeout)))

    async def metadata(self, *, timeout: float | None = None) -> ServerMetadata:
        """Return the server's name, its version and its extensions."""
        return await self._drive(self._conversation.server_metadata(self._seconds(timeout)))

    async def repository(
        self, *, ready: bool = False, timeout: float | None = None
    ) -> tuple[IndexEntry, ...]:
        """Return the models of the server's repository; see :meth:`Client.repository`."""
        return await self._drive(self._conversation.index(ready, self._seconds(timeout)))

    async def load(self, model: str, *, timeout: float | None = None) -> None:
        """Have the server load a model; see :meth:`Client.load`."""
        await self._drive(self._conversation.load(model, self._seconds(timeout)))

    async def unload(self, model: str, *, timeout: float | None = None) -> None:
        """Have the server unload a model; see :meth:`Client.unload`."""
        await self._drive(self._conversation.unload(model, self._seconds(timeout)))

    async def statistics(self, *, timeout: float | None = None) -> tuple[VersionStatistics, ...]:
        """Return what the models have done; see :meth:`Client.statistics`."""
        return await self._drive(self._conversation.statistics("", "", self._seconds(timeout)))

    async def live(self, *, timeout: float | None = None) -> bool:
        """Say whether the server is up; ``False`` as well when nobody answers."""
        return await self._drive(self._conversation.live(self._seconds(timeout)))

    async def ready(self, *, timeout: float | None = None) -> bool:
        """Say whether the server's models can be called; ``False`` when nobody answers."""
        return await self._drive(self._conversation.ready(None, "", self._seconds(timeout)))

    async def wait_ready(self, timeout: float | None = None) -> None:
        """Wait until the server's models can be called; see :meth:`Client.wait_ready`."""
        await self._drive(self._conversation.wait_ready(None, "", self._seconds(timeout)))

    async def close(self) -> None:
        """Close the connections; a closed client makes no more calls."""
        await self._driver.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def _drive(self, steps: Steps[T]) -> T:
        return await self._driver.drive(steps)


class AsyncModel:
    """One model of a server, or one version of it; :meth:`AsyncClient.model` makes it."""

    def __init__(self, client: AsyncClient, name: str, version: str | int | None = None) -> None:
        self._client = client
        self.name = name
        self.version = version

    def __repr__(self) -> str:
        version = "" if self.version is None else f", version={self.version!r}"
        return f"{self._client!r}.model({self.name!r}{version})"

    async def infer(
        self,
        inputs: Mapping[str, npt.ArrayLike] | npt.ArrayLike,
        outputs: Sequence[str] | None = None,
        *,
        parameters: Mapping[str, Parameter] | None = None,
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> InferResult:
        """Run the model once; see :meth:`Client.infer`."""
        return await self._client.infer(
            self.name,
            inputs,
            version=self.version,
            outputs=outputs,
            parameters=parameters,
            timeout=timeout,
            request_id=request_id,
        )

    async def metadata(self, *, timeout: float | None = None) -> ModelMetadata:
        """Return what the model takes and gives; see :meth:`Model.metadata`."""
        client = self._client
        return await client._drive(
            client._conversation.model_metadata(
                self.name, checked_version(self.version), client._seconds(timeout)
            )
        )

    async def statistics(self, *, timeout: float | None = None) -> tuple[VersionStatistics, ...]:
        """Return what the model has done; see :meth:`Client.statistics`."""
        client = self._client
        return await client._drive(
            client._conversation.statistics(
                self.name, checked_version(self.version), client._seconds(timeout)
            )
        )

    def endpoints(self) -> tuple[EndpointState, ...]:
        """Return what this client thinks of the endpoints; see :meth:`Model.endpoints`."""
        return self._client._endpoints(self.name)

    async def ready(self, *, timeout: float | None = None) -> bool:
        """Say whether the model can be called; ``False`` for one that the server lacks."""
        client = self._client
        return await client._drive(
            client._conversation.ready(
                self.name, checked_version(self.version), client._seconds(timeout)
            )
        )

    async def wait_ready(self, timeout: float | None = None) -> None:
        """Wait until the model can be called; see :meth:`Model.wait_ready`."""
        client = self._client
        await client._drive(
            client._conversation.wait_ready(
                self.name, checked_version(self.version), client._seconds(timeout)
            )
        )
