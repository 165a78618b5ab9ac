"""Other interpreters than the node's own: those that ``environment`` in ``model.yaml`` names.

Each has Tidegate installed in the node's version; what else it holds is its own affair.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tidegate import __version__
from tidegate.errors import ConfigurationError
from tidegate.repository.formats import REQUIREMENTS

_OLDEST = (3, 11)
_TIMEOUT = 30.0
_SERVING = ("hpack", "httptools", "psutil", "uvloop")
"""The modules of the serving parts that a replica imports."""
_OF_ANOTHER = ("PYTHONHOME", "PYTHONPATH", "__PYVENV_LAUNCHER__")
"""What would mix the packages of two interpreters."""
# For the oldest Python, too: it is to say which it is.
_QUESTIONS = """
import json, sys
found = {"python": list(sys.version_info[:3]), "tidegate": None, "error": "", "lacking": []}
if sys.version_info >= (3, 11):
    import importlib.util
    try:
        import tidegate
        found["tidegate"] = tidegate.__version__
    except Exception as error:
        found["error"] = "%s: %s" % (type(error).__name__, error)
    found["lacking"] = [m for m in sys.argv[1:] if importlib.util.find_spec(m) is None]
print(json.dumps(found))
"""


def variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables for another interpreter: without those that lead to our packages."""
    return {name: value for name, value in environ.items() if name not in _OF_ANOTHER}


def is_own(interpreter: Path, own: str) -> bool:
    """Whether ``interpreter`` is of the environment of ``own``, a ``sys.executable``."""
    # Both are links to one program: what tells environments apart is where the links lie.
    with contextlib.suppress(OSError):
        return interpreter.parent.samefile(Path(own).parent)
    return False


async def check(interpreter: Path, runtime: str, timeout: float = _TIMEOUT) -> None:
    """Make sure that replicas of ``runtime`` can run in another interpreter.

    Raises:
        ConfigurationError: it is not there, is no Python of 3.11 or newer, or lacks Tidegate in
            this very version or what the runtime needs; the message says what to do.
    """
    module, extra = REQUIREMENTS[runtime].module, REQUIREMENTS[runtime].extra
    command = f"'{interpreter} -m pip install tidegate[{extra}]=={__version__}'"
    _look(interpreter, command)
    found = await _ask(interpreter, (*_SERVING, module), timeout)
    version = ".".join(map(str, found["python"]))
    if tuple(found["python"][:2]) < _OLDEST:
        raise _wrong(interpreter, f"is Python {version}", "take Python 3.11 or newer")
    if found["tidegate"] is None:
        raise _wrong(interpreter, f"has no Tidegate ({found['error']})", f"run {command}")
    if found["tidegate"] != __version__:
        what = f"has Tidegate {found['tidegate']}, and this node is {__version__}"
        raise _wrong(interpreter, what, f"run {command}")
    if found["lacking"]:
        raise _wrong(interpreter, f"lacks {', '.join(found['lacking'])}", f"run {command}")


def _look(interpreter: Path, command: str) -> None:
    if interpreter.is_dir():
        what = "is a folder"
        raise _wrong(interpreter, what, f"give the program in it, as {interpreter}/bin/python")
    if not interpreter.exists():
        folder = interpreter.parent.parent
        raise _wrong(
            interpreter, "does not exist", f"make it with 'python -m venv {folder}' and {command}"
        )
    if not os.access(interpreter, os.X_OK):
        raise _wrong(interpreter, "cannot be executed by this user", "allow it")


async def _ask(interpreter: Path, modules: tuple[str, ...], timeout: float) -> dict[str, Any]:
    try:
        child = await asyncio.create_subprocess_exec(
            str(interpreter), "-c", _QUESTIONS, *modules,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=variables(os.environ),
        )  # fmt: skip
    except OSError as error:
        raise _wrong(interpreter, f"cannot be run: {error.strerror}", "give a Python") from error
    try:
        output, errors = await asyncio.wait_for(child.communicate(), timeout)
    except TimeoutError as error:
        what = f"did not answer within {timeout:g} s"
        raise _wrong(interpreter, what, "look at what it does at its start") from error
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()
    try:
        found: dict[str, Any] = json.loads(output.splitlines()[-1])
        return {"python": found["python"], **found}
    except (ValueError, LookupError, TypeError) as error:
        said = (errors or output).decode("utf-8", "replace").strip().splitlines()[-1:]
        what = f"does not run as a Python: {''.join(said)[:200] or 'it said nothing'}"
        raise _wrong(interpreter, what, "give the path of a Python") from error


def _wrong(interpreter: Path, what: str, advice: str) -> ConfigurationError:
    return ConfigurationError(f"environment: {interpreter} {what}; {advice}")
