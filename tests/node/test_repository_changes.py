"""What a repository holds, as a running node follows it; meanwhile the others serve."""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import shutil
import signal
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import psutil
import pytest
import pytest_asyncio
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tests import models
from tests.node.failures_table import (
    Answer,
    Grpc,
    Rest,
    outcome,
    request,
    running,
    until_state,
)
from tests.node.harness import START, ServedNode

pytestmark = pytest.mark.asyncio(loop_scope="module")

LOADABLE = ("steady", "kept", "second", "third")
MIB = 2**20


class Place:
    """A node, its repository, and a neighbour that is called all the time."""

    def __init__(self, node: ServedNode, channel: grpc.aio.Channel) -> None:
        self.node = node
        self.root = node.repository
        self.rest, self.rpc = Rest(node), Grpc(channel)
        self.stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        self.calls = 0
        self.failures: list[str] = []
        self.loading: list[int] = []
        """How many replicas were loading, at each look during the start."""
        self.first: list[tuple[int, dict[str, int]]] = []
        """Status of ``/v2/health/ready`` and then of each model, at each look during the start."""

    async def scale(self, model: str) -> float:
        """The factor by which ``model`` multiplies."""
        message = service_pb2.ModelInferRequest(model_name=model)
        tensor = message.inputs.add(name="x", datatype="FP32", shape=[1, 4])
        tensor.contents.fp32_contents.extend([1, 1, 1, 1])
        answer = await self.stub.ModelInfer(message)
        raw = service_pb2.ModelInferResponse.FromString(answer.SerializeToString())
        return float(memoryview(raw.raw_output_contents[0]).cast("f")[0])

    async def follow(self, model: str) -> None:
        """Call ``model`` again and again; every failure is kept."""
        while True:
            self.calls += 1
            try:
                await self.scale(model)
            except grpc.aio.AioRpcError as error:
                self.failures.append(f"{model}: {error.code().name} {error.details()}")
            await asyncio.sleep(0.005)

    @contextlib.asynccontextmanager
    async def traffic(self, model: str) -> AsyncIterator[None]:
        """Calls of ``model`` under way all the time, of which none may fail."""
        before = len(self.failures)
        tasks = [asyncio.create_task(self.follow(model)) for _ in range(4)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        assert self.failures[before:] == []

    async def state(self, model: str, wanted: str) -> dict[str, Any]:
        return await until_state(self.node, model, lambda m: m["state"] == wanted)

    async def until_code(self, model: str, code: int) -> None:
        """Wait until ``/ready`` of the model answers ``code``."""
        began = time.monotonic()
        while (await self.node.get(f"/v2/models/{model}/ready"))[0] != code:
            assert time.monotonic() - began < START, self.node.output
            await asyncio.sleep(0.02)

    async def watch_the_start(self) -> None:
        ready = 0
        while ready != 200:
            ready = (await self.node.get("/v2/health/ready"))[0]
            each = {m: (await self.node.get(f"/v2/models/{m}/ready"))[0] for m in LOADABLE}
            self.first.append((ready, each))
            replicas = [
                replica
                for model in (await self.node.status())["models"]
                for version in model["versions"]
                for replica in version["replicas"]
            ]
            loading = [r for r in replicas if r["state"] == "starting" and r["pid"] is not None]
            self.loading.append(len(loading))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Place]:
    root = tmp_path_factory.mktemp("repository")
    for name in ("steady", "second", "third"):
        models.scale(root / f"{name}.onnx", 1.0)
    models.scale(root / "kept" / "1" / "model.onnx", 1.0)
    (root / "text.onnx").write_text("these are no weights\n")
    (root / "cut.onnx").write_bytes((root / "steady.onnx").read_bytes()[:60])
    (root / "lite.tflite").write_bytes(b"\x1c\0\0\0TFL3" + bytes(56))
    models.scale(root / "slip" / "1" / "model.onnx", 1.0)
    (root / "slip" / "model.yaml").write_text("runtime: onnx\nreplica: 2\n")
    # 90 MiB of weights, and of what a replica needs anyway about 90 more.
    models.tiny_mlp(root / "big" / "1" / "model.onnx", 1024, 23_000, external=True)
    (root / "big" / "model.yaml").write_text("resources: {memory: 130MiB}\n")
    async with (
        ServedNode(root, "--parallel-loads", "1", wait_ready=False) as node,
        grpc.aio.insecure_channel(node.target) as channel,
    ):
        found = Place(node, channel)
        await found.watch_the_start()
        async with found.traffic("steady"):
            yield found
        assert found.calls > 100


async def test_ready_is_503_until_all_that_can_be_loaded_are_ready(place: Place) -> None:
    codes = [ready for ready, _ in place.first]
    assert codes == [503] * (len(codes) - 1) + [200]
    assert len(codes) > 1
    # The broken ones are no reason to wait.
    assert place.first[-1][1] == dict.fromkeys(LOADABLE, 200)
    assert {code for _, each in place.first for code in each.values()} == {503, 200}


async def test_loads_are_bounded(place: Place) -> None:
    assert max(place.loading) == 1


WRONG = (
    ("text", "text.onnx", "is not a model: it seems to be text, which begins 'these are no we"),
    ("cut", "cut.onnx", "is an ONNX model that is cut short at 60 bytes; copy it again"),
    ("slip", "slip/model.yaml", "line 2: replica: unknown key; did you mean 'replicas'?"),
    ("lite", "lite.tflite", "is a TensorFlow Lite model, which is not served by this version"),
)


@pytest.mark.parametrize(("model", "file", "reason"), WRONG, ids=[w[0] for w in WRONG])
async def test_what_is_wrong_is_named(place: Place, model: str, file: str, reason: str) -> None:
    found = await place.state(model, "not ready")
    (problem,) = found["problems"]
    assert problem.startswith(file)
    assert reason in problem
    assert found["versions"] == []
    kind = "skipped" if model == "lite" else "invalid"
    assert f"{model} {kind}: {problem}\n" in place.node.output
    await says(place, model, f"^model '{model}' is not ready: {problem}"[1:])


async def says(place: Place, model: str, words: str) -> None:
    """Callers of ``model`` hear 503 or UNAVAILABLE and why."""
    for path in ("", "/ready"):
        answer = await place.rest.ask("GET", f"/v2/models/{model}{path}")
        assert (answer.code, words in answer.message) == ("503", True), answer
    answer = await place.rpc.infer(model, 0)
    assert (answer.code, words in answer.message) == ("UNAVAILABLE", True), answer


async def test_a_model_that_does_not_fit_says_so(place: Place) -> None:
    found = await place.state("big", "not ready")
    reason = "big version 1 does not fit in the 136314880 bytes of resources.memory: "
    assert found["reason"].startswith(reason)
    (version,) = found["versions"]
    assert (version["state"], version["replicas"][0]["state"]) == ("failed", "failed")
    await says(place, "big", found["reason"])
    (place.root / "big" / "model.yaml").write_text("resources: {memory: 2GiB}\n")
    await place.until_code("big", 200)
    assert (await place.state("big", "ready"))["reason"] is None
    shutil.rmtree(place.root / "big")


async def test_a_model_comes_and_goes_while_the_others_stay(place: Place) -> None:
    others = {pid for name in LOADABLE for pid in place.node.replicas(name)}
    models.scale(place.root / "fresh.onnx", 3.0)
    await place.until_code("fresh", 200)
    assert await place.scale("fresh") == 3.0
    (pid,) = place.node.replicas("fresh")
    (place.root / "fresh.onnx").unlink()
    await place.until_code("fresh", 404)
    answer = await place.rpc.infer("fresh", 0)
    assert answer.code == "NOT_FOUND"
    await place.node.until(lambda: not psutil.pid_exists(pid))
    assert {pid for name in LOADABLE for pid in place.node.replicas(name)} == others


async def test_what_runs_when_its_model_goes_is_answered(place: Place) -> None:
    folder = place.root / "leaving" / "1"
    models.slow(folder / "model.onnx")
    await place.until_code("leaving", 200)
    (pid,) = place.node.replicas("leaving")
    call = place.rpc.start(request("leaving", 3000))
    await place.node.until(lambda: running(place.node, "leaving"))
    shutil.rmtree(folder.parent)
    await place.until_code("leaving", 404)
    assert not call.done()
    assert (await outcome(call)).code == "OK"
    await place.node.until(lambda: not psutil.pid_exists(pid))


async def test_a_slip_in_model_yaml_leaves_what_was_live(place: Place) -> None:
    settings = place.root / "kept" / "model.yaml"
    (pid,) = place.node.replicas("kept")
    async with place.traffic("kept"):
        settings.write_text("replcas: 2\n")
        found = await until_state(place.node, "kept", lambda m: m["problems"])
        assert found["problems"] == [
            "kept/model.yaml: line 1: replcas: unknown key; did you mean 'replicas'?"
        ]
        assert found["state"] == "ready"
        assert place.node.replicas("kept") == [pid]
        settings.write_text("replicas: 2\n")
        await until_state(place.node, "kept", lambda m: replicas(m) == ["ready", "ready"])
        await place.node.until(lambda: pid not in place.node.replicas("kept"))
        assert len(place.node.replicas("kept")) == 2
    assert (await place.state("kept", "ready"))["problems"] == []


def replicas(model: dict[str, Any]) -> list[str]:
    """The states of the replicas of the newest version."""
    return [replica["state"] for replica in model["versions"][-1]["replicas"]]


async def test_a_broken_new_version_leaves_the_old_one(place: Place) -> None:
    async with place.traffic("kept"):
        folder = place.root / "kept" / "2"
        folder.mkdir()
        (folder / "model.onnx").write_text("these are no weights\n")
        found = await until_state(place.node, "kept", lambda m: m["problems"])
        assert found["problems"][0].startswith("kept/2/model.onnx is not a model")
        assert (found["state"], found["default_version"]) == ("ready", 1)
        assert await place.scale("kept") == 1.0
        models.scale(folder / "model.onnx", 2.0)
        await until_state(place.node, "kept", lambda m: m["default_version"] == 2)
        # The edge is told just after it was decided.
        async with asyncio.timeout(START):
            while await place.scale("kept") != 2.0:
                pass


async def test_what_dies_again_and_again_backs_off_and_says_so(place: Place) -> None:
    """One is killed whenever it is ready; the other kills itself as it is warmed up."""
    if platform.machine() == "x86_64":
        models.deadly_at_once(place.root / "deadly.onnx")
    began = time.monotonic()
    found = await kill_again_and_again(place, "second")
    assert found["reason"].startswith("it crashes again and again: was killed by SIGKILL; ")
    assert "ready: batches of up to 32 rows" in found["reason"]
    assert found["versions"][0]["replicas"][0]["restarts"] == 5
    # At once, then after 0.5, 1 and 2 seconds.
    assert time.monotonic() - began > 3.5
    await says(place, "second", found["reason"])
    assert (await place.node.get("/v2/health/ready"))[0] == 200
    await place.until_code("second", 200)
    if platform.machine() == "x86_64":
        await until_told(place, "deadly", "again and again")
        found = await place.state("deadly", "not ready")
        assert found["reason"].startswith("it crashes again and again: was killed by SIGFPE; ")
        assert "loading deadly version 1" in found["reason"]
        await says(place, "deadly", found["reason"])


async def kill_again_and_again(place: Place, model: str) -> dict[str, Any]:
    """``kill -9`` every process of ``model`` until the node has had enough of it."""
    pid = 0

    def enough(found: dict[str, Any]) -> bool:
        nonlocal pid
        for replica in found["versions"][0]["replicas"]:
            if replica["pid"] not in (None, pid):
                pid = replica["pid"]
                os.kill(pid, signal.SIGKILL)
        return replicas(found) == ["backing off"] and "again and again" in found["reason"]

    return await until_state(place.node, model, enough)


async def until_told(place: Place, model: str, words: str) -> None:
    """Wait until the reason of a model that the node may not know yet has these words."""
    answer = Answer("", "")
    began = time.monotonic()
    while words not in answer.message:
        assert time.monotonic() - began < START, answer
        answer = await place.rest.ask("GET", f"/v2/models/{model}/ready")
        await asyncio.sleep(0.02)
