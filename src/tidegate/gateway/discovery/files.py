"""Files that are followed as they change: lists of endpoints, and dl_inference's nodefile."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Generic, TypeAlias, TypeVar

from tidegate.config.nodefile import LARGEST_NODEFILE, NodefileTask, parse_nodefile
from tidegate.errors import ConfigurationError
from tidegate.gateway.discovery.endpoint_list import LARGEST_FILE, parse_endpoints
from tidegate.gateway.discovery.source import EndpointReport, Problem, Report, Sleep, Tell
from tidegate.gateway.endpoints import Traits

T = TypeVar("T")

_TICK = 0.5
"""Seconds between looks at a file."""
_QUIET = 0.25
"""A file that is being written is read when nobody has written to it for so many seconds."""

_State: TypeAlias = tuple[int, ...] | None
"""What changes with the content of a file; ``None``: there is none, or it could not be read."""


@dataclass(frozen=True, slots=True)
class WatchedFile(Generic[T]):
    """Reads a file, and again whenever it changes.

    A change counts when it is whole: nobody has written to the file for a moment.

    It is looked at again and again, rather than having the system tell of changes: that takes an
    inotify instance for every file, of which a user has 128 for all processes, Envoy among them,
    and misses network file systems and targets of links. A look costs 0.1 ms.
    """

    path: Path
    parse: Callable[[bytes, str], T]
    """Bytes and path to what they say; raises ConfigurationError."""
    largest: int
    """Bytes; nothing is read of a larger file."""
    tick: float = _TICK
    quiet: float = _QUIET
    sleep: Sleep = asyncio.sleep
    wall: Callable[[], float] = time.time

    async def follow(self, found: Callable[[T], None], failed: Callable[[str], None]) -> None:
        """Call ``found`` with each content and ``failed`` with each mistake, until cancelled.

        The same content is not told twice in a row, but after a failure it is told again.
        """
        told: bytes | str | None = None
        state: _State = None
        while True:
            now = await asyncio.to_thread(self._look)
            if now is None or now != state:
                if now is not None and told is not None:
                    await self._settle(now)
                state, content = await asyncio.to_thread(self._read)
                if content != told:
                    told = content
                    await self._tell(content, found, failed)
            await self.sleep(self.tick)

    async def _tell(
        self, content: bytes | str, found: Callable[[T], None], failed: Callable[[str], None]
    ) -> None:
        if isinstance(content, str):
            failed(content)
            return
        try:
            # In a thread: a long list of YAML takes a second.
            result = await asyncio.to_thread(self.parse, content, str(self.path))
        except ConfigurationError as error:
            failed(str(error))
        else:
            found(result)

    async def _settle(self, state: _State) -> None:
        """Wait until nobody writes to the file any more."""
        while state is not None and self.wall() - state[2] / 1e9 < self.quiet:
            await self.sleep(self.quiet)
            again = await asyncio.to_thread(self._look)
            if again == state:
                return
            state = again

    def _look(self) -> _State:
        try:
            return _state(self.path.stat())
        except (OSError, ValueError):
            return None

    def _read(self) -> tuple[_State, bytes | str]:
        """Return the state before reading, and the content or what is wrong with it."""
        try:
            # Opening a pipe would wait for who writes into it.
            if not self.path.is_file() and self.path.exists():
                return None, f"{self.path}: is not a file"
            with self.path.open("rb") as file:
                state = _state(os.fstat(file.fileno()))
                content = file.read(self.largest + 1)
        except FileNotFoundError:
            return None, f"{self.path}: there is no such file (yet)"
        except (OSError, ValueError) as error:
            return (
                None,
                f"{self.path}: cannot be read: {getattr(error, 'strerror', None) or error}",
            )
        if len(content) > self.largest:
            return state, f"{self.path}: larger than {self.largest // 2**20} MiB; not read"
        return state, content


def _state(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


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
