from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import ENVIRONMENT, RunningNode, tidegate

BASH = shutil.which("bash")
FISH, ZSH = shutil.which("fish"), shutil.which("zsh")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_each_shell(shell: str) -> None:
    done = tidegate("completion", shell)
    assert done.returncode == 0
    script = done.stdout.decode()
    assert f"_TIDEGATE_COMPLETE={shell}_complete" in script
    found = shutil.which(shell)
    if found is not None:
        subprocess.run([found, "-n"], input=script, text=True, check=True)


def test_an_unknown_shell() -> None:
    done = tidegate("completion", "csh")
    assert done.returncode == 2
    assert b"'bash', 'zsh', 'fish'" in done.stderr


def _with_command(folder: Path) -> dict[str, str]:
    """Return an environment that has ``tidegate`` on its path."""
    folder.mkdir(exist_ok=True)
    script = folder / "tidegate"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m tidegate.cli "$@"\n')
    script.chmod(0o755)
    return ENVIRONMENT | {"PATH": f"{folder}:{os.environ['PATH']}"}


def _complete(folder: Path, *words: str) -> list[str]:
    """What bash offers for ``words``, by the script as a shell would read it."""
    assert BASH is not None
    typed = " ".join(f"'{word}'" for word in words)
    done = subprocess.run(
        [BASH, "--norc", "-c",
         f'eval "$(tidegate completion bash)"; COMP_WORDS=({typed}); '
         f"COMP_CWORD={len(words) - 1}; _tidegate_completion tidegate 2>/dev/null; "
         'printf "%s\\n" "${COMPREPLY[@]}"'],
        env=_with_command(folder),
        capture_output=True,
        text=True,
        check=True,
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.skipif(BASH is None, reason="there is no bash here")
def test_bash_completes_commands_options_and_models(node: RunningNode, tmp_path: Path) -> None:
    assert _complete(tmp_path / "bin", "tidegate", "sta") == ["status"]
    assert "--follow" in _complete(tmp_path / "bin", "tidegate", "logs", "--f")
    at = [f"--run-dir={node.run_dir}"]
    names = _complete(tmp_path / "bin", "tidegate", "logs", *at, "")
    assert {"add_sub", "picture", "scale", "words", "controller", "edge"} <= set(names)
    assert _complete(tmp_path / "bin", "tidegate", "logs", *at, "sc") == ["scale"]
    nowhere = [f"--run-dir={tmp_path}"]
    assert _complete(tmp_path / "bin", "tidegate", "logs", *nowhere, "e") == ["edge"]


@pytest.mark.skipif(FISH is None, reason="there is no fish here")
def test_fish_completes_commands_options_and_models(node: RunningNode, tmp_path: Path) -> None:
    assert FISH is not None
    environment = _with_command(tmp_path / "bin") | {"HOME": str(tmp_path)}
    script = "tidegate completion fish | source; "
    for typed, offered in (
        ("tidegate sta", ["status"]),
        ("tidegate infer --dat", ["--data"]),
        (f"tidegate logs --run-dir={node.run_dir} sc", ["scale"]),
    ):
        done = subprocess.run(
            [FISH, "--no-config", "-c", f"{script}complete -C '{typed}'"],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert [line.partition("\t")[0] for line in done.stdout.splitlines()] == offered


@pytest.mark.skipif(ZSH is None, reason="there is no zsh here")
def test_zsh_takes_the_script(tmp_path: Path) -> None:
    assert ZSH is not None
    done = subprocess.run(
        [ZSH, "-f", "-c",
         f'autoload -Uz compinit; compinit -u -d "{tmp_path}/dump"; '
         'eval "$(tidegate completion zsh)"; print -r -- "$_comps[tidegate]"'],
        env=_with_command(tmp_path / "bin"),
        capture_output=True,
        text=True,
        check=True,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("_tidegate_completion\n", "")
