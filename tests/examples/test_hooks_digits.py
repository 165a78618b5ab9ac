"""The digits model with hooks: it reads pictures of digits, not their cells alone."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path
from types import ModuleType

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from examples.train import handwriting
from tidegate.hooks import InvalidInput, Request

EXAMPLES = Path(__file__).parents[2] / "examples"
FOLDER = EXAMPLES / "hooks" / "digits"


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    """The file as a notebook would import it."""
    spec = importlib.util.spec_from_file_location("digits_hooks", FOLDER / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def png(picture: Image.Image) -> Request:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return Request(payload=file.getvalue())


def test_the_model_is_that_of_the_other_example() -> None:
    ours, theirs = FOLDER / "1", EXAMPLES / "models" / "digits" / "2"
    assert (ours / "model.onnx").read_bytes() == (theirs / "model.onnx").read_bytes()


@pytest.mark.parametrize("bright", [False, True])
def test_pictures_of_held_out_digits(hooks: ModuleType, bright: bool) -> None:
    _, held_out = handwriting.load()
    session = onnxruntime.InferenceSession(FOLDER / "1" / "model.onnx")
    paper, ink = (0, 1) if bright else (255, -1)
    right = 0
    for cells, digit in zip(held_out.images[:100], held_out.digits):
        pixels = (paper + ink * cells[0] * (255 / 16)).clip(0, 255).astype(np.uint8)
        picture = Image.new("RGB", (300, 260), (paper,) * 3)
        drawn = Image.fromarray(pixels).resize((200, 200), Image.Resampling.BICUBIC)
        picture.paste(drawn, (30, 20))
        array = hooks.preprocess(png(picture))
        (probabilities,) = session.run(["probabilities"], {"image": array})
        best, *others = hooks.postprocess(Request(), {"probabilities": probabilities})
        right += best["label"] == str(digit)
        assert all(best["score"] >= other["score"] for other in others)
    assert right >= 97


def test_an_empty_sheet(hooks: ModuleType) -> None:
    with pytest.raises(InvalidInput, match="no ink"):
        hooks.preprocess(png(Image.new("L", (50, 50), 200)))
