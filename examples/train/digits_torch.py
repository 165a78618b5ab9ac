"""Trains the convolutional network of the example ``digits`` and saves it for PyTorch.

``python -m examples.train.digits_torch`` writes ``examples/torch/digits``: one file of
``torch.export`` that needs no code beside it, and its model card.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import torch

from examples.train import handwriting
from examples.train.digits import LARGEST_ARTIFACT, RECIPES, SEED, Served, accuracy, train
from examples.train.handwriting import Handwriting

OUTPUT = Path(__file__).resolve().parents[1] / "torch" / "digits"
NAME = "model.pt2"


def export(model: Served, path: Path) -> None:
    """Write ``model`` as a ``torch.export`` archive with a dynamic first dimension.

    Raises:
        ValueError: the file is too large for an example.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = torch.export.Dim("batch")
    program = torch.export.export(
        model, (torch.zeros(2, 1, 8, 8),), dynamic_shapes={"image": {0: rows}}
    )
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it tells of the machine: paths
    torch.export.save(program, path)
    if path.stat().st_size > LARGEST_ARTIFACT:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, more than {LARGEST_ARTIFACT}")


def card(path: Path, held_out: Handwriting, training: Handwriting, parameters: int) -> str:
    """Measure the saved file on ``held_out`` and return its model card in Markdown."""
    saved = torch.export.load(path).module()
    with torch.inference_mode():
        _, answers = saved(torch.from_numpy(held_out.images))
    return CARD.format(
        name=NAME,
        parameters=parameters,
        size=path.stat().st_size,
        accuracy=100 * accuracy(answers.numpy(), held_out),
        training=len(training),
        held_out=len(held_out),
        seed=SEED,
        torch=torch.__version__.partition("+")[0],
        digest=hashlib.sha256(path.read_bytes()).hexdigest(),
    )


CARD = """\
# Model card: digits, for PyTorch

Reads one handwritten digit: the convolutional network of the example `digits` (its version 2),
saved with `torch.export` instead of as ONNX. An example of Tidegate, not a product.

| file | parameters | bytes | accuracy (held-out) |
| --- | ---: | ---: | ---: |
| `{name}` | {parameters:,} | {size:,} | {accuracy:.1f} % |

## Input and output

| tensor | type | shape | meaning |
| --- | --- | --- | --- |
| `image` (in) | FP32 | [batch, 1, 8, 8] | ink of each cell, 0 (paper) to 16 (full) |
| `probabilities` (out) | FP32 | [batch, 10] | of the digits 0 to 9; they add up to 1 |
| `digit` (out) | INT64 | [batch] | the most probable digit |

## Data, use and limits

Those of `examples/models/digits/MODEL_CARD.md`: "Optical Recognition of Handwritten Digits" by
E. Alpaydin and C. Kaynak (1998), UCI Machine Learning Repository,
<https://doi.org/10.24432/C50P49>, licence CC BY 4.0; the first {training} samples were trained
on, the last {held_out} were held out and used for nothing but the accuracy above.

## How to reproduce

With Python 3.11 or newer, from the root of the repository:

```sh
python3 -m venv /tmp/train-digits
/tmp/train-digits/bin/pip install -r examples/train/requirements.txt
/tmp/train-digits/bin/python -m examples.train.digits_torch
```

Seed {seed}, PyTorch {torch}, one thread, deterministic algorithms. Another kind of processor may
round differently; then the last digits of the weights differ. SHA-256: `{digest}`

The weights are under the licence of this repository (Apache-2.0).
"""


def main() -> None:
    """Train, export, measure and write everything."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=OUTPUT, help="the model's folder")
    output: Path = parser.parse_args().output
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    training, held_out = handwriting.load()
    model = train(RECIPES[1], training)
    path = output / NAME
    export(model, path)
    parameters = sum(weights.numel() for weights in model.parameters())
    text = card(path, held_out, training, parameters)
    (output / "MODEL_CARD.md").write_text(text, encoding="utf-8")
    print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
