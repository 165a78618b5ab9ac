"""A plot of a report: latency percentiles and throughput over the load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tidegate.errors import ConfigurationError, RuntimeMissing

FORMATS = ("png", "svg", "pdf")
_SHOWN = ("p50", "p90", "p99", "p99.9")


def check(path: Path) -> None:
    """Make sure, before anything is measured, that a plot can be drawn.

    Raises:
        ConfigurationError: the file's ending is no format of a picture.
        RuntimeMissing: matplotlib is not installed.
    """
    if path.suffix[1:].lower() not in FORMATS:
        raise ConfigurationError(
            f"the plot {str(path)!r} must end in one of {', '.join('.' + f for f in FORMATS)}"
        )
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise RuntimeMissing(
            "a plot needs matplotlib, which is not installed; install it: "
            "pip install 'tidegate[bench]'"
        ) from error


def draw(path: Path, title: str, points: Sequence[Mapping[str, Any]]) -> None:
    """Draw the points of a report to ``path``.

    Above, the latency percentiles; below, the calls answered per second: both over the
    offered rate, or over the calls in flight of closed loops.

    Raises:
        OSError: the file cannot be written.
    """
    import matplotlib
    from matplotlib.figure import Figure

    opened = all(point["offered_rate"] is not None for point in points)
    axis = "offered_rate" if opened else "concurrency"
    points = sorted(points, key=lambda point: point[axis])
    over = [point[axis] for point in points]
    figure = Figure(figsize=(8, 6.4), layout="constrained")
    latency, rate = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    for name in _SHOWN:
        values = [point["latency_ms"][name] for point in points]
        latency.plot(
            over, [v if v is not None else float("nan") for v in values], "o-", label=name
        )
    latency.set_yscale("log")
    latency.set_ylabel("latency, ms")
    latency.set_title(title)
    latency.legend()
    rate.plot(over, [point["rate"] for point in points], "o-", label="answered")
    if opened:
        rate.plot(over, over, ":", color="grey", label="offered")
    rate.set_ylabel("calls/s")
    rate.set_ylim(bottom=0)
    rate.set_xlabel("offered calls/s" if opened else "calls in flight")
    rate.legend()
    for axes in (latency, rate):
        axes.grid(visible=True, alpha=0.3)
    # The same figures give the same file.
    with matplotlib.rc_context({"svg.hashsalt": "tidegate"}):
        figure.savefig(path, dpi=120, metadata={"Date": None} if path.suffix == ".svg" else None)
