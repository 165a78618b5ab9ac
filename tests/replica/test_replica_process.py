from __future__ import annotations

import asyncio
import hashlib
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tests import models
from tests.replica.edge_client import GRPC, EdgeClient, frame
from tests.replica.process import replica_process
from tests.replica.served import INFER, fails_alone, infer_request, outputs_of
from tests.replica.waiting import WAIT, until
from tidegate.node.probing import ask_stats
from tidegate.replica.flight import Suspect, read_suspects
from tidegate.replica.spec import Failed, ReplicaSpec

X = np.arange(8, dtype=np.float32).reshape(2, 4)


async def test_it_starts_serves_and_drains(folder: Path) -> None:
    async with replica_process(folder, models.slow(folder / "m.onnx")) as replica:
        ready = await replica.ready()
        assert ready.pid == replica.process.pid
        assert (ready.platform, ready.device) == ("onnxruntime_onnx", "cpu")
        assert (ready.batching, ready.max_batch_size) == (True, 32)
        line = psutil.Process(ready.pid).cmdline()
        assert line[1:5] == ["-m", "tidegate.replica", "m", "2"]
        async with EdgeClient(folder / "s") as idle, EdgeClient(folder / "s") as busy:
            assert (await idle.rest("GET", "/replica")).json["pid"] == ready.pid
            slow = infer_request({"x": np.full((1, 1), 300, np.float32)})
            await busy.send("POST", INFER, {**GRPC, "x-request-id": "i"}, frame(slow))
            await until(lambda: read_suspects(replica.spec.flight) == [Suspect(b"\x01i", None)])
            replica.process.send_signal(signal.SIGTERM)
            await until(lambda: "draining" in replica.log.read_text())
            # Both connections are served on: the edge has not closed them yet.
            quick = await idle.grpc(INFER, infer_request({"x": np.zeros((1, 1), np.float32)}))
            assert quick.grpc_status == 0
            assert outputs_of((await busy.receive()).message)["y"].tolist() == [[300.0]]
            assert replica.process.returncode is None
        assert await replica.ended() == 0
        assert not (folder / "s").exists()
        assert read_suspects(replica.spec.flight) == []


async def test_a_second_sigterm_does_not_cut_the_drain_short(folder: Path) -> None:
    async with replica_process(folder, models.identity(folder / "m.onnx")) as replica:
        await replica.ready()
        async with EdgeClient(folder / "s") as client:
            for _ in range(2):
                replica.process.send_signal(signal.SIGTERM)
                reply = await client.grpc(INFER, infer_request({"x": X}))
                assert reply.grpc_status == 0
        assert await replica.ended() == 0


async def test_ctrl_c_is_not_for_replicas(folder: Path) -> None:
    async with replica_process(folder, models.identity(folder / "m.onnx")) as replica:
        await replica.ready()
        replica.process.send_signal(signal.SIGINT)
        async with EdgeClient(folder / "s") as client:
            assert (await client.grpc(INFER, infer_request({"x": X}))).grpc_status == 0


async def test_batching_follows_the_model_and_its_settings(folder: Path) -> None:
    async with replica_process(folder, models.mixes_rows(folder / "m.onnx")) as replica:
        ready = await replica.ready()
        assert (ready.batching, ready.max_batch_size) == (False, 1)
        async with EdgeClient(folder / "s") as client:
            reply = await client.grpc(INFER, infer_request({"x": X}))
            expected = (X - X.mean(axis=0)).tolist()
            assert outputs_of(reply.message)["y"].tolist() == expected


def broken(folder: Path) -> Path:
    (folder / "m.onnx").write_bytes(b"this is no model")
    return folder / "m.onnx"


def fixed(folder: Path) -> Path:
    return models.identity(folder / "m.onnx", shape=(1, 4))


FAILURES: dict[str, tuple[Callable[[Path], Path], dict[str, Any], str, tuple[str, ...]]] = {
    "broken file": (broken, {}, "InvalidModel", ("m.onnx",)),
    "no file": (lambda folder: folder / "none.onnx", {}, "InvalidModel", ("none.onnx",)),
    "a sequence": (lambda f: models.sequence(f / "m.onnx"), {}, "InvalidModel", ("'ys'",)),
    "no such device": (
        lambda f: models.identity(f / "m.onnx"),
        {"device": "cuda:7"},
        "ConfigurationError",
        ("cuda:7",),
    ),
    "batching forced on": (
        fixed,
        {"batching": {"enabled": True}},
        "ConfigurationError",
        ("batching.enabled", "[1, 4]"),
    ),
    "memory for nothing": (
        lambda f: models.identity(f / "m.onnx"),
        {"resources": {"memory": "64MiB"}},
        "InsufficientMemory",
        (
            "m version 2 does not fit in the 67108864 bytes of resources.memory",
            "Python and the runtime alone take",
        ),
    ),
    "memory for the runtime alone": (
        lambda f: models.tiny_mlp(f / "m.onnx", 4096, 8192),
        {"resources": {"memory": "240MiB"}},
        "InsufficientMemory",
        ("m version 2 does not fit in the 251658240 bytes of resources.memory",),
    ),
}


@pytest.mark.parametrize("name", FAILURES)
async def test_what_cannot_be_served_is_reported(folder: Path, name: str) -> None:
    write, config, kind, words = FAILURES[name]
    if "memory" in name and sys.platform != "linux":
        pytest.skip("only Linux bounds a process's data")
    if name == "no such device":
        import onnxruntime

        if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            pytest.skip("there may be such a device")
    async with replica_process(folder, write(folder), **config) as replica:
        event = await replica.event()
        assert isinstance(event, Failed), event
        assert event.kind == kind
        for word in words:
            assert word in event.reason
        assert await replica.ended() == 1
        assert event.reason in replica.log.read_text()
        assert not (folder / "s").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux bounds a process's data")
async def test_who_heeds_what_is_said_of_memory_gets_a_replica(folder: Path) -> None:
    model = models.identity(folder / "m.onnx")
    async with replica_process(folder, model, resources={"memory": "64MiB"}) as replica:
        event = await replica.event()
    assert isinstance(event, Failed)
    found = re.search("alone take ([0-9]+) bytes, and ([0-9]+) more are needed", event.reason)
    assert found is not None
    enough = int(found[1]) + int(found[2]) + 24 * 2**20
    async with replica_process(folder, model, resources={"memory": enough}) as replica:
        await replica.ready()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux bounds a process's data")
async def test_a_request_that_does_not_fit_into_memory_fails_alone(folder: Path) -> None:
    config: dict[str, Any] = {"resources": {"memory": "400MiB"}}
    async with replica_process(folder, models.hungry(folder / "m.onnx"), **config) as replica:
        await replica.ready()
        await fails_alone(folder / "s", ("count", 2**30), "y", "memory")


def digest_of(spec: ReplicaSpec, body: bytes) -> bytes:
    """What tells a request to these files of a version from others."""
    whose = f"{spec.model}\0{spec.version}\0{spec.fingerprint}"
    key = hashlib.blake2b(whose.encode()).digest()
    return hashlib.blake2b(body, digest_size=16, key=key).digest()


async def test_threads_for_hooks_must_fit(folder: Path) -> None:
    (folder / "m").mkdir()
    model = models.identity(folder / "m" / "model.onnx")
    (folder / "m" / "hooks.py").write_text("def postprocess(request, outputs): return outputs")
    async with replica_process(
        folder, model, resources={"memory": "1GiB"}, hooks={"threads": 256}
    ) as replica:
        failed = await replica.event()
    assert isinstance(failed, Failed)
    assert failed.kind == "InsufficientMemory"
    assert "more are needed to answer requests" in failed.reason


async def test_notices_are_read_at_the_start_and_on_sighup(folder: Path) -> None:
    request = infer_request({"x": X})
    async with replica_process(folder, models.identity(folder / "m.onnx")) as replica:
        await replica.ready()
        digest = digest_of(replica.spec, frame(request)).hex()
        async with EdgeClient(folder / "s") as client:

            async def versions() -> list[str]:
                found: list[str] = (await client.rest("GET", "/v2/models/m")).json["versions"]
                return found

            assert await versions() == ["2"]
            replica.notice(versions={"m": (1, 2), "other": (7,)}, quarantined=(digest,))
            assert await versions() == ["2"]
            replica.process.send_signal(signal.SIGHUP)
            async with asyncio.timeout(WAIT):
                while await versions() != ["1", "2"]:
                    pass
            assert (await client.grpc(INFER, request)).grpc_status == 9
            # What cannot be read changes nothing.
            replica.spec.notices.write_text("{")
            replica.process.send_signal(signal.SIGHUP)
            await until(lambda: "are not heeded" in replica.log.read_text())
            assert (await client.grpc(INFER, request)).grpc_status == 9
            assert await versions() == ["1", "2"]


async def test_notices_that_are_there_before_it_starts_count(folder: Path) -> None:
    (folder / "notices").write_text('{"versions": {"m": [1, 2, 3]}}')
    async with replica_process(folder, models.identity(folder / "m.onnx")) as replica:
        await replica.ready()
        async with EdgeClient(folder / "s") as client:
            metadata = (await client.rest("GET", "/v2/models/m")).json
            assert metadata["versions"] == ["1", "2", "3"]


async def test_an_orphan_ends_after_what_it_was_doing(folder: Path) -> None:
    async with replica_process(folder, models.identity(folder / "m.onnx")) as replica:
        await replica.ready()
        async with EdgeClient(folder / "s") as client:
            replica.release_lifeline()
            await until(lambda: "the node is gone" in replica.log.read_text())
            assert (await client.grpc(INFER, infer_request({"x": X}))).grpc_status == 0
        assert await replica.ended() == 0


async def test_a_killed_replica_leaves_word_of_what_it_was_running(folder: Path) -> None:
    async with replica_process(folder, models.slow(folder / "m.onnx")) as replica:
        await replica.ready()
        request = frame(infer_request({"x": np.full((1, 1), 60_000, np.float32)}))
        digest = digest_of(replica.spec, request)
        headers = {**GRPC, "x-request-id": "culprit", "x-envoy-attempt-count": "2"}
        async with EdgeClient(folder / "s") as client:
            await client.send("POST", INFER, headers, request)
            expected = [Suspect(b"\x07culprit", digest)]
            await until(lambda: read_suspects(replica.spec.flight) == expected)
            os.kill(replica.process.pid, signal.SIGKILL)
            assert await replica.ended() == -signal.SIGKILL
        assert read_suspects(replica.spec.flight) == expected


async def test_a_message_that_is_too_large_is_counted(folder: Path) -> None:
    """The connection refuses it, and the service never sees it."""
    async with replica_process(folder, models.identity(folder / "m.onnx")) as replica:
        await replica.ready()
        async with EdgeClient(folder / "s") as client:
            refused = await client.grpc(INFER, bytes(2 * 2**20))
            assert refused.grpc_status == 8
            refused = await client.rest("POST", "/v2/models/m/infer", bytes(2 * 2**20))
            assert refused.status == 413
        stats = await ask_stats(folder / "s")
        assert stats is not None
        assert stats.counted.requests == {
            "grpc": {"OK": 0, "RESOURCE_EXHAUSTED": 1},
            "rest": {"200": 0, "413": 1},
        }
