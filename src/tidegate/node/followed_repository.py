"""The folder of models as a node sees it: looked at whenever something in it changes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path

from tidegate.clock import Clock
from tidegate.errors import ConfigurationError
from tidegate.repository import watching
from tidegate.repository.entries import ModelEntry, Repository
from tidegate.repository.layout import scan

log = logging.getLogger(__name__)


class FollowedRepository:
    """Looks at a repository; what is still being copied waits until it has settled.

    Args:
        path: the folder.
        clock: the time by which files settle.
        changed: is called when there is something else in it.
        announce: is told, in lines, what is wrong with it.
    """

    def __init__(
        self,
        path: Path,
        clock: Clock,
        changed: Callable[[], None],
        announce: Callable[[str], None],
    ) -> None:
        self.found = Repository({})
        """What was in it at the last look, and had settled."""
        self._path = path
        self._clock = clock
        self._changed = changed
        self._announce = announce
        self._settling = watching.Settling()
        self._looking = asyncio.Lock()

    async def look(self) -> float | None:
        """Look at it; return in how many seconds to look again, if at all.

        Raises:
            ConfigurationError: it cannot be read.
        """
        # A slow disk holds up nothing else, and what was seen earlier is not taken for later.
        async with self._looking:
            return self._see(await asyncio.to_thread(scan, self._path))

    async def look_at(self, model: str, accept: Callable[[ModelEntry | None], None]) -> None:
        """Look at it now, and take one model as it is, complete or not.

        Args:
            model: its name.
            accept: is given the model before anybody else hears of it; what it raises ends this.

        Raises:
            ConfigurationError: it cannot be read.
        """
        async with self._looking:
            found = await asyncio.to_thread(scan, self._path)
            entry = found.models.get(model)
            accept(entry)
            self._settling.believe(model, entry)
            self._see(found)

    async def follow(self) -> None:
        """Look at it whenever it changes, until cancelled."""
        async for _ in watching.changes(self._path):
            while True:
                try:
                    again = await self.look()
                except ConfigurationError as error:
                    self._announce(f"{error}; what is served stays")
                    break
                except Exception as error:  # the next look may see more
                    log.exception("the repository cannot be read")
                    self._announce(f"the repository cannot be read: {error}; what is served stays")
                    break
                if again is None:
                    break
                await asyncio.sleep(again)

    def _see(self, found: Repository) -> float | None:
        settled, again = self._settling.look(found, self._clock.now(), time.time())
        if settled.problems != self.found.problems or settled.models != self.found.models:
            self._tell_problems(settled)
            self.found = settled
            self._changed()
        return again

    def _tell_problems(self, repository: Repository) -> None:
        known = {str(p) for p in self.found.problems}
        known.update(str(p) for m in self.found.models.values() for p in m.problems)
        for problem in repository.problems:
            if str(problem) not in known:
                self._announce(f"{problem.kind}: {problem}")
        for name, entry in repository.models.items():
            for problem in entry.problems:
                if str(problem) not in known:
                    self._announce(f"{name} {problem.kind}: {problem}")
