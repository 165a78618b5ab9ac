"""Follows every place that tells of endpoints, for as long as somebody wants it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from tidegate.config.endpoints import Endpoints
from tidegate.gateway.discovery.source import STAY, Source
from tidegate.gateway.endpoints import Endpoint
from tidegate.gateway.entries import fixed_endpoint

log = logging.getLogger(__name__)

_AGAIN = 5.0
"""Seconds after which a source that broke by a fault of its own is followed again."""


@dataclass(eq=False, slots=True)
class _Followed:
    found: tuple[Endpoint, ...]
    told: asyncio.Event = field(default_factory=asyncio.Event)
    problem: str | None = None
    task: asyncio.Task[None] | None = None


class Sources:
    """Keeps the sources of a gateway running; ``changed`` is called when one tells of a change.

    Args:
        make: makes the source of an entry of ``gateway.yaml``.
        changed: is called without arguments.
        announce: is told, in lines, what goes wrong, and when it is well again.
    """

    def __init__(
        self,
        make: Callable[[Endpoints], Source],
        changed: Callable[[], None],
        announce: Callable[[str], None],
    ) -> None:
        self._make = make
        self._changed = changed
        self._announce = announce
        self._followed: dict[Endpoints, _Followed] = {}
        self._remembered: dict[str, tuple[Endpoint, ...]] = {}

    def want(self, entries: Iterable[Endpoints]) -> None:
        """Follow these entries, and no others."""
        wanted = set(entries)
        for entry in self._followed.keys() - wanted:
            followed = self._followed.pop(entry)
            if followed.task is not None:
                followed.task.cancel()
        for entry in wanted - self._followed.keys():
            self._followed[entry] = self._follow(entry)

    def found(self, entry: Endpoints) -> tuple[Endpoint, ...]:
        """Return what an entry leads to: the address that it gives, or what is known so far."""
        fixed = fixed_endpoint(entry)
        if fixed is not None:
            return (fixed,)
        followed = self._followed.get(entry)
        return () if followed is None else followed.found

    async def first_told(self, timeout: float) -> None:
        """Wait until every source has told something, but no longer than ``timeout`` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                for followed in list(self._followed.values()):
                    await followed.told.wait()

    def remember(self, known: Mapping[str, tuple[Endpoint, ...]]) -> None:
        """Take what an earlier controller knew: it holds until a source tells otherwise."""
        self._remembered = dict(known)

    def known(self) -> dict[str, tuple[Endpoint, ...]]:
        """Return what is known, for :meth:`remember`.

        What was remembered itself counts, too, while its source is away.
        """
        return {
            key_of(entry): followed.found
            for entry, followed in self._followed.items()
            if followed.told.is_set() or followed.found
        }

    def states(self) -> list[dict[str, object]]:
        """Return what each source says, for people."""
        return [
            {"source": named(entry), "endpoints": len(each.found), "problem": each.problem}
            for entry, each in self._followed.items()
        ]

    async def close(self) -> None:
        """Stop following; what was found stays known, for the calls that still run."""
        tasks = [f.task for f in self._followed.values() if f.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _follow(self, entry: Endpoints) -> _Followed:
        # Once: an entry that comes back by an edit is not what it was when the controller began.
        followed = _Followed(self._remembered.pop(key_of(entry), ()))
        followed.task = asyncio.create_task(
            self._keep(entry, self._make(entry), followed), name=f"follow {named(entry)}"
        )
        return followed

    async def _keep(self, entry: Endpoints, source: Source, followed: _Followed) -> None:
        def tell(endpoints: tuple[Endpoint, ...]) -> None:
            first = not followed.told.is_set()
            followed.told.set()
            if first and not endpoints and followed.found:
                return  # what an earlier controller knew, until there is something better
            if endpoints != followed.found:
                followed.found = endpoints
                self._changed()

        def problem(words: str | None) -> None:
            if words is not None:
                words = without_name(words, named(entry))
                # Of one that was never known nothing stays.
                words = words if followed.found else words.removesuffix(f"; {STAY}")
            if words is not None or followed.problem is not None:
                self._announce(f"{named(entry)}: {words or 'well again'}")
            followed.problem = words

        while True:
            try:
                await source.follow(tell, problem)
            except Exception as error:  # one source must not take the others down
                log.exception("a source of endpoints broke")
                problem(f"broke ({type(error).__name__}: {error}); {STAY}")
            await asyncio.sleep(_AGAIN)


def without_name(words: str, source: str) -> str:
    """Return what a source says is wrong without its name, which is said by who shows that."""
    name = source.partition(" ")[2]
    return words.removeprefix(f"{name}: ").removeprefix(f"{name}, ")


def named(entry: Endpoints) -> str:
    """Say in words what an entry is."""
    if entry.kubernetes is not None:
        k = entry.kubernetes
        return f"kubernetes {k.service or k.selector}"
    return f"{'file' if entry.file else 'dns'} {entry.file or entry.srv or entry.address}"


def key_of(entry: Endpoints) -> str:
    """Return a text that stands for an entry in a file."""
    return entry.model_dump_json()
