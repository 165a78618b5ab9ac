"""What ``tidegate doctor`` finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    what: str
    state: Literal["ok", "warn", "fail"]
    detail: str
    hint: str
    """What to do about it."""


def ok(what: str, detail: str) -> Finding:
    """It is as it should be."""
    return Finding(what, "ok", detail, "")


def warn(what: str, detail: str, hint: str) -> Finding:
    """A node works, but less well than it could, or not for everything."""
    return Finding(what, "warn", detail, hint)


def fail(what: str, detail: str, hint: str) -> Finding:
    """A node does not work."""
    return Finding(what, "fail", detail, hint)
