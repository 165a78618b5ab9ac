"""What the model card says of the example for PyTorch is so; it is the network of the other."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from examples.train import handwriting
from tidegate.config.model import Batching
from tidegate.replica.warmup import can_batch
from tidegate.repository.layout import scan
from tidegate.runtimes.interface import RuntimeOptions
from tidegate.runtimes.torch import TorchModel, load
from tidegate.types import DType, TensorSpec

EXAMPLES = Path(__file__).parents[2] / "examples"
FOLDER = EXAMPLES / "torch" / "digits"
CARD = (FOLDER / "MODEL_CARD.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def model() -> TorchModel:
    entry = scan(FOLDER.parent).models["digits"]
    assert entry.problems == ()
    options = RuntimeOptions("cpu", 1, FOLDER, entry.config)
    return load(entry.versions[1].path, options)


def test_its_signature_has_names(model: TorchModel) -> None:
    assert model.signature.inputs == (TensorSpec("image", DType.FP32, ("batch", 1, 8, 8)),)
    assert model.signature.outputs == (
        TensorSpec("probabilities", DType.FP32, ("batch", 10)),
        TensorSpec("digit", DType.INT64, ("batch",)),
    )
    assert can_batch(model, Batching())


def test_accuracy_on_held_out_data_is_the_stated_one(model: TorchModel) -> None:
    _, held_out = handwriting.load()
    answers = model.run({"image": held_out.images}, ["probabilities", "digit"])
    accuracy = 100 * float((answers["digit"] == held_out.digits).mean())
    assert f"| {accuracy:.1f} % |" in CARD
    session = onnxruntime.InferenceSession(
        EXAMPLES / "models/digits/2/model.onnx", providers=["CPUExecutionProvider"]
    )
    (expected,) = session.run(["probabilities"], {"image": held_out.images})
    assert answers["probabilities"] == pytest.approx(np.asarray(expected), abs=1e-4)


def test_the_file_is_small_and_the_one_that_the_card_names() -> None:
    content = (FOLDER / "model.pt2").read_bytes()
    assert len(content) <= 1_000_000
    assert f"{len(content):,}" in CARD
    assert hashlib.sha256(content).hexdigest() in CARD
