"""Folders as dl_inference's image for PyTorch serves them, each written by one function.

The modules are pickled by a process that imports them by plain names, as a training script does.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

NET = """
import torch
from torch import nn
import myutils

class Net(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.form = form
        self.layer = nn.Linear(4, 2, bias=False)
        with torch.no_grad():
            self.layer.weight.copy_(torch.tensor([[1.0, 1, 1, 1], [1, 0, 0, 0]]))

    def forward(self, x, scale=1, taskId=None):
        assert isinstance(myutils.marker(), str)
        y = self.layer(x) * float(scale)
        if self.form == "dict":
            return {"y": y, "more": [y.sum(1), {"task": taskId}]}
        return [y, y.argmax(1)] if self.form == "list" else y
"""
MYUTILS = """
def marker():
    return "mine"

def numbers(text):
    return [float(word) for word in text.split()]
"""
PROCESSOR = """
from pathlib import Path
import numpy as np
import torch
import myutils
from models.net import Net

FACTOR = float(Path("factor.txt").read_text())

def preprocess(data, **kwargs):
    assert not torch.is_grad_enabled()
    if isinstance(data, bytes):
        data = data.decode()
    if isinstance(data, str):
        data = myutils.numbers(data)
    if isinstance(data, dict):
        data = data["numbers"]
    return torch.tensor(np.array(data, np.float32).reshape(1, 4) * FACTOR)

def run_model(model, x, **kwargs):
    assert isinstance(model, Net) and not model.training
    assert x.device == next(model.parameters()).device
    return model(x)

def postprocess(data, **kwargs):
    assert data.device.type == "cpu"
    tags = kwargs["meta"]["tags"]
    return {"sum": data[0, 0].item(), "tags": tags, "file": Path("factor.txt").read_text(),
            "list": data}
"""
_SAVE = """
import sys
import torch
from models.net import Net
torch.save(Net(sys.argv[1]).train(), "model.pth")
"""


def write(
    folder: Path,
    processor: str = PROCESSOR,
    form: str = "tensor",
    settings: str = "trust: pickle\n",
) -> Path:
    """Write a folder: module, siblings, ``processor.py`` and ``model.yaml``."""
    (folder / "models").mkdir(parents=True)
    (folder / "models" / "net.py").write_text(NET)
    (folder / "myutils.py").write_text(MYUTILS)
    (folder / "factor.txt").write_text("2")
    (folder / "processor.py").write_text(processor)
    if settings:
        (folder / "model.yaml").write_text(settings)
    subprocess.run([sys.executable, "-c", _SAVE, form], cwd=folder, check=True)
    for cached in folder.rglob("__pycache__"):
        for file in cached.iterdir():
            file.unlink()
        cached.rmdir()
    return folder
