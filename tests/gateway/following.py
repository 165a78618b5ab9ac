"""Runs a source and lets a test wait for what it tells."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Any


class Following:
    """``async with Following(source) as seen:`` and then ``await seen.until(lambda: ...)``."""

    def __init__(self, source: Any) -> None:
        self.source = source
        self.sets: list[tuple[Any, ...]] = []
        self.problems: list[str | None] = []
        self._news = asyncio.Event()

    async def __aenter__(self) -> Following:
        self.task = asyncio.create_task(self.source.follow(self._tell, self._problem))
        self.task.add_done_callback(lambda _: self._news.set())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.task.cancel()
        done, _ = await asyncio.wait([self.task], timeout=60)
        assert done, "a source must end when it is cancelled"
        if not self.task.cancelled():
            self.task.result()

    def _tell(self, endpoints: tuple[Any, ...]) -> None:
        assert self.sets[-1:] != [endpoints], "only what has changed is told"
        self.sets.append(endpoints)
        self._news.set()

    def _problem(self, words: str | None) -> None:
        assert (self.problems or [None])[-1] != words, "only what is new is told"
        self.problems.append(words)
        self._news.set()

    @property
    def known(self) -> tuple[Any, ...] | None:
        return self.sets[-1] if self.sets else None

    @property
    def addresses(self) -> list[str] | None:
        return None if self.known is None else [endpoint.address for endpoint in self.known]

    @property
    def problem(self) -> str | None:
        return self.problems[-1] if self.problems else None

    async def until(self, true: Callable[[], bool], seconds: float = 60) -> None:
        """Wait until something holds, looked at whenever the source has said something."""
        try:
            async with asyncio.timeout(seconds):
                while not true():
                    if self.task.done():
                        self.task.result()
                        raise AssertionError("the source has ended")
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise AssertionError(f"only {self.sets[-3:]} and {self.problems[-3:]}") from None

    async def until_known(self, *addresses: str) -> None:
        await self.until(lambda: self.addresses == sorted(addresses))

    async def until_problem(self, words: str | None) -> None:
        await self.until(
            lambda: self.problem is None if words is None else words in (self.problem or "")
        )
