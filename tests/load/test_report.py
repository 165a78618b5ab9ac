"""What a load measured, as JSON, table and picture."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from tidegate.errors import ConfigurationError
from tidegate.load import plot
from tidegate.load.driver import Failure, Result
from tidegate.load.report import Point, figures, show


def result(**codes: int) -> Result:
    return Result(
        codes=Counter(codes),
        failures=[Failure(0.5, "UNAVAILABLE", "[gone]")] if len(codes) > 1 else [],
        seconds=2.0,
        connections=1,
        latencies_ms=np.arange(1001, dtype=np.float64),
        late_ms=np.full(10, 7.0),
    )


def test_figures() -> None:
    told = figures(Point(500.0, 64, result(OK=1000)), rows=4, bytes_sent=2000)
    assert json.loads(json.dumps(told)) == told
    assert told["latency_ms"] == {"p50": 500, "p90": 900, "p99": 990, "p99.9": 999, "max": 1000}
    assert (told["rate"], told["rows_per_second"]) == (500, 2000)
    assert told["megabytes_per_second"] == 1.0
    assert (told["calls"], told["ok"], told["failed"]) == (1000, 1000, 0)


def test_no_call_at_all() -> None:
    told = figures(Point(None, 1, Result()), 1, 1)
    assert json.loads(json.dumps(told, allow_nan=False))["latency_ms"]["p50"] is None
    assert told["rate"] == 0


def test_the_table_and_what_is_wrong() -> None:
    points = [
        figures(Point(None, 8, result(OK=1000)), 1, 1),
        figures(Point(500.0, 64, result(OK=900, UNAVAILABLE=1, NOT_SENT=100)), 1, 1),
    ]
    out = io.StringIO()
    show(Console(file=out, width=300), points)
    text = out.getvalue()
    for words in (
        "p99.9", "500.00", "≤ 64", "not all calls succeeded (NOT_SENT: 100, OK: 900, ",
        "100 calls were due and never sent", "UNAVAILABLE: [gone]", "were sent 7.0 ms late",
    ):  # fmt: skip
        assert words in text


@pytest.mark.parametrize("name", ["p.png", "p.svg"])
@pytest.mark.parametrize("rate", [500.0, None])
def test_plots(name: str, rate: float | None, tmp_path: Path) -> None:
    points = [figures(Point(rate, n, result(OK=1)), 1, 1) for n in (1, 2)]
    points.append(figures(Point(rate, 3, Result()), 1, 1))
    plot.check(tmp_path / name)
    plot.draw(tmp_path / name, "t", points)
    drawn = (tmp_path / name).read_bytes()
    assert len(drawn) > 5000
    plot.draw(tmp_path / name, "t", points)
    assert (tmp_path / name).read_bytes() == drawn


def test_no_format_of_a_picture() -> None:
    with pytest.raises(ConfigurationError, match=r"must end in one of .png"):
        plot.check(Path("x.gif"))
