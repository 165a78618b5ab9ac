"""What an edge must know of a protocol to route a call without decoding it.

The edge's routing script is generated from these facts, so the two cannot drift.
"""

from __future__ import annotations

from dataclasses import dataclass

MODEL_HEADER = "tidegate-model"
"""Names the model where the message cannot be read: a compressed message or a stream."""
VERSION_HEADER = "tidegate-version"
"""The version that goes with :data:`MODEL_HEADER`; optional."""

NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
"""A model's name: of letters, digits, '.', '_' and '-', at most 128 of them."""
VERSION_PATTERN = r"[1-9][0-9]{0,17}"
"""A version: a positive decimal number."""


@dataclass(frozen=True, slots=True)
class RoutedMethod:
    """A unary gRPC method whose message names the model.

    ``model`` and ``version`` are paths of protobuf field numbers from the message down to
    the string; ``version`` is empty when the message has none.
    """

    path: str
    model: tuple[int, ...]
    version: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class RoutedPrefix:
    """A family of REST paths ``PREFIX{model}[/versions/{version}][/verb]``."""

    prefix: str


@dataclass(frozen=True, slots=True)
class Routing:
    """All that an edge knows of one protocol."""

    methods: tuple[RoutedMethod, ...]
    """gRPC methods that a replica answers."""
    prefixes: tuple[RoutedPrefix, ...]
    """REST paths that a replica answers."""
    server_methods: tuple[str, ...]
    """gRPC methods about the whole server: the controller answers."""
