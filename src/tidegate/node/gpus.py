"""What the GPUs of the machine say of themselves; there need be none, nor NVIDIA's library."""

from __future__ import annotations

import importlib
import logging
from dataclasses import dataclass, field
from typing import Any

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU; memory in bytes, utilization from 0 to 1."""

    index: int
    used: int
    total: int
    utilization: float | None
    by_process: dict[int, int] = field(default_factory=dict)
    """Memory by process id, where the driver tells."""


class Gpus:
    """Asks NVIDIA's library, ``nvidia-ml-py``, when it is installed and finds a driver."""

    def __init__(self) -> None:
        self._library: Any = None
        self._tried = False

    def look(self) -> list[Gpu]:
        """Return the GPUs; none when they cannot be asked."""
        if not self._tried:
            self._tried = True
            self._library = _open()
        if self._library is None:
            return []
        try:
            count = self._library.nvmlDeviceGetCount()
            return [_look(self._library, index) for index in range(count)]
        except Exception as error:  # NVML's errors have no class that is known without it
            log.warning("the GPUs cannot be asked any more: %s", error)
            self._library = None
            return []


def _open() -> Any:
    try:
        library = importlib.import_module("pynvml")
        library.nvmlInit()
    except Exception as error:
        log.debug("no GPUs: %s", error)
        return None
    return library


def _look(library: Any, index: int) -> Gpu:
    handle = library.nvmlDeviceGetHandleByIndex(index)
    memory = library.nvmlDeviceGetMemoryInfo(handle)
    try:
        utilization = library.nvmlDeviceGetUtilizationRates(handle).gpu / 100
    except Exception:  # not every GPU has it: a slice of one (MIG) does not
        utilization = None
    try:
        running = library.nvmlDeviceGetComputeRunningProcesses(handle)
    except Exception:
        running = ()
    return Gpu(
        index=index,
        used=int(memory.used),
        total=int(memory.total),
        utilization=utilization,
        by_process={p.pid: int(p.usedGpuMemory) for p in running if p.usedGpuMemory is not None},
    )
