"""A slot: the one place in which a request's outcome is decided, exactly once."""

from __future__ import annotations

import enum
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

from tidegate.errors import Cancelled

Work = TypeVar("Work")
Result = TypeVar("Result")

NO_DEADLINE = float("inf")


class State(enum.Enum):
    """Where a slot stands; only PENDING can change."""

    PENDING = "pending"
    RESOLVED = "resolved"
    FAILED = "failed"
    CANCELLED = "cancelled"


_PENDING = State.PENDING
"""By its own name: Python 3.11 is slow to find a member in its class."""


class Slot(Generic[Work, Result]):
    """One request on its way through the queue and the model.

    ``rows`` is its share of a batch, ``size`` its bytes, ``group`` what it has in common
    with those that it may run beside, ``deadline`` the time after which nobody waits.
    ``on_done`` is called once, with this slot, by whichever of :meth:`resolve`,
    :meth:`fail` and :meth:`cancel` came first; the others then do nothing. What the slot
    holds, outcome included, is there until ``on_done`` returns: a finished slot may lie in a
    heap for a while, and would keep whole messages alive.
    """

    __slots__ = (
        "_on_done", "arrived", "deadline", "error", "group", "priority", "queued", "result",
        "rows", "size", "state", "tag", "work",
    )  # fmt: skip

    def __init__(
        self,
        work: Work,
        on_done: Callable[[Any], None],
        arrived: float,
        rows: int = 1,
        size: int = 0,
        group: Hashable = None,
        priority: int = 0,
        deadline: float = NO_DEADLINE,
        tag: bytes | None = None,
    ) -> None:
        self.work: Work | None = work
        self._on_done = on_done
        self.arrived = arrived
        self.rows = rows
        self.size = size
        self.group = group
        self.priority = priority
        self.deadline = deadline
        self.tag = tag
        self.queued = False
        self.state = _PENDING
        self.result: Result | None = None
        self.error: BaseException | None = None

    @property
    def pending(self) -> bool:
        """Whether somebody still waits for the outcome."""
        return self.state is _PENDING

    def resolve(self, result: Result) -> bool:
        """Give the answer; return whether it was the first outcome."""
        if self.state is not _PENDING:
            return False
        self.result = result
        return self._finish(State.RESOLVED)

    def fail(self, error: BaseException) -> bool:
        """Give an error; return whether it was the first outcome."""
        if self.state is not _PENDING:
            return False
        self.error = error
        return self._finish(State.FAILED)

    def cancel(self) -> bool:
        """Say that nobody waits any more; return whether it was the first outcome."""
        if self.state is not _PENDING:
            return False
        self.error = Cancelled("the caller went away")
        return self._finish(State.CANCELLED)

    def _finish(self, state: State) -> bool:
        self.state = state
        self.work = None
        on_done, self._on_done = self._on_done, _nobody
        try:
            on_done(self)
        finally:
            self.result = self.error = None
        return True


def _nobody(slot: Slot[Any, Any]) -> None:
    """Stand in for a callback that was called."""
