"""What became of the calls to one endpoint since the last report."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Outcome:
    """The calls of one endpoint between two reports, as Envoy's load reports count them.

    ``succeeded`` and ``failed`` have come to an end since the last report, ``issued`` were
    begun, ``in_flight`` run now; who knows when each began gives their mean since then. Only
    what speaks against the endpoint counts as failed: UNAVAILABLE, DEADLINE_EXCEEDED, resets and
    5xx; a client's INVALID_ARGUMENT was answered, so it counts as succeeded. ``cancelled`` have
    ended without an answer: their callers went away, or their deadlines passed before anybody
    answered. That may be the endpoint's fault or the callers'. ``utilization`` is
    what the endpoint says of itself, 0 to 1 (ORCA's application utilization), or ``None``.
    """

    succeeded: int
    failed: int
    issued: int
    in_flight: float
    utilization: float | None = None
    cancelled: int = 0

    @property
    def is_over(self) -> bool:
        """Whether nothing was sent, answered or awaited: at most, callers gave up."""
        return not (self.issued or self.succeeded or self.failed or self.in_flight)
