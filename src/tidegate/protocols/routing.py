"""What an edge must know of a protocol to route a call without decoding it.

The edge's routing script is generated from these facts, so the two cannot drift.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from tidegate.errors import InvalidInput

MODEL_HEADER = "tidegate-model"
"""Names the model where the message cannot be read: a compressed message or a stream."""
VERSION_HEADER = "tidegate-version"
"""The version that goes with :data:`MODEL_HEADER`; optional."""
ONLY_HEADER = "tidegate-only"
"""The one model that a call may be for: a gateway says so of a message that it has not read.

It stands for :data:`~tidegate.protocols.load_reports.ASK_HEADER`, too."""

NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
"""A model's name: of letters, digits, '.', '_' and '-', at most 128 of them."""
VERSION_PATTERN = r"[1-9][0-9]{0,17}"
"""A version: a positive decimal number."""

LABEL_PATTERN = NAME_PATTERN
"""What a version may be called beside its number."""
TASK_PATTERN = r"[0-9]{1,18}"
"""The id of a task, by which dl_inference's clients know a model."""

_NAME, _VERSION = re.compile(NAME_PATTERN), re.compile(VERSION_PATTERN)
_SHOWN = 64


@dataclass(frozen=True, slots=True)
class RoutedMethod:
    """A unary gRPC method, and where a call of it names the model.

    Where are paths of protobuf field numbers from the message down to the value; an empty one
    says that the message has no such thing.
    """

    path: str
    model: tuple[int, ...] = ()
    """To the model's name."""
    version: tuple[int, ...] = ()
    """To the version, as text."""
    number: tuple[int, ...] = ()
    """To the version, as a number (a varint)."""
    label: tuple[int, ...] = ()
    """To a label of a version."""
    tags: tuple[int, ...] = ()
    """To a map of strings to ``google.protobuf.Value``, one of which may be a task's id."""
    task_keys: tuple[str, ...] = ()
    """The keys in this map that name a task."""
    task_in_name: bool = False
    """Whether the digits after a name's last ``-`` are a task's id, if no model has that name."""
    header: str = ""
    """Names the model where the message does not; without it the only one that there is."""
    server: bool = False
    """Whether a message that names no model is about the whole server: the controller answers."""


@dataclass(frozen=True, slots=True)
class RoutedPath:
    """A REST path for all models: ``header`` names one, and without it there must be only one."""

    path: str
    header: str


@dataclass(frozen=True, slots=True)
class RoutedPrefix:
    """A family of REST paths ``PREFIX{model}[/versions/{version}][/verb]``."""

    prefix: str
    skipped: int = 0
    """Segments between the prefix and the name, which say nothing of the model."""
    colon: bool = False
    """Whether a verb follows a colon, as in ``/v1/models/m:predict``."""
    labels: bool = False
    """Whether ``/labels/{label}`` may stand for a version."""
    server_verbs: tuple[str, ...] = ()
    """What follows a model, as ``/stats``, where the controller answers and no replica."""
    passed_verbs: tuple[str, ...] = ()
    """Those of them that a gateway passes on to the servers of the model."""


@dataclass(frozen=True, slots=True)
class Routing:
    """All that an edge knows of one protocol."""

    methods: tuple[RoutedMethod, ...]
    """gRPC methods that a replica answers."""
    prefixes: tuple[RoutedPrefix, ...]
    """REST paths that a replica answers."""
    server_methods: tuple[str, ...] = ()
    """gRPC methods about the whole server, streams included: the controller answers."""
    server_paths: tuple[str, ...] = ()
    """REST paths that the controller answers; all below one that ends with a slash."""
    paths: tuple[RoutedPath, ...] = ()
    """REST paths that a replica answers and that name no model."""
    passed_methods: tuple[RoutedMethod, ...] = ()
    """Those of ``server_methods`` that a gateway passes on to the servers of the model."""


def passing_on(routing: Routing) -> Routing:
    """Return what the edge of a gateway must know of a protocol.

    There the controller answers for the gateway, and for a model its servers do.
    """
    passed = {method.path for method in routing.passed_methods}
    return replace(
        routing,
        methods=routing.methods + routing.passed_methods,
        server_methods=tuple(path for path in routing.server_methods if path not in passed),
        prefixes=tuple(
            replace(
                prefix,
                server_verbs=tuple(
                    verb for verb in prefix.server_verbs if verb not in prefix.passed_verbs
                ),
            )
            for prefix in routing.prefixes
        ),
    )


def check_model(name: str, version: str = "") -> None:
    """Refuse what can be no model's name and no version; an empty version is the default one.

    Raises:
        InvalidInput: in the words of the edge's routing script.
    """
    if not name:
        raise InvalidInput("the message has no model name")
    if not _NAME.fullmatch(name):
        raise InvalidInput(
            f"'{_shown(name)}' cannot be the name of a model: use letters, digits, '.', '_' and "
            "'-', at most 128 of them, a letter or digit first"
        )
    if version and not _VERSION.fullmatch(version):
        raise InvalidInput(
            f"'{_shown(version)}' is not a version: it is a positive whole number, as 2"
        )


def _shown(text: str) -> str:
    text = re.sub("[^ -~]", "?", text)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
