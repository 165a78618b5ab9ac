"""A heap of slots that forgets those which were finished while they lay in it."""

from __future__ import annotations

import heapq
from typing import Generic

from tidegate.scheduling.slot import Result, Slot, State, Work

_SMALL = 64
_PENDING = State.PENDING


class PendingHeap(Generic[Work, Result]):
    """Pending slots by key, smallest first; slots of one key in the order they came.

    A finished slot is dropped when it comes to the top, and all are swept when the heap has
    doubled: it never holds more than twice the most slots that were pending, and a few.
    """

    __slots__ = ("_entries", "_sequence", "_sweep_at")

    def __init__(self) -> None:
        self._entries: list[tuple[int, float, int, Slot[Work, Result]]] = []
        self._sequence = 0
        self._sweep_at = _SMALL

    def push(self, slot: Slot[Work, Result], priority: int, deadline: float) -> None:
        """Add a pending slot under ``(priority, deadline)``."""
        if len(self._entries) >= self._sweep_at:
            self._entries = [entry for entry in self._entries if entry[3].pending]
            heapq.heapify(self._entries)
            self._sweep_at = max(_SMALL, 2 * len(self._entries))
        self._sequence += 1
        heapq.heappush(self._entries, (priority, deadline, self._sequence, slot))

    def key(self) -> tuple[int, float, float] | None:
        """Return priority, deadline and arrival of the first pending slot, if there is one."""
        slot = self.peek()
        return None if slot is None else (*self._entries[0][:2], slot.arrived)

    def peek(self) -> Slot[Work, Result] | None:
        """Return the pending slot of the smallest key and leave it here."""
        entries = self._entries
        while entries:
            slot = entries[0][3]
            if slot.state is _PENDING:
                return slot
            heapq.heappop(entries)
        return None

    def pop(self) -> Slot[Work, Result]:
        """Remove and return what :meth:`peek` returned."""
        return heapq.heappop(self._entries)[3]

    def drain(self) -> list[Slot[Work, Result]]:
        """Remove all and return the pending slots, smallest key first."""
        entries, self._entries = self._entries, []
        entries.sort()
        return [entry[3] for entry in entries if entry[3].state is _PENDING]

    def __len__(self) -> int:
        """Entries, finished ones that were not swept yet included."""
        return len(self._entries)
