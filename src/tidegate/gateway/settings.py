"""The settings of a running gateway, and every file that they come from, followed as they change.

What is wrong with one of them is told, and what was in effect stays.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path

from tidegate.config.gateway import GatewayConfig
from tidegate.config.nodefile import NodefileTask
from tidegate.edge.trust_files import Trust, TrustFiles
from tidegate.errors import ConfigurationError
from tidegate.gateway.discovery.files import Nodefile, WatchedFile
from tidegate.gateway.entries import nodefile_tasks
from tidegate.gateway.models import Task
from tidegate.gateway.sources import without_name

log = logging.getLogger(__name__)

_LARGEST_FILE = 2**26
_TICK = 0.1
"""Seconds between looks at gateway.yaml, and for which nobody may have written to it."""
_AGAIN = 5.0
"""Seconds after which a file is followed again whose news were taken up with a fault of ours."""
_AT_START = (
    "host", "port", "admin_host", "admin_port", "registration", "drain_timeout", "run_dir",
    "envoy", "envoy_threads", "envoy_memory", "access_log", "log_format", "log_level", "log_size",
    "log_files",
)  # fmt: skip
"""Settings that a running gateway does not take up."""
_TRUST = ("tls", "endpoint_tls", "api_keys")


class GatewaySettings:
    """Holds what is in effect.

    Args:
        file: ``gateway.yaml``.
        read: reads the settings, as they are now in the file, the variables and the options.
        config: the settings that the gateway starts with.
        changed: is called when something else is in effect.
        announce: is told, in lines, what happens.

    Raises:
        ConfigurationError: a certificate or a key that the settings name is of no use.
    """

    def __init__(
        self,
        file: Path,
        read: Callable[[], GatewayConfig],
        config: GatewayConfig,
        changed: Callable[[], None],
        announce: Callable[[str], None],
    ) -> None:
        self.file = file
        self.config = config
        self.trust = _files(config).read()
        self.tasks: dict[str, Task] = {}
        """What the nodefile says."""
        self.generation = 1
        """How many times other settings came into effect."""
        self.problem: str | None = None
        """What is wrong with the file as it is now, if the settings are of an earlier one."""
        self._problems: dict[str, tuple[str, str]] = {}
        """What is wrong with what is followed, and how people call that."""
        self._read = read
        self._changed = changed
        self._announce = announce
        self._nodefile_told = asyncio.Event()
        self._following: dict[str, tuple[object, asyncio.Task[None]]] = {}

    def remember(self, tasks: Mapping[str, Task]) -> None:
        """Take what the nodefile said to an earlier controller, until it can be read again."""
        if self.config.nodefile is not None:
            self.tasks = dict(tasks)

    def follow(self) -> None:
        """Begin to follow all files; :meth:`close` ends it."""
        file = WatchedFile(self.file, lambda _, __: self._read(), _LARGEST_FILE, _TICK, _TICK)
        self._keep("gateway.yaml", self.file, lambda: file.follow(self._take, self._refuse))
        self._follow_others()

    async def first_told(self, timeout: float) -> None:
        """Wait until the nodefile was read, if there is one, at most ``timeout`` seconds."""
        if self.config.nodefile is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._nodefile_told.wait(), timeout)

    def problems(self) -> list[Mapping[str, object]]:
        """Return what is wrong with the other files, for people."""
        return [{"source": source, "problem": words} for source, words in self._problems.values()]

    async def close(self) -> None:
        """Stop following."""
        tasks = [task for _, task in self._following.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _take(self, config: GatewayConfig) -> None:
        same = self.config
        later = [key for key in _AT_START if getattr(config, key) != getattr(same, key)]
        config = config.model_copy(update={key: getattr(same, key) for key in later})
        if any(getattr(config, key) != getattr(same, key) for key in _TRUST):
            try:
                self.trust = _files(config).read()
            except ConfigurationError as error:
                self._refuse(str(error))
                return
        if self.problem is not None:
            self._announce(f"{self.file}: well again")
        self.problem = None
        if later:
            self._announce(
                f"{', '.join(later)}: changed in {self.file}, counts from the next start"
            )
        if config != same:
            self.config = config
            self.generation += 1
            self._follow_others()
            self._changed()
            count = len(config.models)
            models = "1 model is" if count == 1 else f"{count} models are"
            self._announce(f"{self.file}: {models} in effect")

    def _refuse(self, words: str) -> None:
        self.problem = words
        self._announce(f"{words}; what was in effect stays")

    def _follow_others(self) -> None:
        config = self.config
        files = _files(config)

        def renewed(trust: Trust) -> None:
            self.trust = trust
            self._changed()

        names = tuple(getattr(config, key) for key in _TRUST)
        problem = self._problem_of("trust", "certificates and keys")
        self._keep("trust", names, lambda: files.follow(self.trust, renewed, problem))
        nodefile = config.nodefile
        if nodefile is None:
            self._drop("nodefile")
            self.tasks = {}
            return

        told = False

        def listed(tasks: tuple[NodefileTask, ...]) -> None:
            nonlocal told
            first, told = not told, True
            self._nodefile_told.set()
            if first and not tasks and self.tasks:
                return  # what was known before, until there is something better
            self.tasks = nodefile_tasks(tasks, nodefile.protocol)
            self._changed()

        source = Nodefile(nodefile.path)
        problem = self._problem_of("nodefile", f"nodefile {nodefile.path}")
        self._keep("nodefile", nodefile, lambda: source.follow(listed, problem))

    def _keep(
        self, what: str, of: object, follow: Callable[[], Coroutine[object, object, None]]
    ) -> None:
        """Follow something, unless it is followed already."""
        following = self._following.get(what)
        if following is not None and following[0] == of:
            return
        self._drop(what)
        task = asyncio.create_task(self._go_on(what, follow), name=f"follow {what}")
        self._following[what] = of, task

    async def _go_on(
        self, what: str, follow: Callable[[], Coroutine[object, object, None]]
    ) -> None:
        while True:
            try:
                await follow()
            except Exception as error:  # or edits would be passed over from here on
                log.exception("what a file says cannot be taken up")
                self._announce(f"{what}: cannot be taken up: {type(error).__name__}: {error}")
            await asyncio.sleep(_AGAIN)

    def _drop(self, what: str) -> None:
        if (following := self._following.pop(what, None)) is not None:
            following[1].cancel()
        self._problems.pop(what, None)

    def _problem_of(self, what: str, source: str) -> Callable[[str | None], None]:
        def problem(words: str | None) -> None:
            if words is not None:
                words = without_name(words, source)
                self._problems[what] = source, words
                self._announce(f"{source}: {words}")
            elif self._problems.pop(what, None) is not None:
                self._announce(f"{source}: well again")

        return problem


def _files(config: GatewayConfig) -> TrustFiles:
    return TrustFiles(config.tls, config.endpoint_tls, config.api_keys)
