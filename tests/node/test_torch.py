"""PyTorch models on a real node, called by tritonclient."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
import tritonclient.grpc.aio as triton
from tritonclient.utils import InferenceServerException

from tests import torch_models
from tests.node.harness import ServedNode
from tidegate.replica.spec import ReplicaSpec

pytestmark = pytest.mark.asyncio(loop_scope="module")

X = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.float32)
WRITERS = {
    "exported": torch_models.exported,
    "scripted": torch_models.scripted,
    "state_dict": torch_models.versioned,
    "tensors": torch_models.tensors,
}
VERSIONS = {"state_dict": "3"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ServedNode]:
    root = tmp_path_factory.mktemp("torch")
    for name, write in WRITERS.items():
        write(root / name)
    torch_models.trusted(root / "pickled")
    torch_models.settings(root / "pickled", torch_models.SIGNATURE)
    torch_models.script(root / "picky/model.pt", torch_models.Picky())
    torch_models.settings(root / "picky", torch_models.SIGNATURE + "resources: {threads: 3}\n")
    async with ServedNode(root) as served:
        yield served


@pytest_asyncio.fixture(loop_scope="module")
async def client(node: ServedNode) -> AsyncIterator[triton.InferenceServerClient]:
    async with triton.InferenceServerClient(node.target) as connected:
        yield connected


def put(path: Path, text: str) -> None:
    path.write_text(text)


def tensor(array: np.ndarray) -> triton.InferInput:
    found = triton.InferInput("x", list(array.shape), "FP32")
    found.set_data_from_numpy(array)
    return found


@pytest.mark.parametrize("name", WRITERS)
async def test_every_format_is_served(client: triton.InferenceServerClient, name: str) -> None:
    metadata = await client.get_model_metadata(name)
    assert metadata.versions == [VERSIONS.get(name, "1")]
    assert metadata.platform.startswith("pytorch_")
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.inputs] == [
        ("x", "FP32", [-1, 4])
    ]
    answer = await client.infer(name, [tensor(X)])
    assert answer.as_numpy("output").tolist() == (2 * X).tolist()


async def test_requests_are_batched_and_one_bad_one_fails_alone(
    client: triton.InferenceServerClient,
) -> None:
    async def ask(row: int) -> np.ndarray:
        value = 1000 if row == 7 else row
        answer = await client.infer("picky", [tensor(np.full((1, 4), value, np.float32))])
        found: np.ndarray = answer.as_numpy("output")
        return found

    answers = await asyncio.gather(*map(ask, range(32)), return_exceptions=True)
    for row, answer in enumerate(answers):
        if row == 7:
            assert isinstance(answer, InferenceServerException)
            assert "ValueError: no value may be above 100" in answer.message()
        else:
            assert isinstance(answer, np.ndarray), answer
            assert answer.tolist() == [[row] * 4]
    assert (await client.get_model_config("picky")).config.max_batch_size == 32


async def test_threads_are_those_of_the_settings(node: ServedNode) -> None:
    files = node.run_dir.rglob("r/*.json")
    specs = [ReplicaSpec.model_validate_json(file.read_bytes()) for file in files]
    assert {spec.threads for spec in specs if spec.model == "picky"} == {3}
    assert {spec.threads for spec in specs if spec.model == "exported"} == {1}


async def test_a_pickle_is_refused_and_with_trust_is_served(
    node: ServedNode, client: triton.InferenceServerClient
) -> None:
    assert "pickled/model.pth is a PyTorch pickle of more than weights" in node.output
    assert "trust: pickle into the model.yaml" in node.output
    assert node.replicas("pickled") == []
    with pytest.raises(InferenceServerException, match="would run whatever code it holds"):
        await client.infer("pickled", [tensor(X)])
    torch_models.settings(node.repository / "pickled", torch_models.SIGNATURE + "trust: pickle\n")
    await node.until_ready("pickled")
    answer = await client.infer("pickled", [tensor(X)])
    assert answer.as_numpy("output").tolist() == (2 * X).tolist()


async def test_new_code_is_a_new_replica(
    node: ServedNode, client: triton.InferenceServerClient
) -> None:
    """``model.py`` above the versions belongs to each of them."""
    (old,) = node.replicas("state_dict", 3)
    changed = torch_models.CODE.replace("x * self.factor", "x * self.factor + 1")
    put(node.repository / "state_dict/model.py", changed)
    await node.until(lambda: node.replicas("state_dict", 3) not in ([old], []))
    await node.until(lambda: old not in node.replicas("state_dict"))
    answer = await client.infer("state_dict", [tensor(X)])
    assert answer.as_numpy("output").tolist() == (2 * X + 1).tolist()
