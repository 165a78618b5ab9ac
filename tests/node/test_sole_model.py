"""A node with one model passes its calls on unread; nobody can tell from the answers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from tests import models
from tests.node.harness import ServedNode
from tests.node.traffic import Traffic, grpc_messages
from tidegate.node.controller import _sole
from tidegate.protocols.open_inference import MODEL_INFER

FACTOR = 2.0
LIMIT = 2**20


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[ServedNode]:
    models.scale(tmp_path / "models/scale/1/model.onnx", FACTOR)
    async with ServedNode(tmp_path / "models", "--max-message-size", str(LIMIT)) as served:
        yield served


async def code(node: ServedNode, model: str, version: str = "", **options: object) -> str:
    async with grpc.aio.insecure_channel(node.target) as channel:
        infer = channel.unary_unary(MODEL_INFER)
        try:
            await infer(grpc_messages(model, version)[0], timeout=20, **options)
        except grpc.aio.AioRpcError as error:
            return f"{error.code().name}: {error.details()}"
    return "OK"


async def test_names_are_minded_all_the_same(node: ServedNode) -> None:
    assert await code(node, "scale") == await code(node, "scale", "1") == "OK"
    assert (await code(node, "other")).startswith("NOT_FOUND: 'other' is not served here")
    assert (await code(node, "scale", "7")).startswith("NOT_FOUND: version 7 of 'scale'")
    assert (await code(node, "../scale")).startswith("INVALID_ARGUMENT: '../scale' cannot be")
    assert (await code(node, "")).startswith("INVALID_ARGUMENT: the message has no model name")
    assert (await code(node, "scale", "01")).startswith("INVALID_ARGUMENT: '01' is not a version")
    assert await code(node, "scale", compression=grpc.Compression.Gzip) == "OK"


async def test_the_limit_is_minded_all_the_same(node: ServedNode) -> None:
    async with grpc.aio.insecure_channel(node.target) as channel:
        infer = channel.unary_unary(MODEL_INFER)
        for size in (LIMIT + 1, 3 * LIMIT, 20 * LIMIT):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await infer(bytes(size), timeout=20)
            assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert str(LIMIT) in str(caught.value.details())
    assert await code(node, "scale") == "OK"


async def test_other_models_come_and_go_under_load(node: ServedNode) -> None:
    async with Traffic(node) as traffic:
        models.scale(node.repository / "other/1/model.onnx", 3.0)
        await node.until(lambda: "other:1#0 ready" in node.output)
        while await code(node, "other") != "OK":
            await traffic.more(10)
        assert (await code(node, "third")).startswith("NOT_FOUND: model/third")

        models.sequence(node.repository / "broken/1/model.onnx")
        await node.until(lambda: "broken:1#0 failed" in node.output)
        while not (await code(node, "broken")).startswith("UNAVAILABLE"):
            await traffic.more(10)

        for name in ("other", "broken"):
            (node.repository / f"{name}/1/model.onnx").unlink()
            (node.repository / f"{name}/1").rmdir()
            (node.repository / name).rmdir()
        while not (await code(node, "other")).endswith("version 1 of 'scale' is"):
            await traffic.more(10)
        await traffic.more(200)
    assert traffic.failed == 0, traffic.failures
    assert set(traffic.answers.factors) == {FACTOR}


@pytest.mark.parametrize(
    ("clusters", "sole"),
    [
        ([], None),
        (["m"], "m"),
        (["m", "m:1"], "m"),
        (["m:1"], None),
        (["m:1", "m:2"], None),
        (["m", "m:1", "m:2"], None),
        (["m", "n"], None),
        (["m", "n:1"], None),
    ],
)
def test_a_single_version_of_a_single_model_is_sole(clusters: list[str], sole: str | None) -> None:
    assert _sole(dict.fromkeys(clusters)) == sole
