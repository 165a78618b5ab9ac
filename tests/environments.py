"""A second environment for the tests: made at once, without a network."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import tidegate

ONLY_HERE = "only_here"
"""A module that no other environment has."""


def make_environment(folder: Path) -> Path:
    """Make an environment that sees the packages of this one; return its interpreter."""
    command = [sys.executable, "-m", "venv", "--without-pip", str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    packages = sysconfig.get_path("purelib", "venv", {"base": str(folder)})
    seen = [Path(tidegate.__file__).parents[1], *(p for p in sys.path if "site-packages" in p)]
    (Path(packages) / "seen.pth").write_text("".join(f"{path}\n" for path in seen))
    (Path(packages) / f"{ONLY_HERE}.py").write_text("NAME = 'second'\n")
    return folder / "bin" / "python"
