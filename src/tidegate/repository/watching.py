"""When a repository has changed, and when a change is complete."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from pathlib import Path

import watchfiles

from tidegate.repository.entries import ModelEntry, Repository

_DEBOUNCE_MS = 1600
_STEP_MS = 200


async def changes(root: Path, *, tick: float = 10.0) -> AsyncGenerator[None, None]:
    """Yield at once, after each burst of changes below ``root``, and every ``tick`` seconds.

    The first tells what changed between an earlier scan and this call.

    The tick sees what no notification tells: a network file system, the target of a link,
    a root that was away. Where the system gives no more notifications, the folder is
    polled.
    """
    yield
    poll = False
    while True:
        try:
            async for _ in watchfiles.awatch(
                root,
                watch_filter=None,
                debounce=_DEBOUNCE_MS,
                step=_STEP_MS,
                rust_timeout=int(tick * 1000),
                yield_on_timeout=True,
                force_polling=poll or None,
                poll_delay_ms=1000,
                ignore_permission_denied=True,
            ):
                yield
        except (OSError, RuntimeError):
            # The inotify limits are used up: poll. The root has gone: tick.
            if poll:
                await asyncio.sleep(tick)
                yield
            poll = not poll
        else:
            return


@dataclass(slots=True)
class Settling:
    """Holds changed models back until nobody writes to them any more; pure.

    A model that is still being copied keeps its former state (or stays unknown) until its
    files have been the same for ``quiet`` seconds. A model that disappears is treated in
    the same way, so that a folder may be replaced in two steps. The first look believes what
    is there: a node that starts must know all its models, and one that cannot be loaded yet
    is tried again when it has changed.
    """

    quiet: float = 1.0
    _began: bool = False
    _settled: dict[str, ModelEntry] = field(default_factory=dict)
    _pending: dict[str, tuple[str | None, float]] = field(default_factory=dict)

    def believe(self, name: str, entry: ModelEntry | None) -> None:
        """Take what a scan found of one model for settled: somebody says that it is complete."""
        self._pending.pop(name, None)
        if entry is None:
            self._settled.pop(name, None)
        else:
            self._settled[name] = entry

    def look(
        self, repository: Repository, now: float, wall: float
    ) -> tuple[Repository, float | None]:
        """Take what a scan found; return the settled state and when to look again.

        Args:
            repository: What :func:`~tidegate.repository.layout.scan` found just now.
            now: Monotonic seconds.
            wall: Seconds since the epoch. Files that have been old for ``quiet`` seconds by
                their own time of change are complete at first sight.

        Returns:
            The repository with every model in its last settled state, and after how many
            seconds to scan again (``None``: all is settled).
        """
        if not self._began:
            self._began = True
            self._settled = dict(repository.models)
        waits: list[float] = []
        for name in sorted(repository.models.keys() | self._settled.keys()):
            wait = self._wait(name, repository.models.get(name), now, wall)
            if wait > 0:
                waits.append(wait)
        self._pending = {
            n: p for n, p in self._pending.items() if n in repository.models or n in self._settled
        }
        return Repository(dict(self._settled), repository.problems), min(waits, default=None)

    def _wait(self, name: str, entry: ModelEntry | None, now: float, wall: float) -> float:
        old = self._settled.get(name)
        found = None if entry is None else entry.fingerprint
        same = old is not None and old.fingerprint == found
        aged = entry is not None and wall - entry.changed >= self.quiet
        if not same and not aged:
            last, since = self._pending.get(name, ("", now))
            if last != found:
                self._pending[name] = (found, now)
                return self.quiet
            if now - since < self.quiet:
                return self.quiet - (now - since)
        self._pending.pop(name, None)
        if entry is None:
            del self._settled[name]
        else:
            self._settled[name] = entry
        return 0.0
