"""What became of the calls to one endpoint since the last report."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Outcome:
    """The calls of one endpoint between two reports, as Envoy's load reports count them.

    ``succeeded`` and ``failed`` have come to an end since the last report, ``issued`` were
    begun, ``in_flight`` run now; who knows when each began gives their mean since then. Only
    what speaks against the endpoint counts as failed: UNAVAILABLE, DEADLINE_EXCEEDED, resets and
    5xx; a client's INVALID_ARGUMENT was answered, so it counts as succeeded. ``utilization`` is
    what the endpoint says of itself, 0 to 1 (ORCA's application utilization), or ``None``.
    """

    succeeded: int
    failed: int
    issued: int
    in_flight: float
    utilization: float | None = None
