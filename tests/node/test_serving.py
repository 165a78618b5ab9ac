"""How ``tidegate serve`` takes its address."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.models import scale
from tests.node.harness import ServedNode


async def test_a_host_may_be_a_name(tmp_path: Path) -> None:
    scale(tmp_path / "scale.onnx")
    async with ServedNode(tmp_path, "--host", "localhost") as node:
        assert (await node.get("/v2/models/scale"))[0] == 200
        assert (await node.status())["address"] == node.target


async def test_a_host_that_is_none_is_named(tmp_path: Path) -> None:
    node = ServedNode(tmp_path, "--host", "no such host")
    with pytest.raises(RuntimeError, match="'no such host' is neither an address nor a name"):
        await node.__aenter__()
    assert node.process is not None
    assert node.process.returncode == 78
    assert node.processes() == []
    node.run_dir.rmdir()
