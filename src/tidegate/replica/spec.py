"""What a replica is told when it starts, and what it says when it is ready."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from tidegate.config.model import ModelConfig
from tidegate.telemetry.logs import LogSettings

THREAD_STACK = 4 * 2**20
"""Bytes of the stack of a thread, which count as memory before they are used."""


class ReplicaSpec(BaseModel):
    """Everything one replica needs to know; written to a file by who starts it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: int
    """Unlike that of any other replica of the node, ever."""
    index: int
    """Its place among the replicas of its model's version, from 0."""
    fingerprint: str
    """The content of the model's files that it serves."""
    model: str
    version: int
    path: Path
    folder: Path | None = None
    """The model's folder, whose code and samples belong to it; ``None`` for a bare file."""
    runtime: str
    config: ModelConfig
    socket: Path
    lifeline: Path
    """Locked as long as the node lives; see :mod:`tidegate.replica.lifeline`."""
    threads: int
    max_message_size: int
    drain_timeout: float
    idle_timeout: float = 60.0
    log: Path | None = None
    """Its output, which it rotates."""
    log_settings: LogSettings = LogSettings()
    otlp_endpoint: str | None = None
    """The collector that gets its traces."""
    notices: Path
    """See :class:`tidegate.replica.notices.Notices`."""

    regions: Path | None = None
    """The register of shared memory; see :mod:`tidegate.replica.regions`."""

    @property
    def flight(self) -> Path:
        """Where the flight recorder lies."""
        return self.socket.with_suffix(".flight")

    @property
    def last_words(self) -> Path:
        """Where it leaves what it has counted when it ends in order."""
        return self.socket.with_suffix(".stats")


class Ready(BaseModel):
    """The replica is warm and listens."""

    event: Literal["ready"] = "ready"
    pid: int
    platform: str
    device: str
    batching: bool
    max_batch_size: int
    python: str = ""
    """The version of the interpreter."""
    seconds: float
    """From the start of the process."""


class Failed(BaseModel):
    """The replica could not load its model."""

    event: Literal["failed"] = "failed"
    kind: str
    """The name of the error's class."""
    reason: str
