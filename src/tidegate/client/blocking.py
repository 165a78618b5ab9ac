"""The client whose calls block, for threads and for the prompt."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Self

import numpy.typing as npt

from tidegate.client.blocking_driver import BlockingDriver
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


class Client(Face):
    """Calls the models of one server of the Open Inference Protocol v2, by HTTP or gRPC.

    ::

        with Client("http://127.0.0.1:8000") as client:
            answer = client.infer("digits", {"image": images})
            print(answer["digit"])

    It may be used from several threads at once. It connects with the first call, keeps its
    connections, and opens others as calls overlap.

    Every call takes a ``timeout`` in seconds for all of it, connecting included; ``None`` is
    the client's own, ``math.inf`` waits for ever. Every call may raise, besides what it names:

    - :class:`~tidegate.errors.ServerUnreachable`: nobody answers at the URL;
    - :class:`~tidegate.errors.ConnectionLost`: the server broke off in the middle;
    - :class:`~tidegate.errors.InvalidAnswer`: what it answered is not of the protocol;
    - :class:`~tidegate.errors.DeadlineExceeded`: the time is over;
    - any :class:`~tidegate.errors.RequestError` that the server answers with.

    Args:
        url: where the server is: ``http://``, ``https://``, ``grpc://`` or ``grpcs://``, a host
            and a port. HTTP takes a path before ``/v2`` as well.
        timeout: seconds that a call may take when it does not say itself.
        binary: over HTTP, send and ask for raw bytes (``Inference-Header-Content-Length``);
            ``False`` writes numbers in JSON, for servers that know nothing else.
        headers: sent with every call, as ``{"authorization": "Bearer …"}``.
        ca_file: certificates (PEM) of who vouches for the server, instead of the usual
            authorities.
        certificate_file: a certificate (PEM) for servers that want one of their clients, followed
            by those that lead to an authority.
        key_file: its private key, without a password.
        max_answer_size: the most bytes that an answer may have.
        direct: ask the gateway at ``url`` where each model is, and call it there, balancing
            over its endpoints; what is not about one model goes to the gateway.
        endpoint_headers: sent to endpoints, with ``direct``; ``headers`` go to the gateway alone.

    Raises:
        ConfigurationError: the URL is none of a server, or a header cannot be sent, or of
            ``certificate_file`` and ``key_file`` there is only one.
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
        self._driver = BlockingDriver(self._connection, repr(self), self._forked)

    def model(self, name: str, version: str | int | None = None) -> Model:
        """Return a handle of a model; the server is not asked yet.

        Args:
            name: the model's name.
            version: one of its versions; ``None`` is the one that the server serves by default.
        """
        return Model(self, name, version)

    def infer(
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
        """Run a model once.

        numpy arrays are sent as they are. Python numbers, texts and lists take the type that
        the model declares, which is asked for once and remembered.

        Args:
            model: its name.
            inputs: the value of each input by name; or the value alone, for a model that has
                one input. Text and bytes go into BYTES inputs, text as UTF-8.
            version: one of its versions; ``None`` is the server's default.
            outputs: the names of those that are wanted; ``None`` is all.
            parameters: of the request; what they mean is the server's and the model's.
            timeout: seconds for all of it; ``None`` is the client's.
            request_id: comes back with the answer, and is in the server's logs.

        Returns:
            The outputs by name.

        Raises:
            InvalidInput: the values, or the server says so, do not fit the model.
            ModelNotFound: the server has no such model or version.
            ModelNotReady: it cannot be called now.
            InferenceFailed: it raised while it ran.
        """
        asked = wanted(model, version, inputs, outputs, parameters, request_id)
        return self._drive(self._conversation.infer(asked, self._seconds(timeout)))

    def metadata(self, *, timeout: float | None = None) -> ServerMetadata:
        """Return the server's name, its version and its extensions."""
        return self._drive(self._conversation.server_metadata(self._seconds(timeout)))

    def repository(
        self, *, ready: bool = False, timeout: float | None = None
    ) -> tuple[IndexEntry, ...]:
        """Return every version of every model in the server's repository, with its state.

        An extension of the protocol (``model_repository``), which not every server has.

        Args:
            ready: only those that can be called.
            timeout: seconds; ``None`` is the client's.

        Raises:
            MethodNotFound: the server has no such call (or Unsupported).
        """
        return self._drive(self._conversation.index(ready, self._seconds(timeout)))

    def load(self, model: str, *, timeout: float | None = None) -> None:
        """Have the server load a model, and wait until it is ready.

        Raises:
            LoadFailed: it cannot be loaded; the message says why.
            ModelNotFound: the server's repository has no such model.
            PermissionDenied: the server does not take this from clients.
        """
        self._drive(self._conversation.load(model, self._seconds(timeout)))

    def unload(self, model: str, *, timeout: float | None = None) -> None:
        """Have the server unload a model; it stays in the repository.

        Raises:
            ModelNotFound: the server has no such model.
            PermissionDenied: the server does not take this from clients.
        """
        self._drive(self._conversation.unload(model, self._seconds(timeout)))

    def statistics(self, *, timeout: float | None = None) -> tuple[VersionStatistics, ...]:
        """Return what the models have done since they were loaded, by version.

        An extension of the protocol (``statistics``), which not every server has.
        """
        return self._drive(self._conversation.statistics("", "", self._seconds(timeout)))

    def live(self, *, timeout: float | None = None) -> bool:
        """Say whether the server is up; ``False`` as well when nobody answers."""
        return self._drive(self._conversation.live(self._seconds(timeout)))

    def ready(self, *, timeout: float | None = None) -> bool:
        """Say whether the server's models can be called; ``False`` when nobody answers."""
        return self._drive(self._conversation.ready(None, "", self._seconds(timeout)))

    def wait_ready(self, timeout: float | None = None) -> None:
        """Wait until the server's models can be called.

        Raises:
            DeadlineExceeded: they cannot after ``timeout`` seconds; the message tells the
                server's last answer.
        """
        self._drive(self._conversation.wait_ready(None, "", self._seconds(timeout)))

    def close(self) -> None:
        """Close the connections; a closed client makes no more calls."""
        self._driver.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _drive(self, steps: Steps[T]) -> T:
        return self._driver.drive(steps)


class Model:
    """One model of a server, or one version of it; :meth:`Client.model` makes it."""

    def __init__(self, client: Client, name: str, version: str | int | None = None) -> None:
        self._client = client
        self.name = name
        self.version = version

    def __repr__(self) -> str:
        version = "" if self.version is None else f", version={self.version!r}"
        return f"{self._client!r}.model({self.name!r}{version})"

    def infer(
        self,
        inputs: Mapping[str, npt.ArrayLike] | npt.ArrayLike,
        outputs: Sequence[str] | None = None,
        *,
        parameters: Mapping[str, Parameter] | None = None,
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> InferResult:
        """Run the model once; see :meth:`Client.infer`."""
        return self._client.infer(
            self.name,
            inputs,
            version=self.version,
            outputs=outputs,
            parameters=parameters,
            timeout=timeout,
            request_id=request_id,
        )

    def metadata(self, *, timeout: float | None = None) -> ModelMetadata:
        """Return what the model takes and gives, and which versions of it are served.

        Raises:
            ModelNotFound: the server has no such model or version.
        """
        client = self._client
        return client._drive(
            client._conversation.model_metadata(
                self.name, checked_version(self.version), client._seconds(timeout)
            )
        )

    def statistics(self, *, timeout: float | None = None) -> tuple[VersionStatistics, ...]:
        """Return what the model has done; see :meth:`Client.statistics`."""
        client = self._client
        return client._drive(
            client._conversation.statistics(
                self.name, checked_version(self.version), client._seconds(timeout)
            )
        )

    def endpoints(self) -> tuple[EndpointState, ...]:
        """Return what this client thinks of the model's endpoints, in direct mode.

        Nobody is asked: before the first call, and without ``direct``, there are none.
        """
        return self._client._endpoints(self.name)

    def ready(self, *, timeout: float | None = None) -> bool:
        """Say whether the model can be called; ``False`` for one that the server lacks."""
        client = self._client
        return client._drive(
            client._conversation.ready(
                self.name, checked_version(self.version), client._seconds(timeout)
            )
        )

    def wait_ready(self, timeout: float | None = None) -> None:
        """Wait until the model can be called.

        Raises:
            DeadlineExceeded: it cannot after ``timeout`` seconds; the message tells the
                server's last answer.
        """
        client = self._client
        client._drive(
            client._conversation.wait_ready(
                self.name, checked_version(self.version), client._seconds(timeout)
            )
        )
