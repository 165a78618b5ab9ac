"""A replica of a PyTorch model, within bounds."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import torch_models
from tests.replica.process import replica_process
from tests.replica.served import fails_alone
from tidegate.replica.spec import Failed

only_linux = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux bounds a process's data"
)


HUNGRY: dict[str, Any] = {
    "signature": {"inputs": [{"name": "count", "dtype": "INT64", "shape": [1]}]}
}


def hungry(folder: Path) -> Path:
    return torch_models.script(folder / "m.pt", torch_models.Hungry())


@only_linux
async def test_memory_for_nothing_is_said_and_enough_is_enough(folder: Path) -> None:
    model = hungry(folder)
    config = {**HUNGRY, "resources": {"memory": "64MiB"}}
    async with replica_process(folder, model, runtime="torch", **config) as replica:
        event = await replica.event()
    assert isinstance(event, Failed)
    assert event.kind == "InsufficientMemory"
    found = re.search("alone take ([0-9]+) bytes, and ([0-9]+) more are needed", event.reason)
    assert found is not None, event.reason
    enough = int(found[1]) + int(found[2]) + 64 * 2**20
    config = {**HUNGRY, "resources": {"memory": enough}}
    async with replica_process(folder, model, runtime="torch", threads=2, **config) as replica:
        await replica.ready()
    # Threads take room before they are started: without it, OpenMP would end the process.
    async with replica_process(folder, model, runtime="torch", threads=8, **config) as replica:
        event = await replica.event()
    assert isinstance(event, Failed)
    assert event.kind == "InsufficientMemory"


@only_linux
async def test_a_request_that_does_not_fit_fails_alone(folder: Path) -> None:
    config = {**HUNGRY, "resources": {"memory": "900MiB"}}
    model = hungry(folder)
    async with replica_process(folder, model, runtime="torch", threads=2, **config) as replica:
        await replica.ready()
        await fails_alone(folder / "s", ("count", 2**29), "output", "memory")


@only_linux
async def test_weights_that_do_not_fit(folder: Path) -> None:
    weights = {"factor": torch.zeros(2**27)}
    model = torch_models.weights(folder / "m.pth", weights)
    (folder / "model.py").write_text(torch_models.CODE)
    config: dict[str, Any] = {
        "signature": {"inputs": [{"name": "x", "dtype": "FP32", "shape": ["n", 4]}]},
        "resources": {"memory": "500MiB"},
    }
    async with replica_process(folder, model, runtime="torch", **config) as replica:
        event = await replica.event()
    assert isinstance(event, Failed)
    assert event.kind == "InsufficientMemory"
    assert "m version 2 does not fit in the 524288000 bytes" in event.reason
