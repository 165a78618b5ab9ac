"""How calls about the whole server are told apart and answered, on either port.

An *extension* of the protocol is a set of REST endpoints and gRPC methods that belong together.
What is served, what ``GET /v2`` names and what ``/openapi.json`` describes are all read from the
extensions that there are.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias
from urllib.parse import unquote

from tidegate.errors import InvalidInput, MethodNotAllowed, MethodNotFound, QueueFull
from tidegate.protocols.dialect import Reply
from tidegate.protocols.routing import check_model
from tidegate.replica.streams import Outgoing, StreamHandler

_MOST_STREAMS = 1024
"""Each has a connection of its own; a controller must not run out of them."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call: ``body`` is a JSON document, or the message of a gRPC method.

    ``parameters`` are what the path names. ``trusted`` says that it came by the admin port.
    ``accept`` is what a REST call says of the answer that it wants.
    """

    body: bytes
    trusted: bool
    parameters: Mapping[str, str] = field(default_factory=dict)
    accept: bytes = b""


Answer: TypeAlias = Callable[[Call], Awaitable[bytes]]
"""Returns the JSON document or the message to answer with, or raises a ``TidegateError``."""
RestAnswer: TypeAlias = Callable[[Call], Awaitable[bytes | Reply]]
"""The same over REST, where an answer may be something else than JSON."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One REST call.

    ``path`` is a template, as ``/v2/models/{model}/stats``. ``takes`` and ``gives`` are JSON
    schemas of the bodies, for its description; ``takes`` is empty where there is none.
    """

    method: str
    path: str
    answer: RestAnswer
    summary: str
    gives: Mapping[str, object] = field(default_factory=dict)
    takes: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Extension:
    """Endpoints and methods that belong together; ``names`` are those of the protocol."""

    names: tuple[str, ...] = ()
    endpoints: Sequence[Endpoint] = ()
    methods: Mapping[str, Answer] = field(default_factory=dict)
    streams: Mapping[str, Callable[[Outgoing], StreamHandler]] = field(default_factory=dict)
    """gRPC methods with streams, by path: what begins a call."""


class ServerCalls:
    """All calls that the controller answers, by path."""

    def __init__(self, extensions: Iterable[Extension]) -> None:
        self.extensions = tuple(extensions)
        self._methods = {p: a for e in self.extensions for p, a in e.methods.items()}
        self._streams = {p: b for e in self.extensions for p, b in e.streams.items()}
        self._open_streams = 0
        self._paths: dict[str, dict[str, Endpoint]] = {}
        for extension in self.extensions:
            for endpoint in extension.endpoints:
                self._paths.setdefault(endpoint.path, {})[endpoint.method] = endpoint
        self._patterns = [(_pattern(path), path) for path in self._paths]

    @property
    def endpoints(self) -> list[Endpoint]:
        """All REST calls."""
        return [endpoint for extension in self.extensions for endpoint in extension.endpoints]

    async def answer_method(self, path: str, message: bytes, *, trusted: bool) -> bytes:
        """Answer a gRPC call.

        Raises:
            TidegateError: it is not answered.
        """
        answer = self._methods.get(path)
        if answer is None:
            raise MethodNotFound(f"there is no method {path} here")
        return await answer(Call(message, trusted))

    def has_method(self, path: str) -> bool:
        """Whether there is this gRPC method."""
        return path in self._methods

    def has_stream(self, path: str) -> bool:
        """Whether there is this gRPC method, with streams."""
        return path in self._streams

    def open_stream(self, path: str, outgoing: Outgoing) -> StreamHandler | None:
        """Begin a call of a streaming method; ``None`` when there is no such method."""
        begin = self._streams.get(path)
        if begin is None:
            return None
        if self._open_streams >= _MOST_STREAMS:
            outgoing.end(QueueFull(f"{_MOST_STREAMS} streams are open, which is the limit"))
            return _Nobody()
        self._open_streams += 1
        return _Counted(begin(outgoing), self._stream_ended)

    def _stream_ended(self) -> None:
        self._open_streams -= 1

    async def answer_path(
        self, method: str, path: str, body: bytes, *, trusted: bool, accept: bytes = b""
    ) -> Reply:
        """Answer a REST call, with a JSON document unless it ``accept``s something better.

        Raises:
            TidegateError: it is not answered.
        """
        for pattern, template in self._patterns:
            match = pattern.fullmatch(path)
            if match is None:
                continue
            endpoints = self._paths[template]
            endpoint = endpoints.get("GET" if method == "HEAD" else method)
            if endpoint is None:
                wanted = tuple(sorted(endpoints))
                words = f"{path} takes {' or '.join(wanted)}, not {method}"
                raise MethodNotAllowed(words, wanted)
            answer = await endpoint.answer(Call(body, trusted, _parameters(match), accept))
            return answer if isinstance(answer, Reply) else Reply([answer])
        raise MethodNotFound(f"there is no path {path} here")


class _Counted:
    """A stream that is counted until it has ended."""

    def __init__(self, handler: StreamHandler, ended: Callable[[], None]) -> None:
        self.message = handler.message
        self.half_closed = handler.half_closed
        self._gone = handler.gone
        self._ended = ended

    def gone(self) -> None:
        """The call has ended."""
        self._ended()
        self._gone()


class _Nobody:
    """Takes what comes after a refusal."""

    def message(self, message: bytes) -> None:
        """Drop it."""

    def half_closed(self) -> None:
        """Nothing is to be done."""

    def gone(self) -> None:
        """Nothing is to be done."""


def _pattern(template: str) -> re.Pattern[str]:
    parts = re.split(r"\{(\w+)\}", template)
    parts[::2] = map(re.escape, parts[::2])
    parts[1::2] = [f"(?P<{name}>[^/]+)" for name in parts[1::2]]
    return re.compile("".join(parts))


def _parameters(match: re.Match[str]) -> dict[str, str]:
    try:
        found = {name: unquote(text, errors="strict") for name, text in match.groupdict().items()}
    except UnicodeDecodeError as error:
        raise InvalidInput(f"the path {match[0]!r} is not UTF-8: {error}") from error
    if "model" in found:
        check_model(found["model"], found.get("version", ""))
    return found
