"""Small PyTorch models for the tests, in each format, each written by one function.

Nearly all compute ``y = 2 x`` on FP32 ``[n, 4]``, which is easy to check.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

CODE = """\
import torch
from torch import nn


class Model(nn.Module):
    def __init__(self, factor: float = 0.0) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor([factor]))

    def forward(self, x):
        return x * self.factor
"""
"""A ``model.py`` for the weights that :func:`weights` writes."""
ROWS: Any = ({0: torch.export.Dim("rows")},)
"""``dynamic_shapes`` of one input with a dynamic first dimension."""
SIGNATURE = "signature: {inputs: [{name: x, dtype: FP32, shape: [batch, 4]}]}\n"


class Double(nn.Module):
    """``y = x * factor``."""

    def __init__(self, factor: float = 2.0) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor([factor]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor


class Two(nn.Module):
    """Two inputs, and two outputs in a mapping."""

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"total": a + b, "difference": a - b}


class Picky(nn.Module):
    """``y = x``; a value above 100 is an error in the model's own words."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if bool((x > 100).any()):
            raise ValueError("no value may be above 100")
        return x


class Hungry(nn.Module):
    """``y = zeros(count)``, computed by all threads."""

    def forward(self, count: torch.Tensor) -> torch.Tensor:
        work = torch.ones([256, 256]) @ torch.ones([256, 256])
        return torch.zeros([int(count[0])]) + 0 * work[0, 0]


class Convolution(nn.Module):
    """Images [n, 3, height, width] to [n, 2], whatever their size."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 2, 3)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        means: torch.Tensor = self.convolution(image).mean((2, 3))
        return means


def script(path: Path, module: nn.Module | None = None) -> Path:
    """A TorchScript archive, scripted."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _without_warnings():
        torch.jit.script((module or Double()).eval()).save(str(path))
    return path


def trace(path: Path, module: nn.Module, *inputs: torch.Tensor) -> Path:
    """A TorchScript archive, traced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _without_warnings():
        torch.jit.trace(module.eval(), inputs).save(str(path))
    return path


def export(
    path: Path,
    module: nn.Module | None = None,
    *inputs: torch.Tensor,
    dynamic: Any = ROWS,
) -> Path:
    """A ``torch.export`` archive; ``dynamic`` is what ``dynamic_shapes`` takes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    inputs = inputs or (torch.zeros(2, 4),)
    with _without_warnings():
        program = torch.export.export((module or Double()).eval(), inputs, dynamic_shapes=dynamic)
        torch.export.save(program, path)
    return path


def weights(path: Path, content: Mapping[str, Any] | None = None) -> Path:
    """A state_dict."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(Double().state_dict() if content is None else content, path)
    return path


def whole(path: Path, module: Any = None) -> Path:
    """A whole module, as a pickle."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(Double() if module is None else module, path)
    return path


# Folders of models, as a repository has them: ``output = 2 x`` on FP32 [batch, 4].


def settings(folder: Path, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.yaml").write_text(text)


def scripted(folder: Path) -> None:
    settings(folder, SIGNATURE)
    script(folder / "model.pt")


def exported(folder: Path) -> None:
    export(folder / "model.pt2")


def state_dict(folder: Path) -> None:
    settings(folder, SIGNATURE)
    weights(folder / "model.pth")
    (folder / "model.py").write_text(CODE)


def old_state_dict(folder: Path) -> None:
    state_dict(folder)
    torch.save(
        Double().state_dict(),
        folder / "model.pth",
        _use_new_zipfile_serialization=False,
    )


def checkpoint(folder: Path) -> None:
    state_dict(folder)
    parallel = {"module." + k: v for k, v in Double().state_dict().items()}
    weights(folder / "model.pth", {"epoch": 3, "state_dict": OrderedDict(parallel)})


def tensors(folder: Path) -> None:
    state_dict(folder)
    (folder / "model.pth").unlink()
    safetensors.torch.save_file({"factor": torch.tensor([2.0])}, folder / "model.safetensors")


def versioned(folder: Path) -> None:
    state_dict(folder)
    (folder / "3").mkdir()
    (folder / "model.pth").rename(folder / "3" / "model.pth")


def trusted(folder: Path) -> None:
    settings(folder, SIGNATURE + "trust: pickle\n")
    whole(folder / "model.pth")


def _without_warnings() -> warnings.catch_warnings:
    return warnings.catch_warnings(action="ignore")
