"""Keeps the edge of a node running: adopts or starts it, starts it again when it dies."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Mapping
from typing import Any

from tidegate.controller.back_off import BackOff
from tidegate.controller.run_directory import RunDirectory
from tidegate.edge.process import EnvoyProcess
from tidegate.edge.remains import end_unrecorded
from tidegate.edge.settings import EdgeSettings
from tidegate.errors import EdgeFailed
from tidegate.replica import lifeline

log = logging.getLogger(__name__)

_CALM = 10.0


class EdgeKeeper:
    """Owns the one Envoy of a node."""

    def __init__(
        self, settings: EdgeSettings, directory: RunDirectory, announce: Callable[[str], None]
    ) -> None:
        self._settings = settings
        self._directory = directory
        self._announce = announce
        self._process: EnvoyProcess | None = None

    @property
    def pid(self) -> int | None:
        """The pid of the running Envoy."""
        return None if self._process is None else self._process.pid

    @property
    def serving(self) -> bool:
        """Whether there is an Envoy that could hold the published configuration."""
        return self._process is not None

    async def stats(self, pattern: str) -> dict[str, int]:
        """Return Envoy's counters and gauges whose names match ``pattern``.

        Raises:
            EdgeFailed: there is no Envoy, or it does not answer.
        """
        if self._process is None:
            raise EdgeFailed("the edge does not run")
        return await self._process.admin.stats(pattern)

    async def clusters(self) -> Mapping[str, list[dict[str, Any]]]:
        """Return how Envoy sees the hosts of each of its clusters.

        Raises:
            EdgeFailed: there is no Envoy, or it does not answer.
        """
        if self._process is None:
            raise EdgeFailed("the edge does not run")
        return await self._process.admin.clusters()

    async def reopen_logs(self) -> None:
        """Have Envoy open its access log anew.

        Raises:
            EdgeFailed: it does not answer.
        """
        if self._process is not None:
            await self._process.admin.post("/reopen_logs")

    def record(self) -> dict[str, Any] | None:
        """Return what :meth:`adopt` needs."""
        return None if self._process is None else self._process.record()

    def adopt(self, record: Mapping[str, Any] | None) -> bool:
        """Take over the Envoy of an earlier controller; return whether it still runs.

        One that is not recorded, because a controller was killed as it started it, is ended.
        """
        if record is not None:
            self._process = EnvoyProcess.adopt(record)
        if self._process is None:
            end_unrecorded(self._directory.path)
        return self._process is not None

    async def start(self) -> None:
        """Start Envoy; an adopted one is replaced by a hot restart if it must be another.

        Raises:
            EdgeFailed: it cannot be started.
        """
        with _Lifeline(self._directory) as descriptor:
            if self._process is None:
                self._process = await EnvoyProcess.start(
                    self._directory.path, self._settings, pass_fds=[descriptor]
                )
            elif not self._process.started_as(self._settings):
                self._announce("the edge's settings differ: replacing it by a hot restart")
                self._process = await self._process.hot_restart(
                    self._settings, pass_fds=[descriptor]
                )

    async def keep(self, on_change: Callable[[], None]) -> None:
        """Start Envoy again whenever it ends; ``on_change`` is called when there is a new one."""
        back_off = BackOff(calm=_CALM)
        loop = asyncio.get_running_loop()
        while (process := self._process) is not None:
            began = loop.time()
            status = await process.wait()
            how = "" if status is None else f" with status {status}"
            self._announce(f"the edge ended{how}, starting it again; its log is {process.log}")
            self._process = None
            served = loop.time() - began
            while not self.serving:
                await asyncio.sleep(back_off.crashed(served))
                served = 0.0
                try:
                    await self.start()
                except EdgeFailed as error:
                    self._announce(str(error))
                except Exception as error:  # whatever it is, there must be an edge again
                    log.exception("the edge cannot be started")
                    self._announce(f"the edge cannot be started: {error}")
            try:
                on_change()
            except OSError as error:
                # It serves all the same; only a later controller would not find it.
                self._announce(f"the new edge cannot be recorded: {error}")

    async def stop(self, hurry: asyncio.Event) -> None:
        """Drain Envoy and end it, when :meth:`keep` no longer runs; ``hurry`` cuts that short."""
        if self._process is None:
            return
        limit = self._settings.drain_timeout
        draining = asyncio.create_task(self._process.drain_and_stop(limit))
        hurried = asyncio.create_task(hurry.wait())
        await asyncio.wait([draining, hurried], return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()
        if not draining.done():
            draining.cancel()
            await asyncio.gather(draining, return_exceptions=True)
            await self._process.kill()
            self._announce("requests that were still running were cut")
        elif not draining.result():
            self._announce(
                f"requests were still running after {limit:g} s (drain_timeout) and were cut"
            )

    async def kill(self) -> None:
        """End Envoy now, if there is one."""
        if self._process is not None:
            await self._process.kill()


class _Lifeline:
    """The lifeline's descriptor for as long as it takes to hand it to a process."""

    def __init__(self, directory: RunDirectory) -> None:
        self._directory = directory

    def __enter__(self) -> int:
        self._descriptor = lifeline.hold(self._directory.lifeline)
        return self._descriptor

    def __exit__(self, *exc: object) -> None:
        os.close(self._descriptor)
