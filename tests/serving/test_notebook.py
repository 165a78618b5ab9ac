"""A notebook in a real kernel: serve, infer, run a cell again, interrupt, kill."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest
import pytest_asyncio
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from tests import models
from tests.serving.processes import of_node, until

MIB = 2**20

START = """
import numpy as np
from tidegate import serve

server = serve(REPOSITORY).start()
print("run directory", server._node._run_dir)
print(server.model("scale").infer(np.ones((1, 4), np.float32))["y"].tolist())
"""
BLOCK = """
with serve(REPOSITORY) as other:
    print("run directory", other._node._run_dir)
    print(other.model("scale").infer([[1, 2, 3, 4]])["y"].tolist())
"""
AWAITED = """
async with serve(REPOSITORY) as other:
    print((await other.async_client.infer("scale", [[1, 2, 3, 4]]))["y"].tolist())
"""
INTERRUPTED = """
import time
with serve(REPOSITORY) as other:
    print("run directory", other._node._run_dir, flush=True)
    time.sleep(300)
"""
STILL_THERE = 'print(server.model("scale").ready(), server.client.ready())'
STOP = "server.stop()"


class Notebook:
    """A notebook whose cells are run one by one."""

    def __init__(self, client: Any, setup: str) -> None:
        self.client = client
        self._setup = setup

    async def run(self, source: str) -> str:
        """Run a cell and return what it printed."""
        cell = self.add(source)
        await self.client.async_execute_cell(cell, len(self.client.nb.cells) - 1)
        return printed(cell)

    def add(self, source: str) -> Any:
        cell = nbformat.from_dict(
            {
                "cell_type": "code",
                "id": f"cell-{len(self.client.nb.cells)}",
                "metadata": {},
                "source": f"{self._setup}\n{source}",
                "outputs": [],
                "execution_count": None,
            }
        )
        self.client.nb.cells.append(cell)
        return cell

    @property
    def kernel(self) -> psutil.Process:
        return psutil.Process(self.client.km.provisioner.pid)


def printed(cell: Any) -> str:
    return "".join(output.get("text", "") for output in cell.outputs)


def run_dir(text: str) -> Path:
    found = re.search("run directory (.*)", text)
    assert found is not None, text
    return Path(found[1])


def gone(directory: Path) -> bool:
    return not of_node(directory) and not directory.exists()


@pytest_asyncio.fixture
async def notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Notebook]:
    models.scale(tmp_path / "models" / "scale.onnx", 2.0)
    for name in ("HOME", "IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    empty = nbformat.from_dict({"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5})
    client: Any = NotebookClient(empty, timeout=120, kernel_name="python3")
    async with client.async_setup_kernel():
        yield Notebook(client, f"REPOSITORY = {str(tmp_path / 'models')!r}")


async def test_a_notebook(notebook: Notebook) -> None:
    first = await notebook.run(START)
    assert "[[2.0, 2.0, 2.0, 2.0]]" in first
    assert len(of_node(run_dir(first))) == 4
    before = notebook.kernel.memory_info().rss

    again = await notebook.run(START)
    assert gone(run_dir(first)), "the cell was run again: the earlier node has ended"
    assert "[[2.0, 2.0, 2.0, 2.0]]" in again

    block = await notebook.run(BLOCK)
    assert "[[2.0, 4.0, 6.0, 8.0]]" in block
    assert gone(run_dir(block))
    assert "[[2.0, 4.0, 6.0, 8.0]]" in await notebook.run(AWAITED)

    cell = notebook.add(INTERRUPTED)
    running = asyncio.create_task(notebook.client.async_execute_cell(cell, 0))
    await asyncio.to_thread(until, lambda: running.done() or "run directory" in printed(cell))
    await notebook.client.km.interrupt_kernel()
    with pytest.raises(CellExecutionError, match="KeyboardInterrupt"):
        await running
    assert gone(run_dir(printed(cell)))

    assert "True True" in await notebook.run(STILL_THERE), "an interrupt is not for this one"
    await notebook.run(STOP)
    assert gone(run_dir(again))
    grown = notebook.kernel.memory_info().rss - before
    assert grown < 32 * MIB, "memory is given back"


async def test_a_kernel_that_is_killed_takes_its_node_along(notebook: Notebook) -> None:
    directory = run_dir(await notebook.run(START))
    kernel = notebook.kernel
    kernel.kill()
    await asyncio.to_thread(until, lambda: gone(directory))
