"""What a client does, as steps that a driver takes: the one source of both faces.

A function here is a generator. It yields what is to be sent, or a pause, and is sent the
answer; a driver that blocks and one that awaits run the same steps. No I/O happens here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Protocol, TypeAlias

from tidegate.client.calls import Call, Dialect, Incoming, Outgoing, T
from tidegate.client.connection import Connection
from tidegate.client.result import InferResult
from tidegate.client.values import needs_signature, tensors_of
from tidegate.clock import Clock
from tidegate.errors import (
    ConnectionLost,
    DeadlineExceeded,
    InvalidInput,
    MethodNotFound,
    ModelNotFound,
    ModelNotReady,
    QueueFull,
    ServerUnreachable,
)
from tidegate.protocols.open_inference.repository import IndexEntry
from tidegate.protocols.open_inference.statistics import VersionStatistics
from tidegate.types import (
    InferRequest,
    ModelMetadata,
    Parameter,
    RequestedOutput,
    ServerMetadata,
)

_NOT_NOW = (
    ConnectionLost,
    DeadlineExceeded,
    InvalidInput,  # what Triton answers for a model that is not loaded (400)
    MethodNotFound,  # an edge that has no server behind it yet
    ModelNotFound,
    ModelNotReady,
    QueueFull,
    ServerUnreachable,
)
"""What says that a server or a model cannot be called now, but may be later."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 0.5
_LONGEST_ASK = 5.0
"""Seconds that one question for readiness may take."""
_MOST_REMEMBERED = 1024
PATIENCE = 0.75


@dataclass(frozen=True, slots=True)
class Ask:
    """Send this; ``timeout`` is in seconds and may be infinite.

    It goes to the client's own server, or over ``connection`` to another. As often as the answer
    has kept the call waiting for :data:`PATIENCE` seconds, ``worry`` is done.
    """

    outgoing: Outgoing
    timeout: float
    connection: Connection | None = None
    worry: Beside | None = None


@dataclass(frozen=True, slots=True)
class Pause:
    """Do nothing for so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Beside:
    """Take the steps of ``begin`` beside this call, once at a time for all calls with ``key``.

    Go on after ``wait`` seconds, or sooner if they have come to their end.
    """

    key: str
    begin: Callable[[], Steps[None]]
    wait: float = 0.0


@dataclass(frozen=True, slots=True)
class Retire:
    """Close these connections to other servers, which no call needs any more."""

    gone: tuple[Connection, ...]


Steps: TypeAlias = Generator[Ask | Pause | Beside | Retire, Incoming | None, T]


class Route(Protocol):
    """Takes a call about a model to who has that model."""

    def ask(self, model: str, version: str, call: Call[T], timeout: float) -> Steps[T]:
        """Send the call and return what the answer means."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """An inference as the caller asked for it."""

    model: str
    version: str
    inputs: object
    outputs: Sequence[str] = ()
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    id: str = ""


class Conversation:
    """The steps of every call, and what is remembered of the models."""

    def __init__(self, dialect: Dialect, clock: Clock, route: Route | None = None) -> None:
        self._dialect = dialect
        self._clock = clock
        self._route = route
        self._known: dict[tuple[str, str], ModelMetadata] = {}
        self._lock = threading.Lock()

    def infer(self, wanted: Wanted, timeout: float) -> Steps[InferResult]:
        """Run a model once; ask what it takes before, if that has to be known."""
        end = self._clock.now() + timeout
        if not needs_signature(wanted.inputs):
            return (yield from self._infer(wanted, None, timeout))
        known = self._known.get((wanted.model, wanted.version))
        if known is not None:
            try:
                return (yield from self._infer(wanted, known, timeout))
            except InvalidInput:
                # The model may have been replaced by one that takes something else.
                asked = yield from self.model_metadata(
                    wanted.model, wanted.version, self._left(end, timeout)
                )
                if asked.signature == known.signature:
                    raise
        else:
            asked = yield from self.model_metadata(wanted.model, wanted.version, timeout)
        return (yield from self._infer(wanted, asked, self._left(end, timeout)))

    def _infer(
        self, wanted: Wanted, known: ModelMetadata | None, timeout: float
    ) -> Steps[InferResult]:
        request = InferRequest(
            wanted.model,
            wanted.version,
            wanted.id,
            tensors_of(wanted.model, wanted.inputs, known.signature if known else None),
            tuple(RequestedOutput(name) for name in wanted.outputs),
            wanted.parameters,
        )
        call = self._dialect.infer(request)
        return InferResult(
            (yield from self._ask_model(wanted.model, wanted.version, call, timeout))
        )

    def model_metadata(self, name: str, version: str, timeout: float) -> Steps[ModelMetadata]:
        """Ask what a model takes and gives, and remember it."""
        call = self._dialect.model_metadata(name, version)
        found = yield from self._ask_model(name, version, call, timeout)
        with self._lock:
            if len(self._known) >= _MOST_REMEMBERED:
                self._known.clear()
            self._known[name, version] = found
        return found

    def server_metadata(self, timeout: float) -> Steps[ServerMetadata]:
        """Ask what the server is."""
        return (yield from self._ask(self._dialect.server_metadata(), timeout))

    def index(self, ready: bool, timeout: float) -> Steps[tuple[IndexEntry, ...]]:
        """Ask which models the server's repository has."""
        return (yield from self._ask(self._dialect.index(ready), timeout))

    def load(self, name: str, timeout: float) -> Steps[None]:
        """Have a model loaded."""
        return (yield from self._ask(self._dialect.load(name), timeout))

    def unload(self, name: str, timeout: float) -> Steps[None]:
        """Have a model unloaded."""
        return (yield from self._ask(self._dialect.unload(name), timeout))

    def statistics(
        self, name: str, version: str, timeout: float
    ) -> Steps[tuple[VersionStatistics, ...]]:
        """Ask what a model, or all of them, has done."""
        call = self._dialect.statistics(name, version)
        return (yield from self._ask_model(name, version, call, timeout))

    def live(self, timeout: float) -> Steps[bool]:
        """Ask whether the server is up."""
        return (yield from self._whether("", "", self._dialect.live(), timeout))

    def ready(self, model: str | None, version: str, timeout: float) -> Steps[bool]:
        """Ask whether a model, or every one, can be called."""
        call = self._ready(model, version)
        return (yield from self._whether(model or "", version, call, timeout))

    def wait_ready(self, model: str | None, version: str, timeout: float) -> Steps[None]:
        """Ask again and again, until the answer is yes."""
        end = self._clock.now() + timeout
        pause = _FIRST_PAUSE
        while True:
            left = max(end - self._clock.now(), _FIRST_PAUSE)
            call = self._ready(model, version)
            try:
                return (
                    yield from self._ask_model(model or "", version, call, min(left, _LONGEST_ASK))
                )
            except _NOT_NOW as error:
                reason = error
            if self._clock.now() + pause >= end:
                what = "the server" if model is None else f"model {model!r}"
                raise DeadlineExceeded(
                    f"{what} is not ready after {timeout:.3g} s: {reason}"
                ) from reason
            yield Pause(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _ready(self, model: str | None, version: str) -> Call[None]:
        if model is None:
            return self._dialect.ready()
        return self._dialect.model_ready(model, version)

    def _ask(self, call: Call[T], timeout: float) -> Steps[T]:
        return (yield from asked(call, timeout, self._clock))

    def _ask_model(self, name: str, version: str, call: Call[T], timeout: float) -> Steps[T]:
        """Ask about a model; without a name, about the server."""
        if self._route is None or not name:
            return (yield from self._ask(call, timeout))
        return (yield from self._route.ask(name, version, call, timeout))

    def _whether(self, model: str, version: str, call: Call[None], timeout: float) -> Steps[bool]:
        try:
            yield from self._ask_model(model, version, call, timeout)
        except _NOT_NOW:
            return False
        return True

    def _left(self, end: float, timeout: float) -> float:
        left = end - self._clock.now()
        if left <= 0:
            raise DeadlineExceeded(
                f"the {timeout:.3g} s of the call had passed before it could be sent; "
                "give a longer timeout"
            )
        return left


def asked(
    call: Call[T], timeout: float, clock: Clock, connection: Connection | None = None
) -> Steps[T]:
    """Send one call and return what the answer means."""
    end = clock.now() + timeout
    try:
        incoming = yield Ask(call.outgoing, timeout, connection)
    except ConnectionLost:
        # A server may close an idle connection at the moment that it is used again; what
        # changes nothing can be sent twice.
        if call.outgoing.method != "GET" or clock.now() >= end:
            raise
        incoming = yield Ask(call.outgoing, end - clock.now(), connection)
    assert incoming is not None
    return call.read(incoming)


def checked_timeout(timeout: float | None, default: float) -> float:
    """Return the seconds that a call may take; ``None`` means the default.

    Raises:
        InvalidInput: it is no number above 0.
    """
    if timeout is None:
        return default
    given: Any = timeout
    if not isinstance(given, Real) or not timeout > 0:
        raise InvalidInput(
            f"timeout is {timeout!r}; give seconds above 0, or math.inf to wait for ever"
        )
    return timeout
