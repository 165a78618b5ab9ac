"""What NVIDIA's perf_analyzer reads of a server, field by field as its own parser does.

It fails, or crashes, on a field that is missing or of another type.
Sources: ``model_parser.cc`` and ``triton_client_backend.cc`` of perf_analyzer.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import tritonclient.grpc
import tritonclient.http
from google.protobuf import json_format

from tests import models
from tests.node.harness import ServedNode

pytestmark = pytest.mark.asyncio(loop_scope="module")

CALLS = 8
TIMES = ("success", "queue", "compute_input", "compute_infer", "compute_output")
CACHE = ("cache_hit", "cache_miss")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ServedNode]:
    root: Path = tmp_path_factory.mktemp("perf")
    models.add_sub(root / "batched" / "model.onnx")
    (root / "batched" / "model.yaml").write_text("replicas: 2\n")
    models.add_sub(root / "alone" / "model.onnx")
    (root / "alone" / "model.yaml").write_text("batching: {enabled: false}\n")
    async with ServedNode(root) as served:
        yield served


class Http:
    """Its documents over HTTP."""

    module = tritonclient.http

    def __init__(self, target: str) -> None:
        self.client = tritonclient.http.InferenceServerClient(target)

    def __getattr__(self, method: str) -> Callable[..., Any]:
        found: Callable[..., Any] = getattr(self.client, method)
        return found


class Grpc:
    """Its documents over gRPC: JSON of the messages, with every field that has no presence."""

    module = tritonclient.grpc

    def __init__(self, target: str) -> None:
        self.client = tritonclient.grpc.InferenceServerClient(target)

    def __getattr__(self, method: str) -> Callable[..., Any]:
        def ask(*arguments: str) -> Any:
            document = json_format.MessageToDict(
                getattr(self.client, method)(*arguments),
                preserving_proto_field_name=True,
                always_print_fields_with_no_presence=True,
            )
            return document["config"] if method == "get_model_config" else document

        return ask


@pytest.fixture(params=[Http, Grpc])
def server(request: pytest.FixtureRequest, node: ServedNode) -> Iterator[Any]:
    backend = request.param(node.target)
    with backend.client:
        yield backend


def number(value: Any) -> int:
    """It takes whole numbers, and the strings that protobuf makes of 64-bit ones."""
    assert isinstance(value, int | str)
    assert not isinstance(value, bool)
    return int(value)


def tensors(document: dict[str, Any], key: str, batched: bool) -> dict[str, list[int]]:
    found = {}
    for tensor in document[key]:
        assert isinstance(tensor["datatype"], str)
        shape = [number(dimension) for dimension in tensor["shape"]]
        found[tensor["name"]] = shape[1:] if batched else shape
    return found


def counts(server: Any, model: str) -> dict[str, int]:
    (found,) = server.get_inference_statistics(model, "1")["model_stats"]
    assert (found["name"], found["version"]) == (model, "1")
    stats = found["inference_stats"]
    for name in (*TIMES, *CACHE):
        assert number(stats[name].get("ns", 0)) >= 0
    return {
        "inference": number(found["inference_count"]),
        "execution": number(found["execution_count"]),
        **{name: number(stats[name].get("count", 0)) for name in (*TIMES, *CACHE)},
    }


@pytest.mark.parametrize(("model", "largest"), [("batched", 32), ("alone", 0)])
async def test_a_measurement(server: Any, model: str, largest: int) -> None:
    assert "statistics" in server.get_server_metadata()["extensions"]
    metadata, config = server.get_model_metadata(model), server.get_model_config(model)
    assert metadata["name"] == config["name"] == model
    assert number(config["max_batch_size"]) == largest
    assert ("dynamic_batching" in config) == bool(largest)
    assert "sequence_batching" not in config
    assert config["model_transaction_policy"]["decoupled"] is False
    assert config["platform"] != "ensemble"
    inputs = tensors(metadata, "inputs", largest > 0)
    outputs = tensors(metadata, "outputs", largest > 0)
    assert {t["name"] for t in config["input"]} == set(inputs)
    assert {t["name"] for t in config["output"]} == set(outputs)
    # A dynamic dimension beyond the batch would have to be given by hand.
    shapes = {name: [2, *shape] if largest else [2, *shape[1:]] for name, shape in inputs.items()}
    assert set(map(tuple, shapes.values())) == {(2, 4)}

    before = counts(server, model)
    made = []
    for name, shape in shapes.items():
        made.append(server.module.InferInput(name, shape, "FP32"))
        made[-1].set_data_from_numpy(np.ones(shape, np.float32))
    for _ in range(CALLS):
        assert server.client.infer(model, made).as_numpy("total").shape == (2, 4)
    after = counts(server, model)
    grown = {name: after[name] - before[name] for name in after}
    executions = grown.pop("execution")
    rows = 2 if largest else 1  # to Triton, what is not batched is one thing
    times = dict.fromkeys(TIMES, CALLS)
    assert grown == {"inference": rows * CALLS, **times, **dict.fromkeys(CACHE, 0)}
    assert 0 < executions <= CALLS
