"""The calls of the protocol over HTTP."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import quote

import orjson

from tidegate.client.calls import Call, Incoming, Outgoing, T, loading
from tidegate.errors import (
    InvalidAnswer,
    InvalidInput,
    MethodNotFound,
    ModelNotFound,
    ModelNotReady,
    QueueFull,
    TidegateError,
)
from tidegate.protocols.open_inference import extension_callers, rest_caller
from tidegate.protocols.open_inference.endpoints import ModelEndpoints, decode_endpoints
from tidegate.protocols.open_inference.repository import IndexEntry
from tidegate.protocols.open_inference.rest import HEADER_LENGTH, parse_header_length
from tidegate.protocols.open_inference.statistics import VersionStatistics
from tidegate.protocols.statuses import error_of_http
from tidegate.types import InferRequest, InferResponse, ModelMetadata, ServerMetadata

_UNPROCESSABLE = 422


class RestDialect:
    """The protocol over HTTP; ``binary`` chooses raw tensors over numbers in JSON."""

    def __init__(self, *, binary: bool = True) -> None:
        self._binary = binary

    def infer(self, request: InferRequest) -> Call[InferResponse]:
        """``POST /v2/models/NAME/infer``."""
        parts, header_length = rest_caller.encode_infer(request, binary=self._binary)
        headers = {"content-type": "application/json"}
        if header_length is not None:
            headers = {
                "content-type": "application/octet-stream",
                HEADER_LENGTH.lower(): str(header_length),
            }
        outgoing = Outgoing(
            f"{_model(request.model, request.version)}/infer", b"".join(parts), headers=headers
        )
        return Call(outgoing, _answer(_read_infer))

    def model_metadata(self, name: str, version: str) -> Call[ModelMetadata]:
        """``GET /v2/models/NAME``."""
        return Call(_get(_model(name, version)), _answer(_read_model_metadata))

    def server_metadata(self) -> Call[ServerMetadata]:
        """``GET /v2``."""
        return Call(_get("/v2"), _of_server(_answer(_read_server_metadata)))

    def live(self) -> Call[None]:
        """``GET /v2/health/live``."""
        return Call(_get("/v2/health/live"), _of_server(_answer(_check_ready)))

    def ready(self) -> Call[None]:
        """``GET /v2/health/ready``."""
        return Call(_get("/v2/health/ready"), _of_server(_answer(_check_ready)))

    def model_ready(self, name: str, version: str) -> Call[None]:
        """``GET /v2/models/NAME/ready``."""
        return Call(_get(f"{_model(name, version)}/ready"), _answer(_check_ready))

    def index(self, ready: bool) -> Call[tuple[IndexEntry, ...]]:
        """``POST /v2/repository/index``."""
        outgoing = _post("/v2/repository/index", extension_callers.encode_index_body(ready))
        return Call(outgoing, _of_server(_answer(_read_index)))

    def load(self, name: str) -> Call[None]:
        """``POST /v2/repository/models/NAME/load``."""
        return Call(_post(f"{_in_repository(name)}/load", b"{}"), loading(_answer(_nothing)))

    def unload(self, name: str) -> Call[None]:
        """``POST /v2/repository/models/NAME/unload``."""
        return Call(_post(f"{_in_repository(name)}/unload", b"{}"), loading(_answer(_nothing)))

    def statistics(self, name: str, version: str) -> Call[tuple[VersionStatistics, ...]]:
        """``GET /v2/models/NAME/stats``, ``GET /v2/models/stats``."""
        if not name:
            return Call(_get("/v2/models/stats"), _of_server(_answer(_read_statistics)))
        return Call(_get(f"{_model(name, version)}/stats"), _answer(_read_statistics))


def ask_endpoints(name: str) -> Call[ModelEndpoints]:
    """``GET /v2/models/NAME/endpoints``."""
    return Call(_get(f"{_model(name, '')}/endpoints"), _answer(_read_endpoints))


def _in_repository(name: str) -> str:
    return f"/v2/repository/models/{quote(name, safe='')}"


def _model(name: str, version: str) -> str:
    path = f"/v2/models/{quote(name, safe='')}"
    return f"{path}/versions/{quote(version, safe='')}" if version else path


def _get(path: str) -> Outgoing:
    return Outgoing(path, method="GET")


def _post(path: str, body: bytes) -> Outgoing:
    return Outgoing(path, body, headers={"content-type": "application/json"})


def _answer(read: Callable[[Incoming], T]) -> Callable[[Incoming], T]:
    """Return ``read`` for answers that are no errors."""

    def checked(incoming: Incoming) -> T:
        if incoming.status >= 400:
            raise _error(incoming)
        if not 200 <= incoming.status < 300:
            place = incoming.headers.get("location")
            raise InvalidAnswer(
                f"the server answered with the HTTP status {incoming.status}"
                + (f" and sends callers on to {place}; give that URL" if place else "")
            )
        return read(incoming)

    return checked


def _of_server(read: Callable[[Incoming], T]) -> Callable[[Incoming], T]:
    """Return ``read`` for a call that names no model: what is not found is the path itself."""

    def named(incoming: Incoming) -> T:
        try:
            return read(incoming)
        except ModelNotFound as error:
            raise MethodNotFound(
                f"{error}; is this a server of the Open Inference Protocol v2?"
            ) from None

    return named


def _error(incoming: Incoming) -> TidegateError:
    message = rest_caller.decode_error(incoming.body)
    text = message or f"the server answered with the HTTP status {incoming.status} and no words"
    if incoming.status == _UNPROCESSABLE and incoming.body.lstrip().startswith(b'{"detail"'):
        # FastAPI's own answer to a request that does not fit its schema (MLServer, KServe).
        return InvalidInput(text)
    error = error_of_http(incoming.status, text)
    wait = incoming.headers.get("retry-after", "")
    if isinstance(error, QueueFull) and wait.isdecimal() and len(wait) <= 6:
        error.retry_after = float(wait)
    return error


def _read_infer(incoming: Incoming) -> InferResponse:
    given = incoming.headers.get(HEADER_LENGTH.lower())
    try:
        length = None if given is None else parse_header_length(given)
    except InvalidInput as error:
        raise InvalidAnswer(f"the answer cannot be read: {error}") from error
    return rest_caller.decode_infer(incoming.body, length)


def _read_model_metadata(incoming: Incoming) -> ModelMetadata:
    return rest_caller.decode_model_metadata(incoming.body)


def _read_server_metadata(incoming: Incoming) -> ServerMetadata:
    return rest_caller.decode_server_metadata(incoming.body)


def _read_index(incoming: Incoming) -> tuple[IndexEntry, ...]:
    return extension_callers.decode_index_body(incoming.body)


def _read_statistics(incoming: Incoming) -> tuple[VersionStatistics, ...]:
    return extension_callers.decode_statistics_body(incoming.body)


def _read_endpoints(incoming: Incoming) -> ModelEndpoints:
    return decode_endpoints(incoming.body)


def _nothing(incoming: Incoming) -> None:
    """Take an answer that says nothing but that it is none of an error."""


def _check_ready(incoming: Incoming) -> None:
    """Read the body too, if there is one: some servers say no with the status 200."""
    try:
        said = orjson.loads(incoming.body) if incoming.body else None
    except orjson.JSONDecodeError:
        return
    if isinstance(said, dict) and False in (said.get("ready"), said.get("live")):
        raise ModelNotReady("the server says that it is not ready")
