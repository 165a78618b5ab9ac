from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.edge.harness import Edge, running_edge


@pytest.fixture
def run_dir() -> Iterator[Path]:
    """A directory with a path that is short enough for Unix sockets."""
    with tempfile.TemporaryDirectory(prefix="tg") as path:
        yield Path(path)


@pytest.fixture
async def edge(run_dir: Path) -> AsyncIterator[Edge]:
    async with running_edge(run_dir) as running:
        yield running
