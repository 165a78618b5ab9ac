from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import codecs


def test_every_contestant_reads_and_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(codecs, "SHAPE", (1, 3, 16, 16))
    monkeypatch.setenv("COLUMNS", "300")  # a slow call is a long number, and would break its row
    output = tmp_path / "rounds.json"
    codecs.run(1, output)
    assert "orjson, numpy" in capsys.readouterr().out
    kept = json.loads(output.read_text())["milliseconds"]
    assert {len(rounds) for ways in kept.values() for rounds in ways.values()} == {1}
