"""One exchange with a server, before any I/O: what goes out, and how to read what comes back.

A :class:`Dialect` makes calls, a transport carries them, and neither knows the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from tidegate.errors import InferenceFailed, InvalidInput, LoadFailed, Quarantined
from tidegate.protocols.open_inference.repository import IndexEntry
from tidegate.protocols.open_inference.statistics import VersionStatistics
from tidegate.types import InferRequest, InferResponse, ModelMetadata, ServerMetadata

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A request: ``target`` is a path with its leading slash, over HTTP and gRPC alike."""

    target: str
    body: bytes = b""
    method: str = "POST"
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Incoming:
    """An answer: ``status`` is HTTP's or gRPC's, ``message`` what gRPC says of an error.

    ``headers`` have names in lower case.
    """

    status: int
    body: bytes = b""
    message: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """What goes out, and what the answer to it means.

    ``read`` raises the error that the server answered with, or InvalidAnswer.
    """

    outgoing: Outgoing
    read: Callable[[Incoming], T]


class Dialect(Protocol):
    """The calls of the Open Inference Protocol v2, in the form of one transport."""

    def infer(self, request: InferRequest) -> Call[InferResponse]:
        """Run a model once."""

    def model_metadata(self, name: str, version: str) -> Call[ModelMetadata]:
        """Ask what a model takes and gives."""

    def server_metadata(self) -> Call[ServerMetadata]:
        """Ask what the server is."""

    def live(self) -> Call[None]:
        """Ask whether the server is up; the error says why not."""

    def ready(self) -> Call[None]:
        """Ask whether every model can be called; the error says why not."""

    def model_ready(self, name: str, version: str) -> Call[None]:
        """Ask whether a model can be called; the error says why not."""

    def index(self, ready: bool) -> Call[tuple[IndexEntry, ...]]:
        """Ask which models the server's repository has."""

    def load(self, name: str) -> Call[None]:
        """Have a model loaded."""

    def unload(self, name: str) -> Call[None]:
        """Have a model unloaded."""

    def statistics(self, name: str, version: str) -> Call[tuple[VersionStatistics, ...]]:
        """Ask what a model, or all of them, has done."""


def loading(read: Callable[[Incoming], object]) -> Callable[[Incoming], None]:
    """Return ``read`` for a call that loads or unloads a model."""

    def checked(incoming: Incoming) -> None:
        try:
            read(incoming)
        except (InvalidInput, InferenceFailed, Quarantined) as error:
            # The status says no more than that it did not work; nothing was run.
            raise LoadFailed(str(error)) from None

    return checked
