"""Models of several signatures, from the message to the run."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from tests.replica.edge_client import EdgeClient, Reply
from tests.replica.served import INFER, outputs_of, serving
from tidegate.config.model import Batching
from tidegate.errors import InvalidInput
from tidegate.protocols.open_inference import messages
from tidegate.replica.batch import BatchRunner
from tidegate.replica.binding import binding
from tidegate.replica.hooks import Functions
from tidegate.replica.loading import with_hooks
from tidegate.replica.warmup import batched_signatures, warm_up
from tidegate.runtimes.interface import Model
from tidegate.types import (
    Array,
    DType,
    InferRequest,
    RequestedOutput,
    Signature,
    Tensor,
    TensorSpec,
)

X = TensorSpec("x", DType.FP32, ("n",))
SIGNATURES = {
    "double": Signature((X,), (TensorSpec("y", DType.FP32, ("n",)),)),
    "count": Signature((X,), (TensorSpec("y", DType.INT64, ("n",)),)),
    "total": Signature(
        (TensorSpec("x", DType.FP32, (None,)),), (TensorSpec("y", DType.FP32, ()),)
    ),
}


class ManyModel:
    """``x`` doubled, the place of each ``x``, or the sum of all."""

    platform = "fake"
    device = "cpu"
    most_rows: int | None = None
    signatures: Mapping[str, Signature] = SIGNATURES

    def __init__(self, name: str, runs: list[tuple[str, int]]) -> None:
        self.name = name
        self.runs = runs
        """The signature and the rows of each run."""
        self.signature = SIGNATURES[name]

    def under(self, signature: str) -> ManyModel:
        return ManyModel(signature, self.runs)

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        (x,) = inputs.values()
        self.runs.append((self.name, len(x)))
        found: dict[str, Any] = {
            "double": x * 2,
            "count": np.zeros(len(x), np.int64),
            "total": x.sum(),
        }
        return {name: np.asarray(found[self.name]) for name in outputs}

    def attach(self) -> None:
        pass

    def close(self) -> None:
        pass


def model() -> ManyModel:
    checked: Model = ManyModel("double", [])
    assert isinstance(checked, ManyModel)
    return checked


def ask(signature: str, *values: float) -> InferRequest:
    tensor = Tensor.of("x", np.array(values, np.float32))
    return InferRequest("m", inputs=(tensor,), signature=signature)


BATCHED = {"double": True, "count": True, "total": False}


def test_each_request_is_bound_to_the_signature_that_it_names() -> None:
    binder = binding(SIGNATURES, BATCHED)
    assert binder.bind(ask("", 1)).group == binder.bind(ask("double", 1)).group
    assert binder.bind(ask("", 1)).group != binder.bind(ask("count", 1)).group
    # What cannot be joined is not joined to its like either.
    assert binder.bind(ask("total", 1)).group != binder.bind(ask("total", 1)).group


def test_where_nothing_is_joined_there_is_one_group() -> None:
    binder = binding(SIGNATURES, dict.fromkeys(SIGNATURES, False))
    groups = {binder.bind(ask(name, 1)).group for name in SIGNATURES}
    assert groups == {None}


def test_an_unknown_signature_is_answered_with_those_that_there_are() -> None:
    wrong = "the model has no signature 'half': it has 'double', 'count', 'total'"
    with pytest.raises(InvalidInput, match=wrong):
        binding(SIGNATURES, BATCHED).bind(ask("half", 1))


def test_a_model_of_one_signature_answers_to_the_name_that_is_usual() -> None:
    one = binding({"serving_default": SIGNATURES["double"]}, {"serving_default": True})
    assert one.bind(ask("serving_default", 1)).group == one.bind(ask("", 1)).group
    with pytest.raises(InvalidInput, match="no signature 'double': it has 'serving_default'"):
        one.bind(ask("double", 1))


def test_a_batch_runs_under_its_signature() -> None:
    many = model()
    binder = binding(SIGNATURES, BATCHED)
    runner = BatchRunner(many, lambda: 0.0)
    batch = [binder.bind(ask("count", 1, 2)), binder.bind(ask("count", 3))]
    assert [outcome["y"].tolist() for outcome in runner.run(batch).outcomes] == [[0, 0], [0]]  # type: ignore[index]
    assert many.runs == [("count", 3)]
    (outcome,) = runner.run([binder.bind(ask("", 4))]).outcomes
    assert isinstance(outcome, dict)
    assert outcome["y"].tolist() == [8]


def test_each_signature_is_warmed_up_and_looked_at_for_itself() -> None:
    many = model()
    warm_up(many)
    assert [name for name, _ in many.runs] == ["double", "count", "total"]
    assert batched_signatures(many, Batching()) == BATCHED
    assert batched_signatures(many, Batching(enabled=False)) == dict.fromkeys(SIGNATURES, False)


@contextlib.asynccontextmanager
async def served(folder: Path) -> AsyncIterator[tuple[ManyModel, EdgeClient]]:
    many = model()
    async with (
        serving(many, folder, max_batch_size=8) as replica,
        EdgeClient(replica.socket) as client,
    ):
        yield many, client


def body(parameters: Mapping[str, Any]) -> bytes:
    tensor = {"name": "x", "datatype": "FP32", "shape": [2], "data": [1.0, 2.0]}
    return orjson.dumps({"inputs": [tensor], "parameters": parameters})


async def rest(client: EdgeClient, parameters: Mapping[str, Any]) -> Reply:
    return await client.rest("POST", "/v2/models/m/infer", body(parameters))


async def test_over_rest_the_signature_is_a_parameter(tmp_path: Path) -> None:
    async with served(tmp_path) as (_, client):
        (plain,) = (await rest(client, {})).json["outputs"]
        assert (plain["datatype"], plain["data"]) == ("FP32", [2.0, 4.0])
        (count,) = (await rest(client, {"signature_name": "count"})).json["outputs"]
        assert (count["datatype"], count["data"]) == ("INT64", [0, 0])
        wrong = await rest(client, {"signature_name": "half"})
        assert wrong.status == 400
        assert "it has 'double', 'count', 'total'" in wrong.error
        number = await rest(client, {"signature_name": 7})
        assert (number.status, number.error) == (
            400,
            "the parameter signature_name is 7; send the name of a signature",
        )


def message(signature: str, value: float) -> bytes:
    request = messages.ModelInferRequest(model_name="m")
    if signature:
        request.parameters["signature_name"].string_param = signature
    request.inputs.add(name="x", datatype="FP32", shape=[1])
    request.raw_input_contents.append(np.float32(value).tobytes())
    return bytes(request.SerializeToString())


async def test_over_grpc_too(tmp_path: Path) -> None:
    types = {"": np.float32, "double": np.float32, "count": np.int64, "total": np.float32}
    async with served(tmp_path) as (many, client):
        for name, dtype in types.items():
            reply = await client.grpc(INFER, message(name, 3.0))
            assert reply.grpc_status == 0
            assert outputs_of(reply.message)["y"].dtype == dtype
        assert [name for name, _ in many.runs] == ["double", "double", "count", "total"]


def test_hooks_see_requests_of_every_signature() -> None:
    many = model()
    # A list, which becomes what the signature takes.
    found = with_hooks(many, Functions(preprocess=lambda request: [5.0, 7.0]))
    hooks = found.hooks(binding(SIGNATURES, BATCHED))
    assert hooks is not None
    for name, dtype, answer in (("", DType.FP32, [10, 14]), ("count", DType.INT64, [0, 0])):
        sent = InferRequest("m", payload="text", outputs=(RequestedOutput("y"),), signature=name)
        prepared = hooks.prepare(sent)
        (outcome,) = found.runner(lambda: 0.0).run([prepared.bound]).outcomes
        assert isinstance(outcome, dict)
        (tensor,) = hooks.finish(sent, prepared, outcome).outputs
        assert (tensor.dtype, tensor.data.tolist()) == (dtype, answer)
