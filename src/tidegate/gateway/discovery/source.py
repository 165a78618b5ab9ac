"""What every source of endpoints is, and the rules by which all of them tell what they found."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeAlias, TypeVar

from tidegate.gateway.endpoints import Endpoint

Tell: TypeAlias = Callable[[tuple[Endpoint, ...]], None]
"""Takes the whole set of endpoints, each time that it has changed."""
Problem: TypeAlias = Callable[[str | None], None]
"""Takes what is wrong, in words; ``None``: nothing any more."""
Sleep: TypeAlias = Callable[[float], Awaitable[None]]
"""Waits for some seconds."""

T = TypeVar("T")

LARGEST_SET = 10_000
"""Endpoints that one source may give."""
STAY = "the last known endpoints stay"
"""What is said at the end of most problems."""
_LONGEST_WORDS = 500


class Source(Protocol):
    """Finds the endpoints of a model, and goes on looking."""

    async def follow(self, tell: Tell, problem: Problem) -> None:
        """Look until cancelled.

        ``tell`` gets the whole set as soon as it is known, also when it is empty, and again
        whenever it has changed. ``problem`` gets words when the source cannot look (the last
        known set stays) or leaves something out of the set, and ``None`` when all is well again.
        """


@dataclass(slots=True)
class Report(Generic[T]):
    """Passes on what a source found, and what is wrong with it: only what is new."""

    tell: Callable[[T], None]
    problem: Problem
    empty: T
    """What is told when the first look fails."""
    _known: T | None = None
    _words: str | None = None

    def found(self, known: T, words: str | None = None) -> None:
        """Take what is there; ``words`` say what was left out of it."""
        if known != self._known:
            self._known = known
            self.tell(known)
        self._say(words)

    def failed(self, words: str) -> None:
        """Take the reason why nothing was found; what was known last stays."""
        self.found(self.empty if self._known is None else self._known, words)

    def _say(self, words: str | None) -> None:
        if words is not None and len(words) > _LONGEST_WORDS:
            words = words[:_LONGEST_WORDS] + "…"
        if words != self._words:
            self._words = words
            self.problem(words)


class EndpointReport:
    """A :class:`Report` of endpoints: each address once, in order, and no more than the bound."""

    def __init__(self, tell: Tell, problem: Problem) -> None:
        self._report: Report[tuple[Endpoint, ...]] = Report(tell, problem, ())
        self.failed = self._report.failed

    def found(self, endpoints: Iterable[Endpoint], words: str | None = None) -> None:
        """Take a set, in any order; of two endpoints at one address the first one counts.

        ``words`` say what was left out of it. A set beyond :data:`LARGEST_SET` is not taken.
        """
        unique: dict[str, Endpoint] = {}
        for endpoint in endpoints:
            unique.setdefault(endpoint.address, endpoint)
            if len(unique) > LARGEST_SET:
                self.failed(too_many())
                return
        self._report.found(tuple(unique[address] for address in sorted(unique)), words)


def too_many() -> str:
    """Return what is said of a source that gives too many endpoints."""
    return (
        f"gives more than {LARGEST_SET} endpoints, the most of one source; the last known ones "
        "stay. Share them out among several models or gateways"
    )


@dataclass(slots=True)
class RetryDelays:
    """How long to wait after each failure in a row: twice as long as before, up to a limit.

    Chance takes up to a half of it away, so that many gateways don't all come back at once.
    """

    first: float = 0.5
    longest: float = 30.0
    chance: Callable[[], float] = field(default=random.random)
    _failures: int = 0

    def failed(self) -> float:
        """Return the seconds to wait."""
        self._failures += 1
        # Beyond so many doublings it is the longest anyway; a float has an end.
        whole = min(self.longest, self.first * 2.0 ** min(self._failures - 1, 20))
        return whole * (1 - self.chance() / 2)

    def succeeded(self) -> None:
        """Forget the failures."""
        self._failures = 0
