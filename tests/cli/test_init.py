"""``tidegate init`` writes files that work as they are."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from tests import models
from tidegate.cli.main import run


def test_the_template_of_hooks_changes_nothing(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    models.identity(tmp_path / "model.onnx")
    assert run(["init", "hooks", str(tmp_path)]) == 0
    assert b"hooks.py: edit it" in capfdbinary.readouterr().out
    row = "[[1, 2, 3, 4]]"
    assert run(["infer", str(tmp_path), "--data", f'{{"x": {row}}}', "--format", "json"]) == 0
    answer = orjson.loads(capfdbinary.readouterr().out)
    assert answer["outputs"] == {"y": orjson.loads(row)}


def test_no_file_is_overwritten(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "hooks.py").write_text("mine")
    assert run(["init", "hooks", str(tmp_path)]) != 0
    assert "is there already; it is not changed" in capfd.readouterr().err
    assert (tmp_path / "hooks.py").read_text() == "mine"


@pytest.mark.parametrize("place", ["nowhere", "file"])
def test_there_must_be_a_folder(
    tmp_path: Path, place: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert run(["init", "hooks", str(tmp_path / place)]) != 0
    assert "is no folder: give that of a model" in capfd.readouterr().err
