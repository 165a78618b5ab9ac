"""Files that are followed as they change: lists of endpoints, and dl_inference's nodefile."""

from __future__ import annotations

import asyncio
import os
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

from tidegate.config.nodefile import LARGEST_NODEFILE, NodefileTask, parse_nodefile
from tidegate.errors import ConfigurationError
from tidegate.gateway.discovery.endpoint_list import LARGEST_FILE, parse_endpoints
from tidegate.gateway.discovery.source import EndpointReport, Problem, Report, Sleep, Tell
from tidegate.gateway.endpoints import Traits
from tidegate.repository.watching import changes

T = TypeVar("T")

_TICK = 5.0
"""Seconds until a change is seen of which no notification tells: a network file system's."""
_QUIET = 0.25
"""A file that is being written is read when nobody has written to it for so many seconds."""


@dataclass(frozen=True, slots=True)
class WatchedFile(Generic[T]):
    """Reads a file, and again whenever it changes.

    A change counts when it is whole: the file is the same for a moment. One that is replaced
    (``mv``, an editor, a ConfigMap of Kubernetes) is read at once or soon after.
    """

    path: Path
    parse: Callable[[bytes, str], T]
    """Bytes and path to what they say; raises ConfigurationError."""
    largest: int
    """Bytes; nothing is read of a larger file."""
    tick: float = _TICK
    sleep: Sleep = asyncio.sleep
    wall: Callable[[], float] = time.time

    async def follow(self, found: Callable[[T], None], failed: Callable[[str], None]) -> None:
        """Call ``found`` with each content and ``failed`` with each mistake, until cancelled.

        The same content is not told twice in a row, but after a failure it is told again.
        """
        settled: bytes | str | None = None
        watching = changes(self.path.absolute().parent, tick=self.tick, recursive=False)
        try:
            async for _ in watching:
                look = await self._settled(first=settled is None)
                if look == settled:
                    continue
                settled = look
                if isinstance(look, str):
                    failed(look)
                    continue
                try:
                    # In a thread: a long list of YAML takes a second.
                    result = await asyncio.to_thread(self.parse, look, str(self.path))
                except ConfigurationError as error:
                    failed(str(error))
                else:
                    found(result)
        finally:
            await watching.aclose()

    async def _settled(self, *, first: bool) -> bytes | str:
        """Return the file's content when nobody writes to it, or why it cannot be read."""
        look, changed = await asyncio.to_thread(self._read)
        if first:
            return look
        while self.wall() - changed < _QUIET:
            await self.sleep(_QUIET)
            again, changed_again = await asyncio.to_thread(self._read)
            if (again, changed_again) == (look, changed):
                break
            look, changed = again, changed_again
        return look

    def _read(self) -> tuple[bytes | str, float]:
        """Return the content or what is wrong, and when it changed in seconds of the epoch."""
        try:
            # Not blocking: opening a pipe would wait for who writes into it.
            opened = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return f"{self.path}: there is no such file (yet); what was known last stays", 0.0
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            return f"{self.path}: cannot be read: {reason}", 0.0
        try:
            state = os.fstat(opened)
            if not stat.S_ISREG(state.st_mode):
                return f"{self.path}: is not a file; put a list into one", 0.0
            with open(opened, "rb", closefd=False) as file:
                content = file.read(self.largest + 1)
        except OSError as error:
            return f"{self.path}: cannot be read: {error.strerror}", 0.0
        finally:
            os.close(opened)
        if len(content) > self.largest:
            return f"{self.path}: larger than {self.largest // 2**20} MiB; not read", 0.0
        return content, state.st_mtime


@dataclass(frozen=True, slots=True)
class EndpointFile:
    """A :class:`~tidegate.gateway.discovery.source.Source`: a list of endpoints in a file.

    :mod:`tidegate.gateway.discovery.endpoint_list` says what may stand in it. A mistake in it,
    or its removal, leaves the endpoints that it held last.
    """

    path: Path
    traits: Traits = field(default_factory=Traits)
    """What its endpoints are where the file says nothing else."""
    tick: float = _TICK

    async def follow(self, tell: Tell, problem: Problem) -> None:
        """Read it; see :class:`~tidegate.gateway.discovery.source.Source`."""
        report = EndpointReport(tell, problem)
        parse = partial(parse_endpoints, traits=self.traits)
        file = WatchedFile(self.path, parse, LARGEST_FILE, self.tick)
        await file.follow(report.found, report.failed)


@dataclass(frozen=True, slots=True)
class Nodefile:
    """The tasks of dl_inference's ``nodefile.txt``, followed as it changes."""

    path: Path
    tick: float = _TICK

    async def follow(
        self, tell: Callable[[tuple[NodefileTask, ...]], None], problem: Problem
    ) -> None:
        """Tell all tasks whenever one has changed, until cancelled; as a source does."""
        report: Report[tuple[NodefileTask, ...]] = Report(tell, problem, ())
        file = WatchedFile(self.path, parse_nodefile, LARGEST_NODEFILE, self.tick)
        await file.follow(report.found, report.failed)
