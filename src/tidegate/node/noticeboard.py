"""Tells running replicas what has changed for them: a file, and a signal to read it."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Sequence
from pathlib import Path

from tidegate.controller.run_directory import write_whole
from tidegate.node.fleet import Fleet
from tidegate.replica.notices import Notices


class Noticeboard:
    """The notices of a node, in ``file``."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._notices = Notices()
        self._told: set[int] = set()
        """The processes that know the notices."""
        self._log_level: int | None = None

    def read(self) -> Sequence[str]:
        """Take over what an earlier controller told; return the quarantined digests."""
        self._notices = Notices.read(self._file) or Notices()
        if self._notices.log_level is not None:
            self._log_level = self._notices.log_level
            logging.getLogger("tidegate").setLevel(self._log_level)
        return self._notices.quarantined

    def log_from(self, level: int) -> None:
        """Have the replicas log from ``level`` on, from the next time that they are told."""
        self._log_level = level

    def tell(self, fleet: Fleet, quarantined: tuple[str, ...]) -> None:
        """Give the replicas the versions for their metadata, and the digests to refuse."""
        versions: dict[str, tuple[int, ...]] = {}
        for generation in fleet.generations():
            if generation.live:
                known = {*versions.get(generation.model, ()), generation.version}
                versions[generation.model] = tuple(sorted(known))
        notices = Notices(versions=versions, quarantined=quarantined, log_level=self._log_level)
        if notices != self._notices:
            write_whole(self._file, notices.model_dump_json().encode())
            self._notices = notices
            self._told.clear()
        ready = {r.pid for g in fleet.generations() for r in g.ready if r.pid is not None}
        # One that became ready just now may have read the file before it was written.
        for pid in ready - self._told:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGHUP)
        self._told = ready
