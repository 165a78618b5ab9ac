"""What a controller tells its edge: which replicas there are, and how the server feels."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from tidegate.balancing.verdict import MAX_WEIGHT
from tidegate.protocols.routing import (
    LABEL_PATTERN,
    NAME_PATTERN,
    TASK_PATTERN,
    VERSION_PATTERN,
)

_KEY = re.compile(rf"{NAME_PATTERN}(:{VERSION_PATTERN}|@{LABEL_PATTERN})?")
_TASK = re.compile(TASK_PATTERN)

MAX_SOCKET_PATH = 107
"""Bytes that the path of a Unix socket may have on Linux."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One replica: the path of its Unix socket and its share of the calls."""

    socket: str
    weight: int = 100

    def __post_init__(self) -> None:
        check_socket_path(self.socket)
        if not 1 <= self.weight <= MAX_WEIGHT:
            raise ValueError(
                f"the weight of {self.socket} is {self.weight}: use 1 to {MAX_WEIGHT}, "
                "and leave out a replica that is to get no calls"
            )


@dataclass(frozen=True, slots=True)
class Topology:
    """All that an edge must know of a node, at one moment.

    Attributes:
        clusters: the replicas of each model and version. The key ``digits`` is the default
            version of the model, ``digits:2`` a version asked for by its number,
            ``digits@stable`` one asked for by a label. A model that is to get no calls is left
            out; an empty tuple is an error, because it would turn a living model into one
            without replicas.
        ready: the answer of ``/v2/health/ready``: 200 or 503. ``/v2/health/live`` is 200.
        server_metadata: the JSON body of ``GET /v2``.
        sole: the one model that there is, when a single version of it is all that is served.
            Its replicas get the calls over gRPC unread, and refuse other names themselves.
        tasks: the model of each task's id, by which clients of dl_inference know it.

    Raises:
        ValueError: a key, a weight or a socket's path is not possible.
    """

    clusters: Mapping[str, tuple[Endpoint, ...]]
    ready: bool
    server_metadata: bytes
    sole: str | None = None
    tasks: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key, endpoints in self.clusters.items():
            if not _KEY.fullmatch(key):
                raise ValueError(f"{key!r} is not a model's name with, or without, a version")
            if not endpoints:
                raise ValueError(f"{key} has no endpoint: leave out a model without replicas")
            if len({endpoint.socket for endpoint in endpoints}) != len(endpoints):
                raise ValueError(f"{key} has two endpoints with the same socket")
        if self.sole is not None and self.sole not in self.clusters:
            raise ValueError(f"{self.sole!r} cannot be the sole model: it is none of the clusters")
        for task, model in self.tasks.items():
            if not _TASK.fullmatch(task) or model not in self.clusters:
                raise ValueError(
                    f"the task {task!r} cannot lead to {model!r}, which is no cluster"
                )

    @property
    def models(self) -> tuple[str, ...]:
        """The names of all models."""
        return tuple(dict.fromkeys(re.split("[:@]", key)[0] for key in self.clusters))


def check_socket_path(path: str) -> None:
    """Refuse a path that the operating system would not take for a Unix socket.

    Raises:
        ValueError: the path is longer than 107 bytes.
    """
    size = len(path.encode())
    if size > MAX_SOCKET_PATH:
        raise ValueError(
            f"the socket's path {path} has {size} bytes, and the system allows "
            f"{MAX_SOCKET_PATH}: choose a shorter run directory"
        )
