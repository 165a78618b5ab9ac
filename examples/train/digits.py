"""Train the digits model of the examples and write it to ``examples/models/digits``.

Version 1 is a linear classifier, the baseline that one starts with; version 2 is a small
convolutional network. Both are exported to ONNX, compared with PyTorch and measured on
handwriting that they have not seen, and the model card is written from what was measured.

Run from the root of the repository, in an environment with ``examples/train/requirements.txt``::

    python -m examples.train.digits
"""

from __future__ import annotations

import argparse
import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from torch import nn
from torch.nn import functional

from examples.train import handwriting
from examples.train.handwriting import Handwriting

OUTPUT = Path(__file__).resolve().parents[1] / "models" / "digits"
SEED = 20
LARGEST_ARTIFACT = 1_000_000
TOLERANCE = 1e-5


class Linear(nn.Module):
    """Softmax regression: one weight for each pixel and digit."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.Linear(64, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Turn pixels [n, 1, 8, 8] of 0 to 1 into scores [n, 10]."""
        scores: torch.Tensor = self.scores(image.flatten(1))
        return scores


class Convolutional(nn.Module):
    """Two convolutions with batch normalisation, a pooling and two dense layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 24, 3, padding=1),
            nn.BatchNorm2d(24),
            nn.ReLU(),
            nn.Conv2d(24, 48, 3, padding=1),
            nn.BatchNorm2d(48),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.4),
            nn.Linear(48 * 4 * 4, 96),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Linear(96, 10),
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Turn pixels [n, 1, 8, 8] of 0 to 1 into scores [n, 10]."""
        scores: torch.Tensor = self.layers(image)
        return scores


class Served(nn.Module):
    """What clients call: raw pixels of 0 to 16 in, probabilities and the digit out."""

    def __init__(self, scorer: nn.Module) -> None:
        super().__init__()
        self.scorer = scorer

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Turn pixels [n, 1, 8, 8] of 0 to 16 into probabilities [n, 10] and digits [n]."""
        probabilities = torch.softmax(self.scorer(image / 16.0), dim=1)
        return probabilities, probabilities.argmax(dim=1)


@dataclass(frozen=True, slots=True)
class Recipe:
    """One version: which model, and how it is trained."""

    version: int
    title: str
    scorer: type[nn.Module]
    epochs: int
    learning_rate: float
    augment: bool


RECIPES = (
    Recipe(1, "linear classifier", Linear, epochs=20, learning_rate=1e-2, augment=False),
    Recipe(2, "convolutional network", Convolutional, epochs=60, learning_rate=3e-3, augment=True),
)


@dataclass(frozen=True, slots=True)
class Result:
    """What the card says of one version; ``difference`` is the largest one from PyTorch."""

    recipe: Recipe
    parameters: int
    size: int
    digest: str
    accuracy: float
    difference: float


def shifted(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Move every image by -1, 0 or 1 pixels each way and change its ink a little."""
    count = len(images)
    padded = functional.pad(images, (1, 1, 1, 1))
    offsets = torch.randint(0, 3, (count, 2), generator=generator).tolist()
    moved = torch.stack([padded[i, :, y : y + 8, x : x + 8] for i, (y, x) in enumerate(offsets)])
    strength = 0.85 + 0.3 * torch.rand(count, 1, 1, 1, generator=generator)
    noise = 0.04 * torch.randn(moved.shape, generator=generator)
    return (moved * strength + noise).clamp(0.0, 1.0)


def train(recipe: Recipe, data: Handwriting) -> Served:
    """Train one version from scratch; the same seed gives the same weights."""
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    scorer = recipe.scorer()
    optimizer = torch.optim.AdamW(scorer.parameters(), lr=recipe.learning_rate, weight_decay=1e-2)
    images = torch.from_numpy(data.images) / 16.0
    digits = torch.from_numpy(data.digits)
    batch = 64
    steps = recipe.epochs * -(-len(data) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, steps)
    scorer.train()
    for epoch in range(1, recipe.epochs + 1):
        total = 0.0
        for chosen in torch.randperm(len(data), generator=generator).split(batch):
            inputs = shifted(images[chosen], generator) if recipe.augment else images[chosen]
            loss = functional.cross_entropy(scorer(inputs), digits[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(chosen)
        if epoch % 10 == 0:
            print(f"version {recipe.version}: epoch {epoch:3}, loss {total / len(data):.4f}")
    return Served(scorer).eval()


def export(model: Served, path: Path) -> None:
    """Write ``model`` as one ONNX file with a dynamic first dimension named ``batch``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    program = torch.onnx.export(
        model,
        (torch.zeros(2, 1, 8, 8),),
        dynamo=True,
        input_names=["image"],
        output_names=["probabilities", "digit"],
        dynamic_shapes={"image": {0: torch.export.Dim("batch")}},
        opset_version=18,
        verbose=False,
    )
    assert program is not None
    proto = program.model_proto
    strip(proto)
    onnx.checker.check_model(proto, full_check=True)
    path.write_bytes(proto.SerializeToString(deterministic=True))


def strip(proto: onnx.ModelProto) -> None:
    """Remove what the exporter tells of the machine: stack traces with paths."""
    for part in (
        proto,
        proto.graph,
        *proto.graph.node,
        *proto.graph.input,
        *proto.graph.output,
        *proto.graph.value_info,
        *proto.graph.initializer,
        *proto.functions,
    ):
        del part.metadata_props[:]
        part.doc_string = ""


def measure(recipe: Recipe, model: Served, path: Path, held_out: Handwriting) -> Result:
    """Compare the file with PyTorch and measure its accuracy on ``held_out``.

    Raises:
        ValueError: the file does not compute what PyTorch does, or is too large.
    """
    content = path.read_bytes()
    if len(content) > LARGEST_ARTIFACT:
        raise ValueError(f"{path} has {len(content)} bytes, more than {LARGEST_ARTIFACT}")
    with torch.inference_mode():
        expected = model(torch.from_numpy(held_out.images))[0].numpy()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    probabilities, answers = session.run(["probabilities", "digit"], {"image": held_out.images})
    difference = float(np.abs(np.asarray(probabilities) - expected).max())
    if difference > TOLERANCE:
        raise ValueError(f"{path} differs from PyTorch by {difference}, more than {TOLERANCE}")
    return Result(
        recipe=recipe,
        parameters=sum(weights.numel() for weights in model.parameters()),
        size=len(content),
        digest=hashlib.sha256(content).hexdigest(),
        accuracy=accuracy(np.asarray(answers), held_out),
        difference=difference,
    )


def accuracy(answers: npt.NDArray[np.int64], data: Handwriting) -> float:
    """Return the share of ``answers`` that are right, 0 to 1."""
    return float((answers == data.digits).mean())


def card(results: list[Result], training: Handwriting, held_out: Handwriting) -> str:
    """Return the model card in Markdown."""
    rows = "\n".join(
        f"| {r.recipe.version} | {r.recipe.title} | {r.parameters:,} | {r.size:,} "
        f"| {100 * r.accuracy:.1f} % | {r.difference:.0e} |"
        for r in results
    )
    digests = "\n".join(f"- `{r.recipe.version}/model.onnx`: `{r.digest}`" for r in results)
    return CARD.format(
        rows=rows,
        digests=digests,
        training=len(training),
        held_out=len(held_out),
        tolerance=TOLERANCE,
        seed=SEED,
        torch=torch.__version__.partition("+")[0],
    )


CARD = """\
# Model card: digits

Reads one handwritten digit. An example of Tidegate, not a product.

| version | what it is | parameters | bytes | accuracy (held-out) | ONNX - PyTorch |
| ---: | --- | ---: | ---: | ---: | ---: |
{rows}

Version 1 is weaker on purpose: it is the linear baseline that one starts with, so that there
is something to switch from. Version 2 is what `digits` answers with unless a version is named.

## Input and output

| tensor | type | shape | meaning |
| --- | --- | --- | --- |
| `image` (in) | FP32 | [batch, 1, 8, 8] | ink of each cell, 0 (paper) to 16 (full) |
| `probabilities` (out) | FP32 | [batch, 10] | of the digits 0 to 9; they add up to 1 |
| `digit` (out) | INT64 | [batch] | the most probable digit |

The model scales the ink itself: send the cells as they are.

## Data

"Optical Recognition of Handwritten Digits" by E. Alpaydin and C. Kaynak (1998), UCI Machine
Learning Repository, <https://doi.org/10.24432/C50P49>, licence CC BY 4.0, in the copy that
scikit-learn ships (`sklearn.datasets.load_digits`: the 1797 digits of the original test part).

The first {training} samples of the file were trained on; the last {held_out} were held out and
used for nothing but the accuracy above. The cut is not a random draw: neighbours in the file
are often by the same hand, and a shuffle would put them on both sides.

Version 1 sees the training images as they are. Version 2 sees them moved by up to one cell, a
little fainter or stronger, and with a little noise.

## Use and limits

For demonstrations and tests of a model server. It knows only upright, centred digits that were
scaled down as this data was; of anything else, and of letters, it answers with some digit all
the same. The probabilities are not calibrated. {held_out} samples are few: one more error is
0.2 % of accuracy.

## How to reproduce

With Python 3.11 or newer, from the root of the repository:

```sh
python3 -m venv /tmp/train-digits
/tmp/train-digits/bin/pip install -r examples/train/requirements.txt
/tmp/train-digits/bin/python -m examples.train.digits
```

Training takes less than a minute on a CPU and writes this card too. Seed {seed}, PyTorch
{torch}, one thread, deterministic algorithms: the same machine gives the same bytes. Another kind
of processor may round differently; then the last digits of the weights differ.

The exported files were compared with PyTorch on the held-out data; the last column of the table
is the largest difference of a probability (allowed: {tolerance:.0e}). SHA-256 of the files:

{digests}

The weights are under the licence of this repository (Apache-2.0).
"""


def main() -> None:
    """Train, export, measure and write everything."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=OUTPUT, help="the model's folder")
    output: Path = parser.parse_args().output
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses torchvision; we don't
    training, held_out = handwriting.load()
    results = []
    for recipe in RECIPES:
        path = output / str(recipe.version) / "model.onnx"
        model = train(recipe, training)
        export(model, path)
        results.append(measure(recipe, model, path, held_out))
        print(f"version {recipe.version}: {100 * results[-1].accuracy:.1f} % of held-out, {path}")
    (output / "MODEL_CARD.md").write_text(card(results, training, held_out), encoding="utf-8")


if __name__ == "__main__":
    main()
