"""What an Envoy has in its run directory, and leaves there when it is killed.

Every process there has an epoch, one more with each hot restart; files are named after it.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

import psutil

LOG = "envoy.log"
BASE_ID = "base-id"
KILL_GRACE = 2.0
"""Seconds that Envoy has to end on a signal when nothing is under way any more."""
_LOG_LINES = 12


def admin_socket_of(run_dir: Path, epoch: int) -> Path:
    """Return where the Envoy of an epoch answers its operator."""
    return run_dir / f"admin-{epoch}.sock"


def bootstrap_path(run_dir: Path, epoch: int) -> str:
    """Return where its first configuration lies; its command line names it."""
    return str(run_dir / f"bootstrap-{epoch}.json")


def last_words_of(log: Path) -> str:
    """Return the end of a log, for messages."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 16384))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError as error:
        return f"(its log cannot be read: {error})"
    return "\n".join(lines[-_LOG_LINES:]) or "(its log is empty)"


def running(run_dir: Path) -> dict[int, list[psutil.Process]]:
    """Find the Envoys of ``run_dir`` by their epochs."""
    bootstrap = re.compile(re.escape(f"{run_dir}/") + "bootstrap-([0-9]+)[.]json")
    found: dict[int, list[psutil.Process]] = {}
    for process in psutil.process_iter(["cmdline", "status"]):
        if process.info["status"] == psutil.STATUS_ZOMBIE:
            continue
        for argument in process.info["cmdline"] or []:
            if match := bootstrap.fullmatch(argument):
                found.setdefault(int(match[1]), []).append(process)
    return found


def end_unrecorded(run_dir: Path) -> None:
    """End every Envoy of ``run_dir``, when none is recorded that could be adopted.

    There is one if a controller was killed while it started it.
    """
    found = [process for processes in running(run_dir).values() for process in processes]
    for process in found:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(found, timeout=KILL_GRACE)
    if found:
        forget_earlier(run_dir)


def forget_earlier(run_dir: Path) -> None:
    """Remove what an Envoy that was killed left here and in memory."""
    file = run_dir / BASE_ID
    with contextlib.suppress(OSError, ValueError):
        remove_shared_memory(int(file.read_text()))
    for path in (file, *run_dir.glob("admin-*.sock")):
        path.unlink(missing_ok=True)


def remove_shared_memory(base_id: int) -> None:
    """Remove the segment through which a hot restart would speak to its parent.

    Envoy names it after ten times the base id, and never removes it.
    """
    segment = f"/dev/shm/envoy_shared_memory_{base_id * 10}"  # noqa: S108 - not a temporary file
    Path(segment).unlink(missing_ok=True)
