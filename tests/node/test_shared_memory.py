"""Tensors in system shared memory, by tritonclient's own utilities, and what is refused of it."""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from collections.abc import AsyncIterator, Iterator
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import pytest_asyncio
import tritonclient.grpc
import tritonclient.http
import tritonclient.utils.shared_memory as shm
from tritonclient.utils import InferenceServerException, serialize_byte_tensor

from tests import models
from tests.node.harness import ServedNode
from tidegate.types import DType

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="POSIX shared memory by name"),
]

PREFIX = f"tg{uuid.uuid4().hex[:12]}"
KEY = f"/{PREFIX}-a"
X = np.arange(8, dtype=np.float32).reshape(2, 4)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ServedNode]:
    root = tmp_path_factory.mktemp("shared")
    models.add_sub(root / "pair" / "model.onnx")
    (root / "pair" / "model.yaml").write_text("replicas: 2\n")
    models.identity(root / "text.onnx", DType.BYTES, ("batch",))
    async with ServedNode(root, "--shared-memory-prefix", PREFIX) as served:
        yield served


@pytest.fixture(params=["http", "grpc"])
def client(request: pytest.FixtureRequest, node: ServedNode) -> Iterator[Any]:
    module = tritonclient.http if request.param == "http" else tritonclient.grpc
    with module.InferenceServerClient(node.target) as client:
        yield client
        client.unregister_system_shared_memory()


@contextlib.contextmanager
def memory(size: int = 4096, key: str = KEY) -> Iterator[Any]:
    """Shared memory as a client makes it."""
    handle = shm.create_shared_memory_region("a", key, size)
    try:
        yield handle
    finally:
        shm.destroy_shared_memory_region(handle)


def module_of(client: Any) -> Any:
    http = isinstance(client, tritonclient.http.InferenceServerClient)
    return tritonclient.http if http else tritonclient.grpc


def inputs(client: Any, *offsets: int, region: str = "a") -> list[Any]:
    found = []
    for name, offset in zip("ab", offsets):
        tensor = module_of(client).InferInput(name, [2, 4], "FP32")
        tensor.set_shared_memory(region, X.nbytes, offset=offset)
        found.append(tensor)
    return found


def output(client: Any, name: str, offset: int, size: int = X.nbytes) -> Any:
    wanted = module_of(client).InferRequestedOutput(name)
    wanted.set_shared_memory("a", size, offset=offset)
    return wanted


def regions(client: Any) -> dict[str, tuple[str, int, int]]:
    found = client.get_system_shared_memory_status()
    entries = found if isinstance(found, list) else found.regions.values()
    entries = [
        e if isinstance(e, dict) else {f.name: v for f, v in e.ListFields()} for e in entries
    ]
    return {e["name"]: (e["key"], e.get("offset", 0), e["byte_size"]) for e in entries}


async def test_tensors_both_ways(client: Any) -> None:
    with memory() as handle:
        shm.set_shared_memory_region(handle, [X, X + 1], offset=64)
        client.register_system_shared_memory("a", KEY, 4032, offset=64)
        assert regions(client) == {"a": (KEY[1:], 64, 4032)}
        wanted = [output(client, "total", 1024), output(client, "difference", 2048)]
        answer = client.infer("pair", inputs(client, 0, X.nbytes), outputs=wanted)
        told = answer.get_output("total")
        named = told["parameters"] if isinstance(told, dict) else told.parameters
        assert {*named} == {f"shared_memory_{key}" for key in ("region", "offset", "byte_size")}
        got = shm.get_contents_as_numpy(handle, np.float32, [2, 4], offset=64 + 1024)
        assert np.array_equal(got, 2 * X + 1)
        got = shm.get_contents_as_numpy(handle, np.float32, [2, 4], offset=64 + 2048)
        assert np.array_equal(got, np.full_like(X, -1))
        client.unregister_system_shared_memory("a")
        assert regions(client) == {}


async def test_some_in_memory_and_some_in_the_message(client: Any) -> None:
    module = module_of(client)
    with memory() as handle:
        shm.set_shared_memory_region(handle, [X])
        client.register_system_shared_memory("a", KEY, 4096)
        other = module.InferInput("b", [2, 4], "FP32")
        other.set_data_from_numpy(X + 1)
        wanted = [module.InferRequestedOutput("difference"), output(client, "total", 512)]
        answer = client.infer("pair", [*inputs(client, 0), other], outputs=wanted)
        assert np.array_equal(answer.as_numpy("difference"), np.full_like(X, -1))
        got = shm.get_contents_as_numpy(handle, np.float32, [2, 4], offset=512)
        assert np.array_equal(got, 2 * X + 1)
        answer = client.infer("pair", [*inputs(client, 0), other])
        assert np.array_equal(answer.as_numpy("total"), 2 * X + 1)


async def test_strings(client: Any) -> None:
    module = module_of(client)
    sent = serialize_byte_tensor(np.array([b"tide", b"", b"gate"], object))
    with memory() as handle:
        shm.set_shared_memory_region(handle, [sent])
        client.register_system_shared_memory("a", KEY, 4096)
        tensor = module.InferInput("x", [3], "BYTES")
        tensor.set_shared_memory("a", len(sent.item()))
        client.infer("text", [tensor], outputs=[output(client, "y", 1024, 256)])
        got = shm.get_contents_as_numpy(handle, np.object_, [3], offset=1024)
        assert got.tolist() == [b"tide", b"", b"gate"]


async def test_every_replica_knows_a_region_at_once(node: ServedNode, client: Any) -> None:
    for round_ in range(10):
        with memory() as handle:
            shm.set_shared_memory_region(handle, [X + round_])
            client.register_system_shared_memory("a", KEY, 4096)
            answer = client.infer("pair", inputs(client, 0, 0))
            assert np.array_equal(answer.as_numpy("total"), 2 * (X + round_))
            client.unregister_system_shared_memory("a")


@pytest.mark.parametrize(
    ("key", "size", "offset"),
    [
        (f"{PREFIX}-none", 64, 0),
        ("nothing-of-ours", 64, 0),
        ("passwd", 64, 0),
        (KEY, 4097, 0),
        (KEY, 4096, 1),
        (KEY, 64, 2**62),
    ],
    ids=["missing", "beyond", "a file", "too large", "past its end", "far past its end"],
)
async def test_what_cannot_be_used_is_told_in_the_same_words(
    client: Any, key: str, size: int, offset: int
) -> None:
    """A name outside of the prefix is not looked at, whether it is there or not."""
    with memory(), contextlib.closing(shared_memory.SharedMemory(create=True, size=64)) as other:
        try:
            for asked in (key, other.name):
                with pytest.raises(InferenceServerException) as caught:
                    client.register_system_shared_memory("a", asked, size, offset=offset)
                assert caught.value.status() in ("400", "StatusCode.INVALID_ARGUMENT")
                assert caught.value.message().endswith(
                    "the shared memory of region 'a' cannot be used with this key, offset and "
                    "size: create it under the prefix that the server allows "
                    "(shared_memory_prefix), at least as large"
                )
        finally:
            other.unlink()


@pytest.mark.parametrize(
    "key",
    ["../etc/passwd", f"{PREFIX}/../x", f"{PREFIX}-a\0", "", "//", "..", "é", "a" * 256],
    ids=["file", "way out", "zero", "empty", "slashes", "dots", "accent", "long"],
)
async def test_no_key_leads_out_of_shared_memory(client: Any, key: str) -> None:
    with pytest.raises(InferenceServerException, match="cannot be the name of shared memory"):
        client.register_system_shared_memory("a", key, 64)


async def test_a_link_is_not_followed(client: Any, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(4096))
    link = Path("/dev/shm") / f"{PREFIX}-link"
    link.symlink_to(secret)
    try:
        with pytest.raises(InferenceServerException, match="cannot be used"):
            client.register_system_shared_memory("a", link.name, 64)
    finally:
        link.unlink()


async def test_places_outside_of_a_region(client: Any) -> None:
    with memory():
        client.register_system_shared_memory("a", KEY, 128)
        with pytest.raises(InferenceServerException, match="are not in the shared memory region"):
            client.infer("pair", inputs(client, 0, 104))
        with pytest.raises(InferenceServerException, match="there is no shared memory region 'b'"):
            client.infer("pair", inputs(client, 0, 0, region="b"))
        with pytest.raises(InferenceServerException, match="are not in the shared memory region"):
            client.infer("pair", inputs(client, 0, 0), outputs=[output(client, "total", 120)])
        with pytest.raises(InferenceServerException, match="its place in shared memory 8"):
            client.infer("pair", inputs(client, 0, 0), outputs=[output(client, "total", 0, 8)])
        with pytest.raises(InferenceServerException, match="'a' is registered"):
            client.register_system_shared_memory("a", KEY, 128)


async def test_memory_that_shrinks_does_no_harm(node: ServedNode, client: Any) -> None:
    before = set(node.replicas("pair"))
    with memory() as handle:
        client.register_system_shared_memory("a", KEY, 4096)
        client.infer("pair", inputs(client, 0, 0), outputs=[output(client, "total", 2048)])
        os.truncate(Path("/dev/shm") / KEY[1:], 16)
        for _ in range(4):
            with pytest.raises(InferenceServerException, match="cannot be used"):
                client.infer("pair", inputs(client, 0, 0))
        os.truncate(Path("/dev/shm") / KEY[1:], 64)
        with pytest.raises(InferenceServerException, match="cannot be used"):
            client.infer("pair", inputs(client, 0, 0), outputs=[output(client, "total", 2048)])
        os.truncate(Path("/dev/shm") / KEY[1:], 4096)
        shm.set_shared_memory_region(handle, [X])
        assert np.array_equal(client.infer("pair", inputs(client, 0, 0)).as_numpy("total"), 2 * X)
    assert set(node.replicas("pair")) == before


async def test_more_than_a_message_may_have_is_not_read(client: Any) -> None:
    """Memory that was never written takes no room where it lies, but would where it is read."""
    with memory(2**36):
        client.register_system_shared_memory("a", KEY, 2**36)
        tensor = module_of(client).InferInput("a", [2**28, 4], "FP32")
        tensor.set_shared_memory("a", 2**32)
        with pytest.raises(InferenceServerException, match="max_message_size"):
            client.infer("pair", [tensor])


async def test_regions_survive_replicas_and_controllers(node: ServedNode, client: Any) -> None:
    with memory() as handle:
        shm.set_shared_memory_region(handle, [X])
        client.register_system_shared_memory("a", KEY, 4096)
        for pid in node.replicas("pair"):
            psutil.Process(pid).kill()
        node.kill_controller()
        assert node.process is not None
        await node.process.wait()
        await node.serve()
        await node.until(lambda: client.is_model_ready("pair"))
        assert regions(client) == {"a": (KEY[1:], 0, 4096)}
        assert np.array_equal(client.infer("pair", inputs(client, 0, 0)).as_numpy("total"), 2 * X)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("system/region/a/register", b"{", 400),
        ("system/region/a/register", b'{"key": 1, "byte_size": 1}', 400),
        ("system/region/a/register", b'{"key": "x"}', 400),
        ("system/region/a/register", b'{"key": "x", "byte_size": -1}', 400),
        ("system/region/a/register", b'{"key": "x", "byte_size": 0}', 400),
        ("system/region/a/register", b'{"key": "x", "byte_size": 1, "offset": 1.5}', 400),
        ("system/region/%0A/register", b'{"key": "x", "byte_size": 1}', 400),
        ("system/region/a/unregister", b"", 200),
        ("system/unregister", b"", 200),
        ("system/status", b"", 405),
        ("cuda/region/a/register", b"{}", 501),
        ("cuda/unregister", b"", 200),
    ],
)
async def test_calls_over_rest(node: ServedNode, path: str, body: bytes, status: int) -> None:
    kind, _, rest = path.partition("/")
    found, answer = await node.post(f"/v2/{kind}sharedmemory/{rest}", body)
    assert (found, answer) == (200, b"{}") if status == 200 else found == status, answer


async def test_status_of_what_is_not_there(node: ServedNode) -> None:
    for kind in ("system", "cuda"):
        assert await node.get(f"/v2/{kind}sharedmemory/status") == (200, b"[]")
        status, answer = await node.get(f"/v2/{kind}sharedmemory/region/x/status")
        assert (status, "'x'" in json.loads(answer)["error"]) == (404, True)


async def test_it_is_off_by_default(tmp_path: Path) -> None:
    models.add_sub(tmp_path / "pair.onnx")
    async with ServedNode(tmp_path) as node:
        for module in (tritonclient.http, tritonclient.grpc):
            with module.InferenceServerClient(node.target) as client, memory():
                client.unregister_system_shared_memory()
                client.unregister_cuda_shared_memory()
                assert regions(client) == {}
                with pytest.raises(InferenceServerException, match="--shared-memory-prefix"):
                    client.register_system_shared_memory("a", KEY, 64)
                with pytest.raises(InferenceServerException, match="asks for shared memory"):
                    client.infer("pair", inputs(client, 0, 0))
        metadata = json.loads((await node.get("/v2"))[1])
        assert "system_shared_memory" not in metadata["extensions"]
