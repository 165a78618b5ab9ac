"""The models of the cases with rows to send and what they should answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime

from bench import minilm, model, resnet50
from tidegate.load.requests import Encoding, encode
from tidegate.protocols.open_inference import messages
from tidegate.types import Array, Tensor

_ROWS = 8
TOKENS = 32


@dataclass(frozen=True, slots=True)
class Workload:
    """A model in a repository, rows to send to it, and its own answers to them."""

    name: str
    path: Path
    rows: dict[str, Array]
    """Of each input, different ones along the first dimension."""
    answers: Array

    @property
    def inputs(self) -> Path:
        """The rows as a file."""
        return self.path.parents[3] / f"{self.name}.npz"

    def messages(self) -> list[bytes]:
        """Return ModelInfer requests of one row each; the id says which row."""
        encoded = []
        for index in range(len(self.answers)):
            tensors = [
                Tensor.of(name, array[index : index + 1]) for name, array in self.rows.items()
            ]
            request = encode(Encoding.RAW, self.name, "", tensors, str(index))
            encoded.append(request.body)
        return encoded

    def checker(self) -> Callable[[bytes], bool]:
        """Return a check of responses; equal bytes are looked at once."""
        seen: dict[bytes, bool] = {}

        def examine(message: bytes) -> bool:
            response = messages.ModelInferResponse.FromString(message)
            got = np.frombuffer(response.raw_output_contents[0], np.float32)
            wanted = self.answers[int(response.id)]
            return got.shape == wanted.shape and np.allclose(got, wanted, rtol=1e-3, atol=1e-4)

        def check(message: bytes) -> bool:
            verdict = seen.get(message)
            if verdict is None:
                if len(seen) > 4096:
                    seen.clear()
                verdict = seen[message] = examine(message)
            return verdict

        return check


def _mlp(path: Path) -> dict[str, Array]:
    model.save(path)
    return {model.INPUT: model.rows(_ROWS)}


def _resnet50(path: Path) -> dict[str, Array]:
    resnet50.save(path)
    random = np.random.default_rng(224)
    return {resnet50.INPUT: random.random((_ROWS, *resnet50.SHAPE), np.float32)}


def _minilm(path: Path) -> dict[str, Array]:
    minilm.save(path)
    minilm.check(path)
    ids = np.random.default_rng(30522).integers(1000, 30000, (_ROWS, TOKENS))
    return {minilm.IDS: ids, minilm.MASK: np.ones_like(ids)}


_MAKERS = {"mlp": _mlp, "resnet50": _resnet50, "minilm": _minilm}
NAMES = tuple(_MAKERS)


def make(name: str, folder: Path) -> Workload:
    """Write the model called ``name`` into the repository ``folder/models``, and its rows."""
    path = folder / "models" / name / "1" / "model.onnx"
    rows = _MAKERS[name](path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (answers,) = session.run(None, rows)
    workload = Workload(name, path, rows, answers)
    np.savez(workload.inputs, allow_pickle=False, **rows)
    return workload
