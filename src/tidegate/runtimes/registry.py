"""Which runtimes there are, what each needs, and how to load a model with one.

Looking imports no framework; loading imports the one that is asked for.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tidegate.errors import RuntimeMissing
from tidegate.repository.formats import FORMATS, REQUIREMENTS, installed
from tidegate.runtimes.interface import Model, RuntimeOptions


@dataclass(frozen=True, slots=True)
class Runtime:
    """One runtime of Tidegate."""

    name: str
    module: str
    """The module of ours that has ``load`` and ``devices``."""
    distributions: tuple[str, ...]
    """The packages of the framework, any one of which will do; none: it needs no framework."""
    stacks: int = 0
    """How many stacks of 4 MiB it makes for each thread beyond the first, in all."""

    @property
    def formats(self) -> tuple[str, ...]:
        """The names of the formats that it serves."""
        return tuple(f.name for f in FORMATS.values() if self.name in f.runtimes)

    @property
    def extra(self) -> str:
        """Tidegate's extra that brings it."""
        return REQUIREMENTS[self.name].extra

    @property
    def command(self) -> str:
        """The command that installs it."""
        return REQUIREMENTS[self.name].command


@dataclass(frozen=True, slots=True)
class Availability:
    """Whether a runtime can be used here."""

    runtime: Runtime
    installed: bool
    version: str | None
    """The framework's, or Python's; ``None`` when it is not installed, or not by a package."""


RUNTIMES = {
    runtime.name: runtime
    for runtime in (
        Runtime("onnx", "tidegate.runtimes.onnx", ("onnxruntime", "onnxruntime-gpu")),
        # OpenMP's for each of the two threads that call it, and one of 8 MiB of its own.
        Runtime("torch", "tidegate.runtimes.torch", ("torch",), stacks=4),
        Runtime(
            "caffe",
            "tidegate.runtimes.caffe",
            (
                "opencv-python-headless",
                "opencv-python",
                "opencv-contrib-python-headless",
                "opencv-contrib-python",
            ),
        ),
        Runtime("openvino", "tidegate.runtimes.openvino", ("openvino",)),
        Runtime(
            "tensorflow",
            "tidegate.runtimes.tensorflow",
            ("tensorflow-cpu", "tensorflow", "tensorflow-rocm"),
            # One of 8 MiB, and what each thread has for memory of its own.
            stacks=3,
        ),
        Runtime("python", "tidegate.runtimes.python", ()),
        Runtime("tensorrt", "tidegate.runtimes.tensorrt", ("onnxruntime-gpu",)),
    )
}


def available() -> tuple[Availability, ...]:
    """Return every runtime with whether it is installed; nothing is imported."""
    return tuple(
        Availability(runtime, installed(runtime.name), _version(runtime))
        for runtime in RUNTIMES.values()
    )


def runtime_for(format_name: str) -> Runtime | None:
    """Return the runtime that usually serves a format, or ``None``."""
    found = FORMATS.get(format_name)
    return None if found is None or found.runtime is None else RUNTIMES[found.runtime]


def load(runtime: str, path: Path, options: RuntimeOptions) -> Model:
    """Load a model.

    Raises:
        RuntimeMissing: the runtime is unknown or not installed.
        InvalidModel: the file is not a model that the runtime can load.
        InsufficientMemory: it does not fit.
        ConfigurationError: ``model.yaml`` asks for what the model or the machine has not.
    """
    model: Model = _import(runtime).load(path, options)
    return model


def devices(runtime: str) -> tuple[str, ...]:
    """Return the kinds of device that an installed runtime can use; imports the framework.

    Raises:
        RuntimeMissing: the runtime is unknown or not installed.
    """
    found: tuple[str, ...] = _import(runtime).devices()
    return found


def _import(name: str) -> Any:
    if name not in RUNTIMES:
        raise RuntimeMissing(f"there is no runtime {name!r}; known are {', '.join(RUNTIMES)}")
    runtime = RUNTIMES[name]
    try:
        return importlib.import_module(runtime.module)
    except ImportError as error:
        if not installed(name):
            raise RuntimeMissing(
                f"the runtime {name!r} is not installed; install it: {runtime.command}"
            ) from error
        raise RuntimeMissing(
            f"the runtime {name!r} is installed but cannot be imported: {error}; "
            f"install it again: {runtime.command} --force-reinstall"
        ) from error


def _version(runtime: Runtime) -> str | None:
    if not runtime.distributions:
        return platform.python_version()
    for distribution in runtime.distributions:
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None
