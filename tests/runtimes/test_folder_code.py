"""Code in models' folders: siblings, and nothing of one model in another."""

from __future__ import annotations

import importlib
import pickle
import sys
import threading
from pathlib import Path

import pytest

from tidegate.errors import InvalidModel
from tidegate.runtimes.folder_code import PREFIX, code_in

_HOOKS = """
import json
from pathlib import Path

import words
from models.net import Net
from models import layers
import models.layers as again


def lazily():
    import late
    return late.NAME


def named(name):
    import importlib
    return importlib.import_module(name)
"""


def _write(folder: Path, name: str) -> Path:
    (folder / "models").mkdir(parents=True)
    (folder / "hooks.py").write_text(_HOOKS)
    (folder / "words.py").write_text(f"NAME = {name!r}\nclass Word:\n    pass\n")
    (folder / "late.py").write_text("import words\nNAME = 'late ' + words.NAME\n")
    (folder / "models" / "__init__.py").write_text("")
    (folder / "models" / "layers.py").write_text("import words\nOF = words.NAME\n")
    (folder / "models" / "net.py").write_text(
        "from . import layers\nfrom words import NAME\nclass Net:\n    of = NAME + layers.OF\n"
    )
    return folder


def test_two_models_with_modules_of_the_same_names(tmp_path: Path) -> None:
    one, two = _write(tmp_path / "one", "1"), _write(tmp_path / "two", "2")
    known, path = set(sys.modules), list(sys.path)
    first = code_in(one / "model.onnx", one).load("hooks")
    second = code_in(two / "model.onnx", two).load("hooks")
    assert (first.words.NAME, first.Net.of, first.lazily()) == ("1", "11", "late 1")
    assert (second.words.NAME, second.Net.of, second.lazily()) == ("2", "22", "late 2")
    assert first.again is first.layers
    assert first.json is sys.modules["json"]
    new = set(sys.modules) - known
    assert all(name.startswith(PREFIX) for name in new)
    assert sys.path == path
    assert not list(tmp_path.rglob("__pycache__"))


def test_the_versions_folder_goes_before_the_models(tmp_path: Path) -> None:
    (tmp_path / "3").mkdir()
    (tmp_path / "hooks.py").write_text("import words")
    (tmp_path / "words.py").write_text("NAME = 'model'")
    (tmp_path / "3" / "words.py").write_text("NAME = 'version'")
    code = code_in(tmp_path / "3" / "model.onnx", tmp_path)
    assert code.load("hooks").words.NAME == "version"
    assert code.path("hooks.py") == tmp_path.resolve() / "hooks.py"
    assert code.path("nothing.py") is None


def test_who_asks_again_gets_the_same_until_a_file_changes(tmp_path: Path) -> None:
    (tmp_path / "hooks.py").write_text("N = 1")
    code = code_in(tmp_path / "m", tmp_path)
    assert code_in(tmp_path / "m", tmp_path) is code
    assert code.load("hooks") is code.load("hooks")
    (tmp_path / "hooks.py").write_text("N = 22")
    assert code_in(tmp_path / "m", tmp_path).load("hooks").N == 22


def test_exposed_modules_are_the_same_by_plain_names(tmp_path: Path) -> None:
    one, two = _write(tmp_path / "one", "1"), _write(tmp_path / "two", "2")
    code = code_in(one / "m", one)
    hooks = code.load("hooks")
    with pytest.raises(ModuleNotFoundError):
        hooks.named("words")
    code.expose()
    assert hooks.named("words") is hooks.words
    assert hooks.named("models.net").Net is hooks.Net
    assert hooks.words.__name__ == hooks.words.__spec__.name == f"{code.package}.words"
    word = pickle.loads(b"\x80\x04cwords\nWord\n)\x81.")
    assert type(word) is hooks.words.Word
    assert type(pickle.loads(pickle.dumps(word))) is hooks.words.Word
    other = code_in(two / "m", two)
    other.expose()
    assert importlib.import_module("words").NAME == "2"
    assert hooks.words.NAME == "1"
    empty = tmp_path / "empty"
    empty.mkdir()
    code_in(empty / "m", empty).expose()
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("words")


def test_an_installed_package_is_not_taken_by_what_is_exposed(tmp_path: Path) -> None:
    (tmp_path / "colorsys.py").write_text("OWN = 1")
    (tmp_path / "hooks.py").write_text("import colorsys")
    code = code_in(tmp_path / "m", tmp_path)
    code.expose()
    sys.modules.pop("colorsys", None)
    assert code.load("hooks").colorsys.OWN == 1
    assert not hasattr(importlib.import_module("colorsys"), "OWN")


def test_many_threads_import_the_same_module(tmp_path: Path) -> None:
    hooks = code_in(_write(tmp_path / "one", "1") / "m", tmp_path / "one").load("hooks")
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(hooks.lazily())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["late 1"] * 8


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("1 / 0", "hooks.py, line 1, raised ZeroDivisionError: division by zero"),
        ("def f(:", "hooks.py, line 1, raised SyntaxError"),
        ("import sys\nsys.exit(3)", "hooks.py, line 2, raised SystemExit: 3"),
        ("import broken", "broken.py, line 2, raised KeyError: 'x'"),
        ("import not_there", "hooks.py, line 1, raised ModuleNotFoundError"),
    ],
)
def test_what_raises_is_named_with_its_line(tmp_path: Path, source: str, said: str) -> None:
    (tmp_path / "hooks.py").write_text(source)
    (tmp_path / "broken.py").write_text("\nraise KeyError('x')")
    with pytest.raises(InvalidModel) as refused:
        code_in(tmp_path / "m", tmp_path).load("hooks")
    assert str(refused.value).startswith(said)
