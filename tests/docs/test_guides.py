"""What the guides show in Python runs as it stands there."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier

from tidegate import serve
from tidegate.repository.layout import read_model
from tidegate.runtimes import registry
from tidegate.runtimes.interface import RuntimeOptions

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "examples" / "models"


def blocks(page: str, **instead: str) -> list[str]:
    text = (ROOT / "docs" / "guides" / page).read_text(encoding="utf-8")
    for old, new in instead.items():
        assert old in text
        text = text.replace(old, new)
    found = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert found
    return found


def run(code: str, names: dict[str, Any]) -> None:
    compiled = compile(code, "guide", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    done = eval(compiled, names)
    if inspect.iscoroutine(done):
        asyncio.run(done)


def test_calling_models_from_python() -> None:
    names: dict[str, Any] = {}
    with serve(MODELS, public_control=True) as server:
        target = server.url.removeprefix("http://")
        for code in blocks("call-from-python.md", **{"127.0.0.1:8000": target}):
            run(code, names)
        assert names["answer"]["digit"].shape == (3,)
        names["client"].close()


@pytest.mark.filterwarnings("ignore")  # of the packages that Keras imports
def test_from_tensorflow_serving(tmp_path: Path) -> None:
    from tests import tensorflow_models as made  # quietly

    def scores(images: Any) -> Any:
        return {"scores": images * 2}

    form = ([None, 4], made.tf.float32)
    made.save_function(tmp_path / "flowers" / "1", scores, images=form)
    images = np.ones((2, 4), np.float32)
    with serve(tmp_path) as server:
        target = server.url.removeprefix("http://")
        [code] = blocks("from-tensorflow-serving.md", **{"localhost:8000": target})
        names: dict[str, Any] = {"images": images}
        run(code, names)
    assert np.array_equal(names["scores"], images * 2)


@pytest.mark.filterwarnings("ignore")  # of the packages that Keras imports
def test_tensorflow_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.tensorflow_models import tf  # quietly

    assert tf is not None
    monkeypatch.chdir(tmp_path)
    save, call = blocks("tensorflow.md")
    run(save, {})
    with serve(tmp_path / "models") as server:
        names: dict[str, Any] = {}
        run(call.replace("http://127.0.0.1:8000", server.url), names)
        assert names["answer"]["characters"].tolist() == [4]
        answer = server.model("mood").infer({"text": ["Good, good", "BAD day"]})
        assert answer["score"].tolist() == [1.0, -1.0]


def test_a_model_in_python(tmp_path: Path) -> None:
    measures, kinds = load_iris(return_X_y=True)
    forest = RandomForestClassifier(5).fit(measures, kinds)
    joblib.dump(forest, tmp_path / "forest.joblib")
    (tmp_path / "model.py").write_text(blocks("python-models.md")[0])
    (version,) = read_model(tmp_path).versions.values()
    model = registry.load(version.runtime, version.path, RuntimeOptions(folder=tmp_path))
    answer = model.run({"measures": measures.astype(np.float32)}, ["probabilities"])
    assert answer["probabilities"].shape == (150, 3)


def test_serving_from_a_notebook() -> None:
    names: dict[str, Any] = {"images": np.zeros((2, 1, 8, 8), np.float32)}
    for code in blocks("notebook.md", **{'serve("./models': f'serve("{MODELS}'}):
        run(code, names)
    names["server"].stop()


def test_models_with_curl() -> None:
    text = (ROOT / "docs" / "guides" / "browser-and-curl.md").read_text(encoding="utf-8")
    shown = re.findall(r"^\$ (curl .*)\n(.*)$", text, re.MULTILINE)
    assert len(shown) == 4
    if shutil.which("curl") is None:
        pytest.skip("there is no curl here")
    examples = ROOT / "examples" / "hooks"
    with serve(examples) as server:
        for command, answer in shown:
            arguments = shlex.split(command.replace("localhost:8000", server.url))
            arguments.insert(1, "-sS")
            found = subprocess.run(
                arguments, cwd=examples / "digits", capture_output=True, check=True
            )
            assert found.stdout.decode() == answer
