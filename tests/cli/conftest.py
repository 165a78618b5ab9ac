"""One real node, which the tests of the commands that talk to a node share."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import models
from tests.ports import free_port
from tidegate.types import DType

ENVIRONMENT = {name: v for name, v in os.environ.items() if not name.startswith("TIDEGATE_")}
START = 120.0


def command(*arguments: str) -> list[str]:
    """The command line of ``tidegate ARGUMENTS``."""
    return [sys.executable, "-m", "tidegate.cli", *arguments]


def tidegate(
    *arguments: str, stdin: bytes = b"", cwd: Path | None = None, timeout: float = 240
) -> subprocess.CompletedProcess[bytes]:
    """Run a command to its end."""
    return subprocess.run(
        command(*arguments),
        input=stdin,
        capture_output=True,
        cwd=cwd,
        env=ENVIRONMENT,
        timeout=timeout,
    )


def in_terminal(*arguments: str, stdin: Any = None, stdout: Any = None) -> tuple[int, bytes]:
    """Run a command in a terminal; return its status and what a person saw."""
    reading, writing = pty.openpty()
    with subprocess.Popen(
        command(*arguments),
        stdin=subprocess.DEVNULL if stdin is None else stdin,
        stdout=writing if stdout is None else stdout,
        stderr=writing,
        env=ENVIRONMENT | {"TERM": "xterm", "COLUMNS": "100"},
    ) as process:
        os.close(writing)
        shown = b""
        try:
            while piece := os.read(reading, 4096):
                shown += piece
        except OSError:
            pass  # Linux's way to say that the other end is closed
        os.close(reading)
    return process.returncode, shown


def write_models(root: Path) -> Path:
    """A repository with models of several kinds; returns it."""
    models.scale(root / "scale/1/model.onnx", 2.0)
    models.scale(root / "scale/2/model.onnx", 3.0)
    (root / "scale/model.yaml").write_text("versions: all\nreplicas: 2\n")
    models.identity(root / "words.onnx", DType.BYTES, ("n",))
    models.identity(root / "picture.onnx", DType.FP32, ("n", 3, 4, 6))
    models.add_sub(root / "add_sub.onnx")
    models.gather(root / "gather.onnx")
    return root


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository of the shared node."""
    return write_models(tmp_path_factory.mktemp("cli") / "models")


@dataclass(frozen=True)
class RunningNode:
    """The shared node."""

    repository: Path
    run_dir: Path
    port: int
    admin_port: int

    @property
    def options(self) -> list[str]:
        """The options that choose it."""
        return [f"--port={self.port}", f"--run-dir={self.run_dir}"]


@pytest.fixture(scope="session")
def node(repository: Path) -> Iterator[RunningNode]:
    """A node that is ready."""
    # A Unix socket's path has 107 bytes: pytest's temporary folders are too deep.
    run_dir = Path(tempfile.mkdtemp(prefix="tg", dir="/tmp"))
    found = RunningNode(repository, run_dir, free_port(), free_port())
    process = subprocess.Popen(
        command("serve", str(repository), f"--admin-port={found.admin_port}", *found.options),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=ENVIRONMENT,
    )
    timer = threading.Timer(START, process.kill)
    timer.start()
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if line.split()[1:] == [b"ready"]:
            break
    timer.cancel()
    drain = threading.Thread(target=process.stdout.read)
    drain.start()
    try:
        assert process.poll() is None, b"".join(said).decode()
        yield found
    finally:
        process.terminate()
        assert process.wait(60) == 0
        drain.join()
        process.stdout.close()
        shutil.rmtree(run_dir, ignore_errors=True)
