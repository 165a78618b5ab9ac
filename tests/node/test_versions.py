"""Versions come and go under load: each answer is of one that was meant to give it."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import orjson
import pytest

from tests import models
from tests.node.harness import ServedNode
from tests.node.test_life import both_ready, kill
from tests.node.traffic import Traffic, rest_bodies, rest_path

ONE, TWO, THREE = 2.0, 3.0, 7.0
"""The factors of the versions."""


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[ServedNode]:
    """Version 1 of ``scale`` with two replicas."""
    models.scale(tmp_path / "models/scale/1/model.onnx", ONE)
    (tmp_path / "models/scale/model.yaml").write_text("replicas: 2\n")
    async with ServedNode(tmp_path / "models") as served:
        await both_ready(served)
        yield served


def folder(node: ServedNode) -> Path:
    return node.repository / "scale"


async def factor(node: ServedNode, version: str = "") -> float | int:
    """What the version multiplies by, or the status of the error."""
    status, answer = await node.post(rest_path("scale", version), rest_bodies()[0])
    if status != 200:
        return status
    return float(orjson.loads(answer)["outputs"][0]["data"][0])


async def test_forward_a_broken_one_and_back(node: ServedNode, tmp_path: Path) -> None:
    async with Traffic(node) as traffic:
        models.scale(folder(node) / "2/model.onnx", TWO)
        await traffic.until_answered_by(TWO)
        await node.until(lambda: node.replicas("scale", 1) == [])
        assert set(traffic.answers.factors) == {ONE, TWO}

        # One that is no model at all, and one that cannot be loaded.
        (folder(node) / "3").mkdir()
        (folder(node) / "3/model.onnx").write_bytes(b"\x08\x07\x12\x04oops" + bytes(200))
        await node.until(lambda: "scale/3" in node.output or "scale:3#0 failed" in node.output)
        models.sequence(folder(node) / "4/model.onnx")
        await node.until(lambda: "scale:4#0 failed" in node.output)
        of_two = traffic.answers.factors[TWO]
        await traffic.more(1000)
        assert traffic.answers.factors[TWO] >= of_two + 1000
        assert len(node.replicas("scale", 2)) == 2

        for version in ("2", "3", "4"):
            (folder(node) / version).rename(tmp_path / version)
        await traffic.until_answered_by(ONE)
        await node.until(lambda: node.replicas("scale", 2) == [])
        await traffic.more(200)
        assert traffic.answers.last == ONE
    assert traffic.failed == 0, traffic.failures
    assert set(traffic.answers.factors) == {ONE, TWO}
    print(traffic.calls, dict(traffic.answers.factors), traffic.answers.longest_gap)


async def test_files_that_are_replaced_in_place(node: ServedNode) -> None:
    """The same version with another content: the old one serves until the new one can."""
    async with Traffic(node) as traffic:
        models.scale(folder(node) / "1/model.onnx", TWO)
        await traffic.until_answered_by(TWO)
        await node.until(lambda: len(node.replicas("scale", 1)) == 2)
        await traffic.more(200)
    assert traffic.failed == 0, traffic.failures
    assert set(traffic.answers.factors) == {ONE, TWO}


async def test_versions_by_number(node: ServedNode) -> None:
    (folder(node) / "model.yaml").write_text("versions: all\n")
    models.scale(folder(node) / "2/model.onnx", TWO)
    async with Traffic(node, rest=4, connections=2) as default:
        await default.until_answered_by(TWO)
        async with (
            Traffic(node, version="1", rest=2, connections=1) as first,
            Traffic(node, version="2", rest=2, connections=1) as second,
        ):
            models.scale(folder(node) / "3/model.onnx", THREE)
            await default.until_answered_by(THREE)
            await first.more(100)
            await second.more(100)
        assert await factor(node, "3") == THREE
        shutil.rmtree(folder(node) / "3")
        await default.until_answered_by(TWO)
    assert set(first.answers.factors) == {ONE}
    assert set(second.answers.factors) == {TWO}
    for traffic in (default, first, second):
        assert traffic.failed == 0, traffic.failures
    await node.until(lambda: node.replicas("scale", 3) == [])
    assert await factor(node, "3") == 404
    assert await factor(node, "1") == ONE


async def test_a_slow_copy_is_not_loaded_half_way(node: ServedNode, tmp_path: Path) -> None:
    whole = models.scale(tmp_path / "new.onnx", TWO).read_bytes()
    (folder(node) / "2").mkdir()
    async with Traffic(node, connections=2, rest=2) as traffic:
        with (folder(node) / "2/model.onnx").open("wb", buffering=0) as copy:
            for piece in np.array_split(np.frombuffer(whole, np.uint8), 20):
                copy.write(piece.tobytes())
                await asyncio.sleep(0.15)  # the pace of the copy
        await traffic.until_answered_by(TWO)
    assert traffic.failed == 0, traffic.failures
    assert set(traffic.answers.factors) == {ONE, TWO}
    # Nobody had to be told of a half.
    assert "failed" not in node.output
    assert "invalid" not in node.output


async def test_a_copy_that_stalls_is_served_once_it_is_whole(
    node: ServedNode, tmp_path: Path
) -> None:
    whole = models.scale(tmp_path / "new.onnx", TWO).read_bytes()
    (folder(node) / "2").mkdir()
    async with Traffic(node, connections=2, rest=2) as traffic:
        with (folder(node) / "2/model.onnx").open("wb", buffering=0) as copy:
            copy.write(whole[:40])
            await node.until(lambda: "scale/2" in node.output or "scale:2#0 f" in node.output)
            await traffic.more(500)
            assert set(traffic.answers.factors) == {ONE}
            copy.write(whole[40:])
        await traffic.until_answered_by(TWO)
    assert traffic.failed == 0, traffic.failures
    assert set(traffic.answers.factors) == {ONE, TWO}


async def test_what_changed_without_a_controller_is_switched_to_by_the_next(
    node: ServedNode,
) -> None:
    async with Traffic(node) as traffic:
        await kill(node)
        models.scale(folder(node) / "2/model.onnx", TWO)
        shutil.rmtree(folder(node) / "1")
        await traffic.more(500)
        assert set(traffic.answers.factors) == {ONE}
        await node.serve()
        await traffic.until_answered_by(TWO)
        await node.until(lambda: node.replicas("scale", 1) == [])
    assert traffic.failed == 0, traffic.failures
    assert set(traffic.answers.factors) == {ONE, TWO}
