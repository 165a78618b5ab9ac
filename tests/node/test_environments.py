from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

from tests.environments import make_environment
from tidegate import __version__
from tidegate.errors import ConfigurationError
from tidegate.node.environments import check, is_own, variables
from tidegate.repository.formats import REQUIREMENTS


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_environment(tmp_path_factory.mktemp("environment") / "venv")


def program(path: Path, text: str, mode: int = 0o755) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(mode)
    return path


def answers(path: Path, **told: object) -> Path:
    """Write a program that answers as a Python of that kind would."""
    said = {"python": [3, 11, 7], "tidegate": __version__, "error": "", "lacking": []} | told
    return program(path, f"echo at the start\necho '{json.dumps(said)}'")


async def refusal(interpreter: Path, timeout: float = 30.0) -> str:
    with pytest.raises(ConfigurationError) as raised:
        await check(interpreter, "onnx", timeout)
    assert str(raised.value).startswith(f"environment: {interpreter} ")
    return str(raised.value).removeprefix(f"environment: {interpreter} ")


@pytest.mark.parametrize("runtime", REQUIREMENTS)
async def test_an_environment_with_everything(second: Path, runtime: str) -> None:
    await check(second, runtime)


async def test_what_is_no_program(tmp_path: Path) -> None:
    path = tmp_path / "venv" / "bin" / "python"
    install = f"'{path} -m pip install tidegate[onnx]=={__version__}'"
    assert await refusal(path) == (
        f"does not exist; make it with 'python -m venv {tmp_path / 'venv'}' and {install}"
    )
    assert "is a folder; give the program in it" in await refusal(tmp_path)
    path = program(tmp_path / "python", "", 0o644)
    if os.geteuid():
        assert "cannot be executed by this user" in await refusal(path)
    broken = tmp_path / "broken"
    broken.write_bytes(b"\x7fELF of nothing")
    broken.chmod(0o755)
    assert "cannot be run: Exec format error" in await refusal(broken)


async def test_what_is_no_python(tmp_path: Path) -> None:
    silent = program(tmp_path / "silent", "exit 0")
    assert "does not run as a Python: it said nothing" in await refusal(silent)
    loud = program(tmp_path / "loud", "echo what is -c >&2; exit 2")
    assert "does not run as a Python: what is -c" in await refusal(loud)
    other = program(tmp_path / "other", "echo '[1]'")
    assert "does not run as a Python" in await refusal(other)


async def test_one_that_hangs_is_ended(tmp_path: Path) -> None:
    hangs = program(tmp_path / "hangs", f"echo $$ > {tmp_path / 'pid'}; exec sleep 600")
    assert "did not answer within 3 s" in await refusal(hangs, 3.0)
    pid = int((tmp_path / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_one_that_lacks_something(tmp_path: Path) -> None:
    path = tmp_path / "python"
    install = f"run '{path} -m pip install tidegate[onnx]=={__version__}'"
    cases: list[tuple[dict[str, object], str]] = [
        ({"python": [3, 10, 1]}, "is Python 3.10.1; take Python 3.11 or newer"),
        ({"python": [2, 7, 18]}, "is Python 2.7.18; take Python 3.11 or newer"),
        (
            {"tidegate": None, "error": "ModuleNotFoundError: No module named tidegate"},
            f"has no Tidegate (ModuleNotFoundError: No module named tidegate); {install}",
        ),
        ({"tidegate": "0.0.9"}, f"has Tidegate 0.0.9, and this node is {__version__}; {install}"),
        ({"lacking": ["uvloop", "onnxruntime"]}, f"lacks uvloop, onnxruntime; {install}"),
    ]
    for told, message in cases:
        assert await refusal(answers(path, **told)) == message


async def test_a_real_one_without_tidegate(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "bare")
    )
    assert await process.wait() == 0
    told = await refusal(tmp_path / "bare" / "bin" / "python")
    assert told.startswith(
        "has no Tidegate (ModuleNotFoundError: No module named 'tidegate'); run"
    )


def test_nothing_of_the_nodes_packages_reaches_it() -> None:
    assert variables({"PYTHONPATH": "/a", "PYTHONHOME": "/b", "PATH": "/c"}) == {"PATH": "/c"}


def test_environments_are_told_apart_by_where_they_lie(second: Path) -> None:
    assert is_own(second, str(second.with_name("python3")))
    assert not is_own(second, sys.executable)
    assert not is_own(Path("/nowhere/bin/python"), sys.executable)
