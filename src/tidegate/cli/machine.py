"""What the machine, or the container, offers: for ``tidegate doctor``."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tidegate.cli.findings import Finding, fail, ok, warn
from tidegate.cli.options import size_text

_OLDEST_PYTHON = (3, 11)
_OLDEST_GLIBC = (2, 31)
_FEW_FILES = 4096
_LITTLE_MEMORY = 512 * 2**20
_ANSWER_TIMEOUT = 15.0
_CGROUP = Path("/sys/fs/cgroup")
_INOTIFY = Path("/proc/sys/fs/inotify")
_ELSEWHERE = "use WSL2 or the container image"


def run(command: Sequence[str]) -> str | None:
    """Return what a command printed, or ``None`` when it could not be run."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_ANSWER_TIMEOUT, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return (done.stdout or done.stderr).strip()


def python() -> Iterator[Finding]:
    """Examine the interpreter."""
    version = f"{platform.python_implementation()} {platform.python_version()}, {sys.executable}"
    if sys.version_info[:2] < _OLDEST_PYTHON:
        yield fail("Python", version, "use Python 3.11 or newer")
    else:
        yield ok("Python", version)


def system() -> Iterator[Finding]:
    """Examine the operating system: Linux with glibc, or macOS on arm64."""
    name, processor = platform.system(), platform.machine()
    if name == "Darwin":
        detail = f"macOS {platform.mac_ver()[0]} on {processor}"
        good = processor == "arm64"
        yield ok("platform", detail) if good else fail("platform", detail, _ELSEWHERE)
        return
    if name != "Linux" or processor not in ("x86_64", "aarch64"):
        yield fail("platform", f"{name} on {processor} is not supported", _ELSEWHERE)
        return
    library, version = platform.libc_ver()
    detail = f"Linux {platform.release()} on {processor}, {library or 'no glibc'} {version}"
    if library != "glibc":
        yield fail("platform", f"{detail}: Envoy's binary needs glibc", _ELSEWHERE)
    elif tuple(int(part) for part in version.split(".")[:2]) < _OLDEST_GLIBC:
        yield fail("platform", f"{detail}: too old, 2.31 is needed", _ELSEWHERE)
    else:
        yield ok("platform", detail)


def gpus(with_cuda: Sequence[str]) -> Iterator[Finding]:
    """Examine the GPUs, given the runtimes that could use one."""
    told = run(["nvidia-smi", "--query-gpu=index,name,memory.total", "--format=csv,noheader"])
    rows = [row for row in (told or "").splitlines() if row[:1].isdigit()]
    if not rows:
        yield ok("GPU", "none is visible; models run on the CPU")
        return
    for row in rows:
        yield ok("GPU", f"cuda:{row}")
    if not with_cuda:
        yield warn(
            "GPU",
            "no installed runtime can use it",
            "pip uninstall onnxruntime; pip install 'onnxruntime-gpu[cuda,cudnn]'",
        )


def open_files() -> Iterator[Finding]:
    """Examine the limit of file descriptors: every connection takes one or two."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    shown, most = ("unlimited" if n == unlimited else str(n) for n in (soft, hard))
    detail = f"{shown} (could be raised to {most})"
    if soft != unlimited and soft < _FEW_FILES:
        yield warn("open files", detail, "before serving many connections: ulimit -n 65536")
    else:
        yield ok("open files", detail)


def inotify() -> Iterator[Finding]:
    """Examine whether the repository can be watched by notifications."""
    if not _INOTIFY.is_dir():
        yield ok("watching", "by the system's own means")
        return
    names = ("max_user_instances", "max_user_watches")
    limits = ", ".join(f"{(_INOTIFY / n).read_text().strip()} {n[9:]}" for n in names)
    library = ctypes.CDLL(None, use_errno=True)
    descriptor = library.inotify_init1(os.O_CLOEXEC)
    if descriptor >= 0:
        os.close(descriptor)
        yield ok("watching", f"inotify with {limits}")
        return
    code = ctypes.get_errno()
    hint = "raise it: sysctl fs.inotify.max_user_instances=1024"
    used = "all inotify instances are in use" if code == errno.EMFILE else os.strerror(code)
    yield warn("watching", f"{used} ({limits}): changes are found by polling", hint)


def memory() -> Iterator[Finding]:
    """Examine the free memory, of the machine and of the container."""
    free, whose = _machine_memory(), "free on the machine"
    left = _container_memory()
    if left is not None and (free is None or left < free):
        free, whose = left, "left in this container"
    if free is None:
        yield ok("memory", "unknown")
    elif free < _LITTLE_MEMORY:
        yield warn("memory", f"{size_text(free)} {whose}", "models may not fit: free some")
    else:
        yield ok("memory", f"{size_text(free)} {whose}")


def cores() -> Iterator[Finding]:
    """Examine the cores: those of the machine, the affinity, the container's share."""
    here = os.cpu_count() or 1
    affinity = getattr(os, "sched_getaffinity", None)
    allowed = float(len(affinity(0)) if affinity else here)
    quota = _read(_CGROUP / "cpu.max").split()
    if len(quota) == 2 and quota[0] != "max":
        allowed = min(allowed, int(quota[0]) / int(quota[1]))
    yield ok("cores", f"{allowed:g} of {here} may be used")


def _machine_memory() -> int | None:
    for line in _read(Path("/proc/meminfo")).splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _container_memory() -> int | None:
    limit, used = _read(_CGROUP / "memory.max"), _read(_CGROUP / "memory.current")
    return int(limit) - int(used) if limit.isdigit() and used.isdigit() else None


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
