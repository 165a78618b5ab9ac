"""What a protocol offers a replica: how its calls are read, and how they are answered.

To add a protocol:

1. Write a package of codecs without I/O, with functions that read a call
   (:data:`ReadMessage`, :data:`ReadCall`) and either answer it from what is known of the model
   (:class:`Reply`) or make a request of it (:class:`Inference`).
2. Say in its :class:`~tidegate.protocols.routing.Routing` where a call names the model. The
   edge's routing script is generated from that.
3. Name its :class:`Dialect` in :mod:`tidegate.protocols.registry`.

The Open Inference Protocol itself is not one: its calls are most of the traffic, and the replica
knows them without looking anything up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from tidegate.protocols.routing import Routing
from tidegate.types import InferRequest, InferResponse, ModelMetadata

Bytes: TypeAlias = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class ModelView:
    """What a codec may know of the model version that is to answer."""

    metadata: ModelMetadata
    version: str
    tasks: frozenset[int] = frozenset()
    """The ids of tasks by which it is known as well."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """The versions of the model by label."""
    limit: int = 2**26
    """The bytes that a message may have, and what a few of them may stand for."""
    takes_payload: bool = False
    """Whether it takes bytes, texts and JSON as they come, and not tensors alone."""


@dataclass(frozen=True, slots=True)
class RestCall:
    """A call over REST."""

    method: str
    path: str
    """As the edge passed it on: without the query, the model's name unescaped."""
    query: str
    headers: Mapping[bytes, bytes]
    """By lower-case name; of a repeated header the last."""
    body: bytes
    """As it was before it was compressed."""


@dataclass(slots=True)
class Reply:
    """An answer. Of a gRPC call only the parts count: those of a serialized message."""

    parts: Sequence[Bytes]
    content_type: bytes = b"application/json"
    status: int = 200
    headers: Sequence[tuple[bytes, bytes]] = ()
    model: str = ""
    """Whom the call was for; empty: whoever it came to."""
    version: str = ""


class Inference(NamedTuple):
    """A request of the model, and how to answer when it has run.

    ``request.model`` is empty where the call names none that the replica should check.
    """

    request: InferRequest
    encode: Callable[[InferResponse], Reply]


ReadMessage: TypeAlias = Callable[[bytes | memoryview, ModelView], Inference | Reply]
"""Reads the message of a gRPC call; raises a ``TidegateError``."""
ReadCall: TypeAlias = Callable[[RestCall, ModelView], Inference | Reply]
"""Reads a call over REST; raises a ``TidegateError``."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """A protocol, as a replica speaks it."""

    name: str
    """As metrics name it, followed by ``-grpc`` or ``-rest``."""
    routing: Routing
    inferences: Mapping[str, ReadMessage] = field(default_factory=dict)
    """The gRPC methods that run the model, by path."""
    questions: Mapping[str, ReadMessage] = field(default_factory=dict)
    """The gRPC methods about the model, by path."""
    paths: tuple[str, ...] = ()
    """How the paths begin that ``read`` is asked about."""
    read: ReadCall | None = None
    """Reads calls over REST. What is sent by POST counts as an inference."""
    encode_error: Callable[[int, str], bytes] | None = None
    """Makes the JSON document that answers an HTTP status and a message over REST."""
    files: Sequence[Any] = ()
    """Descriptors of its protobuf files, for reflection."""

    def has_path(self, path: str) -> bool:
        """Whether ``path`` is one of this protocol's."""
        return path.startswith(self.paths)
