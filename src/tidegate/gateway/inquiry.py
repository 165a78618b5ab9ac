"""Asks endpoints, before a gateway starts, whether they would serve: for ``tidegate doctor``.

What calls would meet is what is tried: a connection, TLS as the edge speaks it, and the question
for the model's readiness in the protocol that the endpoint is said to speak.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import io
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import grpc
import orjson
from google.protobuf.message import DecodeError

from tidegate.config.addresses import split_address
from tidegate.config.gateway import ClientTls as ClientFiles
from tidegate.edge.trust import ClientTls
from tidegate.gateway.endpoints import Endpoint
from tidegate.gateway.handshake import Handshakes, NoConnection, NoTls
from tidegate.protocols.open_inference import MODEL_READY
from tidegate.protocols.open_inference.messages import ModelReadyRequest, ModelReadyResponse
from tidegate.protocols.tensorflow_serving import GET_MODEL_STATUS
from tidegate.protocols.tensorflow_serving.messages import (
    GetModelStatusRequest,
    GetModelStatusResponse,
)

ASK_TIMEOUT = 2.0
"""Seconds for one question and its answer."""
_AT_A_TIME = 64
"""Endpoints."""
_LARGEST_ANSWER = 2**20
"""Bytes of an answer that are read."""
_GET = b"GET %s HTTP/1.1\r\nhost: %s\r\naccept: */*\r\nconnection: close\r\n\r\n"
_AVAILABLE = 30
"""The state of a version that answers, in TensorFlow Serving's ``GetModelStatusResponse``."""
_LONGEST_WORDS = 300
"""Characters."""
_NOT_SPOKEN = (
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.CANCELLED,
)
"""What a call in another protocol ends with: from the server, or from grpc where it is no gRPC."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One endpoint of a model; ``model`` is ``None`` where its server knows it by another name.

    ``health_path`` is the path over REST that is asked in place of the protocol's question.
    """

    model: str | None
    endpoint: Endpoint
    health_path: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of it.

    Attributes:
        state: ``ready``; ``not ready``: its server says so, or nobody answers, which may change;
            ``wrong``: what is declared of it does not hold, as its protocol; ``not asked``: there
            was no time left.
        words: why, for people.
    """

    state: str
    words: str = ""


async def inquire(
    asked: list[Asked], tls: ClientTls, files: ClientFiles | None, timeout: float
) -> list[Answer]:
    """Ask all of them, so many at a time; return the answers in their order.

    Args:
        asked: the endpoints.
        tls: how the edge speaks TLS to those that are ``secure``.
        files: where that was read from.
        timeout: seconds for all of them together.
    """
    answers = [Answer("not asked", "there was no time left")] * len(asked)
    places = iter(range(len(asked)))

    inquirer = _Inquirer(tls, files)

    async def ask_on() -> None:
        for place in places:
            answers[place] = await inquirer.ask(asked[place])

    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout), asyncio.TaskGroup() as group:
            for _ in range(min(_AT_A_TIME, len(asked))):
                group.create_task(ask_on())
    return answers


class _Wrong(Exception):
    """The endpoint is not what it is said to be."""


class _NoModel(_Wrong):
    """It speaks as it should, of other models."""


class _NotReady(Exception):
    """It may be, later."""


class _Inquirer:
    def __init__(self, tls: ClientTls, files: ClientFiles | None) -> None:
        self._tls = tls
        self._handshakes = Handshakes(tls, files)

    async def ask(self, asked: Asked) -> Answer:
        """Ask one endpoint."""
        try:
            await self._ask(asked)
        except _Wrong as error:
            return Answer("wrong", _shortened(error))
        except _NotReady as error:
            return Answer("not ready", _shortened(error))
        except Exception as error:  # one odd server must not keep the others from being asked
            return Answer("wrong", _shortened(error, f"{type(error).__name__}: "))
        return Answer("ready")

    async def _ask(self, asked: Asked) -> None:
        endpoint = asked.endpoint
        name = await self._connect(endpoint, endpoint.address)
        server = _Server(endpoint, self._tls, self._handshakes.nameless, name)
        ask: Callable[[], Awaitable[None]]
        path = asked.health_path
        if path is not None and (endpoint.protocol == "tidegate" or endpoint.rest is not None):
            ask = lambda: _by_path(server, path)  # noqa: E731
        elif endpoint.protocol == "tidegate":
            ask = lambda: _of_ours(server, asked.model)  # noqa: E731
        elif asked.model is None or endpoint.protocol == "seldon":
            return  # no question that all of them answer
        elif endpoint.protocol == "open-inference":
            ask = lambda: _open_inference(server, str(asked.model))  # noqa: E731
        else:
            ask = lambda: _tensorflow_serving(server, str(asked.model))  # noqa: E731
        try:
            await ask()
        except _NoModel:
            raise
        except _Wrong:
            spoken = await _spoken(server, asked.model or "")
            if spoken is None:
                raise
            raise _Wrong(f"it {spoken}, not as {endpoint.protocol}") from None
        if endpoint.rest is not None and endpoint.rest != endpoint.address:
            await self._connect(endpoint, endpoint.rest)

    async def _connect(self, endpoint: Endpoint, place: str) -> str | None:
        """Connect, and shake hands; return a name of the certificate."""
        try:
            return await self._handshakes.connect(endpoint, place)
        except NoTls as error:
            raise _Wrong(str(error)) from None
        except NoConnection as error:
            raise _NotReady(str(error)) from None


class _Server:
    """How one endpoint is asked."""

    def __init__(
        self, endpoint: Endpoint, tls: ClientTls, context: ssl.SSLContext, name: str | None
    ) -> None:
        self.endpoint = endpoint
        self._tls = tls
        self._name = name
        self._context = context

    async def get(self, path: str, place: str | None = None) -> tuple[int, Any]:
        """``GET``; return the status and the JSON, ``None`` for something else.

        Raises:
            _Wrong: it does not speak HTTP/1.1.
            _NotReady: there was no answer in time.
        """
        place = place or self.endpoint.rest or self.endpoint.address
        host, port = split_address(place)
        context = self._context if self.endpoint.secure else None
        try:
            async with asyncio.timeout(ASK_TIMEOUT):
                reader, writer = await asyncio.open_connection(host, port, ssl=context)
                try:
                    writer.write(_GET % (path.encode(), place.encode()))
                    said = b""
                    # It closes the connection, as it is asked to.
                    while len(said) <= _LARGEST_ANSWER and (piece := await reader.read(2**16)):
                        said += piece
                finally:
                    writer.transport.abort()
        except TimeoutError:
            raise _NotReady(f"no answer to GET {path} in {ASK_TIMEOUT:g} s") from None
        except ssl.SSLError as error:
            reason = (error.reason or str(error)).lower().replace("_", " ")
            raise _Wrong(f"it ends TLS: {reason}; it may want a certificate") from None
        except OSError as error:
            raise _Wrong(f"GET {path}: {error.strerror or error}") from None
        return _parsed(path, said)

    async def call(self, method: str, request: Any) -> bytes:
        """Call over gRPC, at the address.

        Raises:
            grpc.aio.AioRpcError: why there is no answer.
        """
        options = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]
        place = self.endpoint.address
        if not self.endpoint.secure:
            channel = grpc.aio.insecure_channel(place, options)
        else:
            # Who it is was checked before; grpc wants a name in any case.
            options.append(("grpc.ssl_target_name_override", self._name or ""))  # type: ignore[arg-type]
            tls = self._tls
            credentials = grpc.ssl_channel_credentials(tls.ca, tls.key, tls.certificate)
            channel = grpc.aio.secure_channel(place, credentials, options)
        async with channel:
            answer = channel.unary_unary(method)(request.SerializeToString(), timeout=ASK_TIMEOUT)
            return bytes(await answer)


class _Received:
    """Bytes in the place of a socket."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def makefile(self, mode: str) -> io.BytesIO:
        return io.BytesIO(self._content)


def _parsed(path: str, said: bytes) -> tuple[int, Any]:
    response = http.client.HTTPResponse(_Received(said))  # type: ignore[arg-type]
    try:
        response.begin()
        return response.status, orjson.loads(response.read())
    except orjson.JSONDecodeError:
        return response.status, None
    except (http.client.HTTPException, ValueError) as error:
        raise _Wrong(f"GET {path}: {type(error).__name__}") from None


async def _by_path(server: _Server, path: str) -> None:
    status, _ = await server.get(path)
    if status != http.HTTPStatus.OK:
        raise _NotReady(f"it is not ready: GET {path} is answered with {status}")


async def _of_ours(server: _Server, model: str | None) -> None:
    status, said = await server.get("/v2")
    name = said.get("name") if isinstance(said, dict) else None
    if status != 200 or name != "tidegate":
        raise _Wrong("it does not answer as a node of Tidegate does")
    path = "/v2/health/ready" if model is None else f"/v2/models/{quote(model, safe='')}/ready"
    status, said = await server.get(path)
    if status == 404:
        raise _NoModel(f"it has no model {model!r}")
    if status != 200:
        why = said.get("error") if isinstance(said, dict) else None
        raise _NotReady(f"it is not ready: {why or f'HTTP status {status}'}")


async def _open_inference(server: _Server, model: str) -> None:
    answer = await _grpc(server, MODEL_READY, ModelReadyRequest(name=model), model)
    if not _read(ModelReadyResponse, answer).ready:
        raise _NotReady(f"the model {model!r} is not ready")


async def _tensorflow_serving(server: _Server, model: str) -> None:
    request = GetModelStatusRequest()
    request.model_spec.name = model
    answer = await _grpc(server, GET_MODEL_STATUS, request, model)
    states = [v.state for v in _read(GetModelStatusResponse, answer).model_version_status]
    if _AVAILABLE not in states:
        raise _NotReady(f"no version of the model {model!r} is AVAILABLE")


def _read(kind: Any, answer: bytes) -> Any:
    try:
        return kind.FromString(answer)
    except DecodeError:
        raise _Wrong("its answer is no message of the protocol") from None


async def _grpc(server: _Server, method: str, request: Any, model: str) -> bytes:
    try:
        return await server.call(method, request)
    except grpc.aio.AioRpcError as error:
        code, words = error.code(), error.details() or ""
        if code is grpc.StatusCode.NOT_FOUND:
            raise _NoModel(f"it has no model {model!r}: {words}") from None
        if code in _NOT_SPOKEN:
            raise _Wrong(f"{method.lstrip('/')}: {code.name} {words}") from None
        raise _NotReady(f"{code.name}: {words}") from None


async def _spoken(server: _Server, model: str) -> str | None:
    """Say what a server speaks whose answer was not that of its declared protocol."""
    place = server.endpoint.address
    with contextlib.suppress(_Wrong, _NotReady):
        _, said = await server.get("/v2", place)
        if isinstance(said, dict) and said.get("name") == "tidegate":
            # Ours speaks every protocol: what is wrong is not that.
            return None
    status_request = GetModelStatusRequest()
    status_request.model_spec.name = model
    for protocol, method, request in (
        ("open-inference", MODEL_READY, ModelReadyRequest(name=model)),
        ("tensorflow-serving", GET_MODEL_STATUS, status_request),
    ):
        if protocol == server.endpoint.protocol:
            continue
        try:
            await server.call(method, request)
        except grpc.aio.AioRpcError as error:
            if error.code() in (*_NOT_SPOKEN, grpc.StatusCode.DEADLINE_EXCEEDED):
                continue
        return f"answers as {protocol}"
    for protocol, path in (
        ("open-inference", "/v2"),
        ("tensorflow-serving", f"/v1/models/{quote(model, safe='')}"),
    ):
        with contextlib.suppress(_Wrong, _NotReady):
            status, said = await server.get(path, place)
            if isinstance(said, dict) and (status == 200 or "error" in said):
                _, port = split_address(place)
                return (
                    f"answers as the REST API of {protocol} (give the port of gRPC in `address` "
                    f"and this one as `rest: {port}`)"
                )
    return None


def _shortened(error: Exception, kind: str = "") -> str:
    words = " ".join(f"{kind}{error}".split())
    return words if len(words) <= _LONGEST_WORDS else words[:_LONGEST_WORDS] + "…"
