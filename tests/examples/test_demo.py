"""The demonstration runs from start to end, and draws what it says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from examples import demo
from examples.train import handwriting

ROOT = Path(__file__).parents[2]


def test_the_demonstration_gets_real_answers_and_stops_cleanly() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "examples.demo"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    for expected in ("REST, JSON", "REST, binary", "gRPC", "version 1", "version 2", "98.6 %"):
        assert expected in ran.stdout
    for other in ("TensorFlow", "Seldon"):
        assert other in ran.stdout
    assert ran.stderr == ""


def test_a_server_that_does_not_start_is_a_failure_with_its_last_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    broken = tmp_path / "tidegate"
    broken.write_text("#!/bin/sh\necho there is no such model >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(sys, "argv", ["demo"])
    with pytest.raises(SystemExit) as ended:
        demo.main()
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert "exit status 3" in said
    assert "there is no such model" in said


def test_a_drawing_without_colours_shows_the_ink() -> None:
    image = np.zeros((1, 8, 8), np.float32)
    image[0, 0, 0] = image[0, 1, 1] = image[0, 2:4, 2] = 16
    lines = demo.drawing(image, colours=False).plain.split("\n")
    assert lines == ["▀▄      ", "  █     ", " " * 8, " " * 8]


def test_the_shown_digits_are_all_different() -> None:
    _, held_out = handwriting.load()
    places = demo.first_of_each(held_out, demo.SHOWN)
    assert len({int(held_out.digits[place]) for place in places}) == demo.SHOWN
