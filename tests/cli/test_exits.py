from __future__ import annotations

from pathlib import Path

import pytest

from tidegate import errors
from tidegate.cli import nodes
from tidegate.cli.exits import documented
from tidegate.cli.main import run


def _below(kind: type[errors.TidegateError]) -> set[type[errors.TidegateError]]:
    return {kind}.union(*map(_below, kind.__subclasses__()))


ROOTS = (errors.TidegateError, errors.ModelError, errors.RequestError)
PUBLIC = {kind for kind in _below(errors.TidegateError) if kind.__module__ == errors.__name__}
RAISED = sorted(PUBLIC.difference(ROOTS), key=lambda kind: kind.__name__)


@pytest.mark.parametrize("kind", RAISED, ids=lambda kind: kind.__name__)
def test_every_error_ends_with_the_status_that_is_documented(
    kind: type[errors.TidegateError],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fails(*arguments: object, **options: object) -> int:
        raise kind("words")

    monkeypatch.setattr(nodes, "status", fails)
    (expected,) = (status for status, names, _ in documented() if kind.__name__ in names)
    assert run(["status"]) == expected
    assert "error: words" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["version"], 0),
        (["status", "--nonsense"], 2),
        (["status", "--run-dir=none"], 66),
        (["config", "--port=x"], 78),
        (["inspect", "none"], 78),
        (["inspect", "words.onnx"], 65),
    ],
)
def test_statuses_of_commands(
    arguments: list[str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words.onnx").write_text("words")
    assert run(arguments) == expected
