"""What a load measured, as JSON and as a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tidegate.load.driver import Result

PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99.9": 99.9, "max": 100.0}
_LATE = 5.0
"""Milliseconds by which a hundredth of the calls may be late before the table says so."""


@dataclass(frozen=True, slots=True)
class Point:
    """One load and what came of it."""

    rate: float | None
    """Calls offered per second; ``None`` for a closed loop."""
    concurrency: int
    """Calls in flight: always so many in a closed loop, at most so many in an open one."""
    result: Result


def figures(point: Point, rows: int, bytes_sent: int) -> dict[str, object]:
    """Return a point as JSON can hold it; times in milliseconds, ``None`` where there is none.

    ``rows`` and ``bytes_sent`` are those of one request.
    """
    result = point.result
    return {
        "offered_rate": point.rate,
        "concurrency": point.concurrency,
        "seconds": round(result.seconds, 6),
        "calls": result.calls,
        "ok": result.ok,
        "failed": result.failed,
        "codes": dict(sorted(result.codes.items())),
        "rate": round(result.rate, 3),
        "rows_per_second": round(result.rate * rows, 3),
        "megabytes_per_second": round(result.rate * bytes_sent / 1e6, 3),
        "latency_ms": {name: _rounded(result.latency(at)) for name, at in PERCENTILES.items()},
        "sent_late_ms": {name: _rounded(result.late(at)) for name, at in PERCENTILES.items()},
        "refused": result.refused,
        "connections": result.connections,
        "failures": [
            {"at": round(f.offset, 4), "code": f.code, "message": f.message}
            for f in result.failures[:5]
        ],
    }


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 4)


def show(console: Console, points: Sequence[Mapping[str, object]]) -> None:
    """Print the points that :func:`figures` gave, and what needs saying of them."""
    table = Table()
    for heading in ("offered/s", "in flight", "calls/s", "MB/s", *PERCENTILES, "failed"):
        table.add_column(heading, justify="right")
    for point in points:
        latency, offered = _mapping(point, "latency_ms"), point["offered_rate"]
        table.add_row(
            "-" if offered is None else f"{offered:,g}",
            ("≤ " if offered is not None else "") + str(point["concurrency"]),
            f"{point['rate']:,.1f}",
            f"{point['megabytes_per_second']:,.2f}",
            *(_shown(latency[name]) for name in PERCENTILES),
            f"{point['failed']:,}",
        )
    console.print(table)
    console.print("latency in ms" + _meaning(points), highlight=False)
    for point in points:
        for line in _remarks(point):
            console.print(f"[yellow]{escape(line)}[/yellow]", highlight=False, soft_wrap=True)


def _meaning(points: Sequence[Mapping[str, object]]) -> str:
    if any(point["offered_rate"] is not None for point in points):
        return ", counted from the time at which each call was due"
    return ""


def _remarks(point: Mapping[str, object]) -> list[str]:
    lines = []
    name = f"{point['concurrency']} in flight"
    if point["offered_rate"] is not None:
        name = f"{point['offered_rate']:g}/s"
    codes = _mapping(point, "codes")
    if point["failed"]:
        listed = ", ".join(f"{code}: {count}" for code, count in codes.items())
        lines.append(f"{name}: not all calls succeeded ({listed})")
    if codes.get("NOT_SENT"):
        lines.append(
            f"{name}: {codes['NOT_SENT']} calls were due and never sent, because all "
            f"{point['concurrency']} in flight were waiting; their waiting time counts as latency"
        )
    failures = point["failures"]
    assert isinstance(failures, list)
    lines += [f"  {failure['code']}: {failure['message']}" for failure in failures[:3]]
    late = _mapping(point, "sent_late_ms")["p99"]
    if isinstance(late, float) and late > _LATE:
        lines.append(
            f"{name}: 1 % of the calls were sent {late:.1f} ms late or more, for want of a free "
            "caller or of CPU for the load generator; that wait is part of their latency"
        )
    return lines


def _mapping(point: Mapping[str, object], key: str) -> Mapping[str, object]:
    value = point[key]
    assert isinstance(value, dict)
    return value


def _shown(value: object) -> str:
    return f"{value:,.2f}" if isinstance(value, float) else "-"
