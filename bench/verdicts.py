"""What is judged of a fault, and how it is shown; no I/O."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.timeline import STEP, WINDOW, Attempts, Calls

SICK = "b"
"""The backend that falls ill."""
PERIOD = 2.0
"""Seconds of a flap: half of it down, half of it up."""
_BASE = 2.0
"""From here to the fault is what is normal."""
_LIMITS = {"normal": 3.0, "left": 2.0, "returned": 5.0}
"""Seconds."""
_LEFT, _WHOLE = 0.01, 0.9
_RETURNS = 2
"""A flapping backend comes back after its first fault, as any; and once more, at most."""
_ANSWERED = ("error", "reset")
"""Faults whose failures cannot be asked of another backend: it has answered, or begun to."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What one fault looked like; times are seconds after the beginning."""

    fault: str
    calls: Calls
    attempts: Attempts
    in_flight: int
    """Calls that the sick backend had at the fault."""
    began: float
    healing: float
    """When healing began: a process takes its time, and the machine's, to start."""
    healed: float
    ended: float
    words: tuple[str, ...] = ()
    """Of the first failures."""


def verdict(seen: Seen, deadline: float) -> dict[str, Any]:
    """Return what is judged, and under ``holds`` whether it is as it should be."""
    fault, calls = seen.fault, seen.calls
    base = calls.percentile(99, min(_BASE, seen.began / 2), seen.began)
    most = max(2 * base, base + 10)
    failures = calls.failures(seen.began - deadline, seen.ended)
    fair = 1 / len(seen.attempts.counts)
    windows = np.arange(seen.began, seen.ended - WINDOW, STEP)
    back = seen.attempts.returned(SICK, seen.healed, seen.ended, _WHOLE * fair)
    told: dict[str, Any] = {
        "in flight": seen.in_flight,
        "failed": sum(failures.values()),
        "codes": dict(failures),
        "words": list(seen.words),
        "p99 before ms": round(base, 2),
        "p99 worst ms": round(max(calls.percentile(99, at, at + WINDOW) for at in windows), 2),
        "returned": _finite(back),
    }
    holds = {}
    if fault not in _ANSWERED:
        holds["failed"] = told["failed"] <= (0 if fault == "kill" else seen.in_flight)
    if fault == "flap":
        told |= _of_flapping(seen, fair)
        holds["swings"] = told["swings"] <= _RETURNS
    else:
        told["normal"] = _finite(calls.normal_again(seen.began, seen.healing, most))
        told["left"] = _finite(seen.attempts.left(SICK, seen.began, seen.healing, _LEFT))
        for name, limit in _LIMITS.items():
            holds[name] = told[name] is not None and told[name] < limit
    return {**told, "holds": holds}


def _of_flapping(seen: Seen, fair: float) -> dict[str, Any]:
    later = (seen.began + seen.healed) / 2
    low, high = 0.05 * fair, 0.5 * fair
    return {
        "swings": seen.attempts.swings(SICK, seen.began, seen.healed, low, high),
        "cycles": round((seen.healed - seen.began) / PERIOD),
        "share while flapping": round(seen.attempts.share(SICK, later, seen.healed), 4),
    }


def _finite(value: float) -> float | None:
    return None if math.isinf(value) else round(value, 3)


def timeline(seen: Seen) -> dict[str, Any]:
    """Return shares, p99 and failures, a point every tenth of a second."""
    calls = seen.calls
    starts = [float(at) for at in np.arange(0, seen.ended - STEP / 2, STEP).round(3)]
    return {
        "seconds": starts,
        "shares": {
            name: [round(seen.attempts.share(name, at, at + STEP), 4) for at in starts]
            for name in seen.attempts.counts
        },
        "p99 ms": [round(calls.percentile(99, at, at + 2 * STEP), 2) for at in starts],
        "failed": [sum(calls.failures(at, at + STEP).values()) for at in starts],
    }


HEADINGS = (
    "fault",
    "failed",
    "in flight then",
    "p99 before, ms",
    "worst, ms",
    "normal after, s",
    "share < 1 % after, s",
    "whole share after healing, s",
    "returns in flaps",
)


def rows(faults: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the rows of a table; a star marks what does not hold."""
    return [tuple(_row(name, told)) for name, told in faults.items()]


def _row(name: str, told: Mapping[str, Any]) -> list[str]:
    holds = told["holds"]

    def cell(key: str, digits: int = 1) -> str:
        if key not in told:
            return ""
        value = told[key]
        text = "never" if value is None else f"{value:.{digits}f}"
        return text if holds.get(key, True) else f"{text} *"

    swings = f"{told['swings']} of {told['cycles']}" if "swings" in told else ""
    if not holds.get("swings", True):
        swings += " *"
    return [
        name, cell("failed", 0), cell("in flight", 0), cell("p99 before ms"),
        cell("p99 worst ms"), cell("normal"), cell("left"), cell("returned"), swings,
    ]  # fmt: skip
