"""What is told of GPUs, by a library that is made up."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from tidegate.node.gpus import Gpu, Gpus


class Library:
    """As ``pynvml`` of ``nvidia-ml-py``: two GPUs, of which the second tells little."""

    def __init__(self) -> None:
        self.calls = 0
        self.broken = False

    def nvmlInit(self) -> None:  # noqa: N802
        self.calls += 1

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        if self.broken:
            raise RuntimeError("GPU is lost")
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:  # noqa: N802
        return SimpleNamespace(used=100 + handle, total=1000)

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:  # noqa: N802
        if handle == 1:
            raise RuntimeError("Not Supported")
        return SimpleNamespace(gpu=37)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> Any:  # noqa: N802
        if handle == 1:
            raise RuntimeError("Not Supported")
        return [
            SimpleNamespace(pid=7, usedGpuMemory=50),
            SimpleNamespace(pid=8, usedGpuMemory=None),
        ]


def test_what_gpus_tell_and_what_they_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library()
    monkeypatch.setitem(sys.modules, "pynvml", library)
    gpus = Gpus()
    found = [Gpu(0, 100, 1000, 0.37, {7: 50}), Gpu(1, 101, 1000, None, {})]
    assert gpus.look() == gpus.look() == found
    assert library.calls == 1
    library.broken = True
    assert gpus.look() == []
    library.broken = False
    assert gpus.look() == [], "one that was lost is not asked at each scrape"


def test_no_library_and_no_driver_are_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert Gpus().look() == []
    library = Library()
    monkeypatch.setattr(library, "nvmlInit", lambda: 1 / 0)
    monkeypatch.setitem(sys.modules, "pynvml", library)
    assert Gpus().look() == []
