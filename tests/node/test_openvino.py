"""OpenVINO on a real node, called by tritonclient."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import numpy as np
import pytest
import pytest_asyncio
import tritonclient.grpc.aio as triton

from tests import models
from tests.node.harness import ServedNode
from tidegate.runtimes.openvino_quiet import openvino

pytestmark = pytest.mark.asyncio(loop_scope="module")

X = np.linspace(-1, 1, 32, dtype=np.float32).reshape(2, 16)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ServedNode]:
    root = tmp_path_factory.mktemp("openvino")
    source = models.tiny_mlp(root / "switched/1/model.onnx")
    (root / "ir/1").mkdir(parents=True)
    model = openvino.Core().read_model(source)
    openvino.save_model(model, root / "ir/1/model.xml", compress_to_fp16=False)
    async with ServedNode(root) as served:
        yield served


@pytest_asyncio.fixture(loop_scope="module")
async def client(node: ServedNode) -> AsyncIterator[triton.InferenceServerClient]:
    async with triton.InferenceServerClient(node.target) as connected:
        yield connected


async def ask(client: triton.InferenceServerClient, name: str, rows: np.ndarray) -> np.ndarray:
    sent = triton.InferInput("x", list(rows.shape), "FP32")
    sent.set_data_from_numpy(rows)
    answer = await client.infer(name, [sent])
    found: np.ndarray = answer.as_numpy("probabilities")
    return found


async def test_ir_is_served_and_batched(client: triton.InferenceServerClient) -> None:
    metadata = await client.get_model_metadata("ir")
    assert metadata.platform == "openvino"
    assert [list(tensor.shape) for tensor in metadata.inputs] == [[-1, 16]]
    assert (await client.get_model_config("ir")).config.max_batch_size == 32
    wanted = await ask(client, "switched", X)
    answers = await asyncio.gather(*(ask(client, "ir", X[row : row + 1]) for row in (0, 1) * 8))
    for row, answer in zip((0, 1) * 8, answers):
        assert np.allclose(answer, wanted[row], rtol=1e-5, atol=1e-6)


async def test_a_word_in_the_settings_changes_the_runtime(
    node: ServedNode, client: triton.InferenceServerClient
) -> None:
    before = await ask(client, "switched", X)
    assert (await client.get_model_metadata("switched")).platform == "onnxruntime_onnx"
    (old,) = node.replicas("switched")
    (node.repository / "switched/model.yaml").write_text("runtime: openvino\n")
    await node.until(lambda: node.replicas("switched") not in ([old], []))
    await node.until(lambda: old not in node.replicas("switched"))
    assert (await client.get_model_metadata("switched")).platform == "openvino"
    assert np.allclose(await ask(client, "switched", X), before, rtol=1e-5, atol=1e-6)
