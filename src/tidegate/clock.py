"""Injected time: whatever decides by time takes a :class:`Clock`, or ``now`` itself.

All times are seconds as a float from an arbitrary zero; only differences mean anything.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """A source of monotonic time."""

    def now(self) -> float:
        """Return the current time in seconds from an arbitrary zero; it never goes back."""


class MonotonicClock:
    """The machine's monotonic clock, shared by all processes of one boot."""

    now = staticmethod(time.monotonic)
