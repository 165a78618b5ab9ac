"""The plot of shares over time while a backend dies and comes back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.timeline import STEP

_SHOWN = {"kill": "one is killed and started again", "flap": "one goes down and up every second"}


def draw(path: Path, document: Mapping[str, Any]) -> None:
    """Draw shares and p99 over time of the faults that have a place in the documentation."""
    import matplotlib
    from matplotlib.figure import Figure

    shown = [name for name in _SHOWN if name in document["faults"]] or list(document["faults"])[:1]
    figure = Figure(figsize=(8, 3.2 + 2.4 * len(shown)), layout="constrained")
    panels = figure.subplots(len(shown) + 1, 1, sharex=True)
    for axes, name in zip(panels, shown):
        told = document["faults"][name]
        line = told["timeline"]
        at = np.array(line["seconds"]) + STEP / 2
        for backend, shares in line["shares"].items():
            axes.plot(at, 100 * _smooth(shares), label=f"backend {backend}")
        axes.axvspan(told["began"], told["healed"], color="grey", alpha=0.12, lw=0)
        axes.set_ylabel("share of calls, %")
        axes.set_ylim(bottom=0)
        axes.set_title(_SHOWN.get(name, name))
        axes.legend(loc="upper right")
    last = panels[-1]
    for name in shown:
        line = document["faults"][name]["timeline"]
        last.plot(np.array(line["seconds"]) + STEP / 2, line["p99 ms"], label=name)
    last.set_yscale("log")
    last.set_ylabel("p99, ms")
    last.set_xlabel("seconds")
    last.legend(loc="upper right")
    for axes in panels:
        axes.grid(visible=True, alpha=0.3)
    # The same figures give the same file.
    with matplotlib.rc_context({"svg.hashsalt": "tidegate"}):
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(path, dpi=120, metadata=metadata)


def _smooth(values: Sequence[float]) -> np.ndarray[Any, Any]:
    """Return means of three points, so that what is drawn is no noise of few calls."""
    padded = np.pad(np.array(values, np.float64), 1, mode="edge")
    return np.convolve(padded, np.ones(3) / 3, mode="valid")
