"""What the model card says of the example model is so."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from examples.train import handwriting

FOLDER = Path(__file__).parents[2] / "examples" / "models" / "digits"
CARD = (FOLDER / "MODEL_CARD.md").read_text(encoding="utf-8")
VERSIONS = ("1", "2")


def answers(version: str, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    session = onnxruntime.InferenceSession(
        FOLDER / version / "model.onnx", providers=["CPUExecutionProvider"]
    )
    probabilities, digits = session.run(["probabilities", "digit"], {"image": images})
    return np.asarray(probabilities), np.asarray(digits)


def stated_accuracy(version: str) -> float:
    row = re.search(rf"^\| {version} \|.*?\| ([0-9.]+) % \|", CARD, re.MULTILINE)
    assert row is not None
    return float(row[1])


def test_the_split_is_the_one_that_the_card_tells() -> None:
    training, held_out = handwriting.load()
    assert f"first {len(training)} samples" in CARD
    assert f"last {len(held_out)} were held out" in CARD
    assert held_out.images.shape == (500, 1, 8, 8)
    assert held_out.images.dtype == np.float32
    assert held_out.images.min() == 0
    assert held_out.images.max() == 16


@pytest.mark.parametrize("version", VERSIONS)
def test_accuracy_on_held_out_data_is_the_stated_one(version: str) -> None:
    _, held_out = handwriting.load()
    probabilities, digits = answers(version, held_out.images)
    assert 100 * (digits == held_out.digits).mean() == pytest.approx(
        stated_accuracy(version), abs=0.25
    )
    assert probabilities.sum(axis=1) == pytest.approx(1, abs=1e-5)
    assert (probabilities.argmax(axis=1) == digits).all()


def test_the_second_version_is_better() -> None:
    assert stated_accuracy("2") > stated_accuracy("1") + 5


@pytest.mark.parametrize("version", VERSIONS)
def test_an_answer_does_not_depend_on_its_neighbours(version: str) -> None:
    _, held_out = handwriting.load()
    together, _ = answers(version, held_out.images[:16])
    alone = np.concatenate([answers(version, held_out.images[i : i + 1])[0] for i in range(16)])
    assert together == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_files_are_small_and_the_ones_that_the_card_names(version: str) -> None:
    content = (FOLDER / version / "model.onnx").read_bytes()
    assert len(content) <= 1_000_000
    assert f"`{version}/model.onnx`: `{hashlib.sha256(content).hexdigest()}`" in CARD
