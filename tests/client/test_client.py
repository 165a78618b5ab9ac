"""Both clients, over both transports, against a node."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import pytest_asyncio

from tests import models
from tests.node.harness import ServedNode
from tests.node.test_clients import values
from tidegate import AsyncClient, Client, __version__, errors
from tidegate.protocols.open_inference.repository import State
from tidegate.types import DType

pytestmark = pytest.mark.asyncio(loop_scope="module")

Call = Callable[..., Awaitable[Any]]
WAYS = ["http", "http-json", "grpc", "http-async", "http-json-async", "grpc-async"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ServedNode]:
    root = tmp_path_factory.mktemp("models")
    models.every_dtype(root / "every.onnx")
    models.identity(root / "wide.onnx", shape=("batch", "n"))
    models.identity(root / "bfloat.onnx", DType.BF16)
    models.identity(root / "bytes.onnx", DType.UINT8, ("batch",))
    models.identity(root / "text.onnx", DType.BYTES, ("batch",))
    models.add_sub(root / "add_sub.onnx")
    models.slow(root / "slow.onnx")
    models.gather(root / "gather.onnx")
    for version in (1, 2):
        models.scale(root / "scale" / str(version) / "model.onnx", float(version))
    (root / "scale" / "model.yaml").write_text("versions: all\n")
    async with ServedNode(root, "--public-control") as served:
        yield served


class Either:
    """One of the clients, called alike: the blocking one from a thread."""

    def __init__(self, way: str, target: str, **options: Any) -> None:
        self.way = way
        scheme = way.partition("-")[0]
        kind = AsyncClient if way.endswith("async") else Client
        self.client: Any = kind(f"{scheme}://{target}", binary="json" not in way, **options)
        self.json = "json" in way

    async def call(self, name: str, *args: Any, of: Any = None, **kwargs: Any) -> Any:
        method = getattr(of or self.client, name)
        if isinstance(self.client, AsyncClient):
            return await method(*args, **kwargs)
        return await asyncio.to_thread(method, *args, **kwargs)

    async def infer(self, *args: Any, **kwargs: Any) -> Any:
        return await self.call("infer", *args, **kwargs)


@pytest_asyncio.fixture(params=WAYS, loop_scope="module")
async def either(request: pytest.FixtureRequest, node: ServedNode) -> AsyncIterator[Either]:
    client = Either(request.param, node.target)
    yield client
    await client.call("close")


def sent(dtype: DType) -> np.ndarray[Any, Any]:
    return values(dtype)


async def test_every_type_comes_back_as_it_was_sent(either: Either) -> None:
    inputs = {f"in_{d.value}": sent(d) for d in DType}
    answer = await either.infer("every", inputs, request_id="all of them")
    for dtype in DType:
        found, expected = answer[f"out_{dtype.value}"], sent(dtype)
        assert found.dtype == dtype.numpy
        if dtype is DType.BYTES:
            expected = np.array([[e.encode() for e in row] for row in expected], object)
        assert np.array_equal(found, expected), dtype
    assert (answer.model, answer.version, answer.id) == ("every", "1", "all of them")
    assert list(answer) == [f"out_{d.value}" for d in DType]


async def test_lists_take_the_type_that_the_model_declares(either: Either) -> None:
    inputs: dict[str, Any] = {f"in_{d.value}": [[1, 0], [0, 1]] for d in DType}
    inputs["in_BOOL"] = [[True, False], [False, True]]
    inputs["in_BYTES"] = [["a", b"b"], ["\u00e9", b"\x00"]]
    answer = await either.infer("every", inputs)
    assert answer["out_BF16"].dtype == ml_dtypes.bfloat16
    assert answer["out_FP64"].tolist() == [[1.0, 0.0], [0.0, 1.0]]
    assert answer["out_BYTES"].tolist() == [[b"a", b"b"], ["\u00e9".encode(), b"\x00"]]


async def test_a_single_value_goes_into_the_only_input(either: Either) -> None:
    model = either.client.model("wide")
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert np.array_equal((await either.call("infer", array, of=model))["y"], array)
    assert (await either.call("infer", [[1, 2.5]], of=model))["y"].tolist() == [[1, 2.5]]
    text = await either.infer("text", ["tide", "gate"])
    assert text["y"].tolist() == [b"tide", b"gate"]
    with pytest.raises(errors.InvalidInput, match=r"2 inputs \('a', 'b'\)"):
        await either.infer("add_sub", array)


async def test_outputs_versions_and_large_arrays(either: Either) -> None:
    a = np.ones((1, 4), np.float32)
    answer = await either.infer("add_sub", {"a": a, "b": a}, outputs=["difference"])
    assert list(answer) == ["difference"]
    with pytest.raises(KeyError, match="there is no output 'total'"):
        answer["total"]
    for version, wanted in ((None, 2), (1, 1), ("2", 2)):
        scaled = await either.infer("scale", {"x": a}, version=version)
        assert scaled["y"][0, 0] == wanted
        assert scaled.version == str(wanted)
    # Views that are not contiguous, or of the other byte order, are sent as they read.
    wide = np.arange(2 * 10**5, dtype=">f4").reshape(2, -1)[:, ::2]
    assert np.array_equal((await either.infer("wide", {"x": wide}))["y"], wide)
    nothing = await either.infer("wide", {"x": np.empty((0, 3), np.float32)})
    assert nothing["y"].shape == (0, 3)


async def test_metadata_and_readiness(either: Either) -> None:
    server = await either.call("metadata")
    assert (server.name, server.version) == ("tidegate", __version__)
    found = await either.call("metadata", of=either.client.model("scale"))
    assert found.versions == ("1", "2")
    (spec,) = found.signature.inputs
    assert (spec.name, spec.dtype, spec.shape) == ("x", DType.FP32, (None, 4))
    assert await either.call("live")
    assert await either.call("ready")
    await either.call("wait_ready", 5)
    assert await either.call("ready", of=either.client.model("scale", 1))
    assert not await either.call("ready", of=either.client.model("scale", 3))
    assert not await either.call("ready", of=either.client.model("nobody"))
    with pytest.raises(errors.DeadlineExceeded, match="'nobody' is not ready after"):
        await either.call("wait_ready", 0.05, of=either.client.model("nobody"))


async def test_the_repository_and_its_statistics(either: Either) -> None:
    index = await either.call("repository")
    found = {(e.name, e.version): e.state for e in index}
    assert found["scale", "1"] is found["text", "1"] is State.READY
    await either.call("unload", "text")
    (entry,) = [e for e in await either.call("repository") if e.name == "text"]
    assert entry.state is State.UNAVAILABLE
    assert entry.reason
    ready = await either.call("repository", ready=True)
    assert ready
    assert all(e.state is State.READY and e.name != "text" for e in ready)
    await either.call("load", "text", timeout=30)
    with pytest.raises(errors.ModelNotFound):
        await either.call("load", "nobody")

    model = either.client.model("text")
    (before,) = await either.call("statistics", of=model)
    assert (await either.infer("text", ["a"]))["y"].tolist() == [b"a"]
    (after,) = await either.call("statistics", of=model)
    assert (after.name, after.version) == ("text", "1")
    assert after.inference_count == before.inference_count + 1
    assert after.requests["success"].count == before.requests["success"].count + 1
    assert after.requests["compute_infer"].ns > before.requests["compute_infer"].ns
    every = await either.call("statistics")
    assert {s.name for s in every} >= {"text", "scale"}


async def test_errors_are_typed(either: Either) -> None:
    x = np.ones((1, 4), np.float32)
    with pytest.raises(errors.ModelNotFound, match="nobody"):
        await either.infer("nobody", {"x": x})
    with pytest.raises(errors.ModelNotFound, match="nobody"):
        await either.infer("nobody", x)
    with pytest.raises(errors.ModelNotFound):
        await either.infer("scale", {"x": x}, version=7)
    with pytest.raises(errors.InvalidInput, match=r"FP32.*FP64"):
        await either.infer("scale", {"x": x.astype(np.float64)})
    with pytest.raises(errors.InvalidInput):
        await either.infer("scale", {"q": x})
    with pytest.raises(errors.InferenceFailed):
        await either.infer("gather", {"index": np.array([[99]])})
    with pytest.raises(errors.InvalidInput, match=r"300.*UINT8 cannot hold"):
        await either.infer("bytes", [1, 300])
    with pytest.raises(errors.InvalidInput, match=r"parameter|JSON"):
        await either.infer("scale", {"x": x}, parameters={"a": object()})
    with pytest.raises(errors.InvalidInput, match="a list of names"):
        await either.infer("scale", {"x": x}, outputs="y")


async def test_a_call_takes_no_longer_than_its_timeout(either: Either) -> None:
    for _ in range(2):
        with pytest.raises(errors.DeadlineExceeded):
            await either.infer("slow", np.full((1, 1), 500, np.float32), timeout=0.1)
    answer = await either.infer("slow", {"x": np.zeros((1, 1), np.float32)}, timeout=math.inf)
    assert answer["y"].tolist() == [[0]]
    with pytest.raises(errors.InvalidInput, match="above 0"):
        await either.infer("slow", [[0]], timeout=0)


@pytest.mark.parametrize("either", ["http", "grpc-async"], indirect=True)
async def test_a_model_that_takes_something_else_since_is_asked_again(
    either: Either, node: ServedNode
) -> None:
    name = f"turncoat-{either.way}"  # of each way its own: the node keeps what it has served
    file = node.repository / name / "1" / "model.onnx"
    models.identity(file, DType.FP32, ("batch",))
    model = either.client.model(name)
    await either.call("wait_ready", 30, of=model)
    assert (await either.call("infer", [1], of=model))["y"].dtype == np.float32
    models.identity(node.repository / name / "2" / "model.onnx", DType.INT64, ("batch",))
    await either.call("wait_ready", 30, of=either.client.model(name, 2))
    assert (await either.call("infer", [1], of=model))["y"].dtype == np.int64


async def test_many_at_once(either: Either) -> None:
    def row(n: int) -> np.ndarray[Any, Any]:
        return np.full((1, 4), n, np.float32)

    answers = await asyncio.gather(*(either.infer("scale", {"x": row(n)}) for n in range(40)))
    assert [a["y"][0, 0] for a in answers] == [2.0 * n for n in range(40)]
