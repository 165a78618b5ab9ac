"""``tidegate infer`` of models with hooks: what they take is given as it is."""

from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from tests import dl_inference, models
from tidegate.cli.main import run
from tidegate.config.model import ModelConfig

_HOOKS = """
import numpy as np

INPUT = {kind!r}

def preprocess(request):
    return np.ones((1, 4), np.float32)

def postprocess(request, outputs):
    {answer}
"""


def folder(path: Path, kind: str | None, answer: str) -> str:
    models.identity(path / "model.onnx")
    (path / "hooks.py").write_text(_HOOKS.format(kind=kind, answer=answer))
    return str(path)


def asked(capfd: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert run(["infer", *arguments, "--format", "json"]) == 0
    return json.loads(capfd.readouterr().out)


@pytest.mark.parametrize("kind", ["image", None])
def test_an_image(tmp_path: Path, capfd: pytest.CaptureFixture[str], kind: str | None) -> None:
    answer = "return {'size': request.image().size, 'y': outputs['y']}"
    model = folder(tmp_path / "m", kind, answer)
    buffer = io.BytesIO()
    Image.new("RGB", (3, 5)).save(buffer, "PNG")
    (tmp_path / "x.png").write_bytes(buffer.getvalue())
    found = asked(capfd, model, str(tmp_path / "x.png"))
    assert found == {"payload": {"size": [3, 5], "y": [[1, 1, 1, 1]]}}
    assert run(["infer", model, str(tmp_path / "x.png"), "--format", "table"]) == 0
    assert '"size": [' in capfd.readouterr().out
    assert run(["infer", model, str(tmp_path / "x.png"), "--format", "v2"]) == 0
    (output,) = json.loads(capfd.readouterr().out)["outputs"]
    assert (output["name"], output["shape"]) == ("payload", [1])


@pytest.mark.parametrize("kind", ["json", None])
def test_json(tmp_path: Path, capfd: pytest.CaptureFixture[str], kind: str | None) -> None:
    model = folder(tmp_path / "m", kind, "return [request.json]")
    assert asked(capfd, model, "--data", '{"a": [1]}') == {"payload": [{"a": [1]}]}
    assert asked(capfd, model, "--data", '"word"') == {"payload": ["word"]}


def test_a_text(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = folder(tmp_path / "m", "text", "return request.text.upper()")
    (tmp_path / "x.txt").write_text("{a} grün")
    assert asked(capfd, model, str(tmp_path / "x.txt")) == {"payload": "{A} GRÜN"}
    assert asked(capfd, model, "--data", '"word"') == {"payload": "WORD"}
    assert asked(capfd, model, "--data", '{"text": ["word"]}') == {"payload": "WORD"}
    assert run(["infer", model, "--data", "[1]"]) != 0


def test_a_folder_of_dl_inference(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = str(dl_inference.write(tmp_path / "mmoe"))
    answer = asked(capfd, model, "--data", '{"numbers": [1, 2, 3, 4]}')
    assert answer["payload"]["sum"] == 20.0
    (tmp_path / "x.txt").write_text("1 2 3 4")
    with contextlib.chdir(tmp_path):
        assert asked(capfd, "mmoe/", "x.txt")["payload"]["file"] == "2"
    assert run(["inspect", model]) == 0


def test_bytes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = folder(tmp_path / "m", "bytes", "return request.data[::-1]")
    (tmp_path / "x").write_bytes(b"ab\xff")
    assert asked(capfd, model, str(tmp_path / "x")) == {"payload": {"b64": "/2Jh"}}


GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "hooks.md"


def test_the_guides_examples(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text = GUIDE.read_text("utf-8")
    for settings in re.findall(r"^```yaml\n(.*?)^```", text, re.M | re.S):
        ModelConfig.model_validate(yaml.safe_load(settings))
    hooks = re.search(r"^```python\n(.*?)^```", text, re.M | re.S)
    assert hooks is not None
    models.identity(tmp_path / "model.onnx", shape=("batch", 3, 224, 224))
    (tmp_path / "hooks.py").write_text(hooks[1].replace('["logits"][0]', '["y"][0].mean((1, 2))'))
    (tmp_path / "labels.py").write_text("LABELS = ['rose', 'grass', 'sky']\n")
    for size, color in ((20, "blue"), (9, "blue")):
        Image.new("RGB", (size, size), color).save(tmp_path / f"{size}.png")
    assert asked(capfd, str(tmp_path), str(tmp_path / "20.png")) == {"payload": {"label": "sky"}}
    assert run(["infer", str(tmp_path), str(tmp_path / "9.png")]) != 0
    assert "the image is too small" in capfd.readouterr().err
