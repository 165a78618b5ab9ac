"""What a node writes: its form, what is said of a request, and its bounds."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests import models
from tests.node.harness import ServedNode
from tests.node.traffic import Traffic, rest_bodies, rest_path
from tests.replica.collector import Collector, collecting, named

pytestmark = pytest.mark.asyncio(loop_scope="module")

SIZE = 2**14
BEYOND = json.dumps(
    {"inputs": [{"name": "index", "datatype": "INT64", "shape": [1, 1], "data": [99]}]}
).encode()
"""An index that the table does not have: the runtime raises while it runs."""
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(
    tmp_path_factory: pytest.TempPathFactory, collector: Collector
) -> AsyncIterator[ServedNode]:
    root = tmp_path_factory.mktemp("logs")
    models.scale(root / "scale.onnx", 2.0)
    models.gather(root / "gather.onnx")
    models.gather(root / "again.onnx")
    options = ("--log-format=json", f"--log-size={SIZE}", "--log-files=2", "--access-log")
    traces = f"--otlp-endpoint={collector.endpoint}"
    async with ServedNode(root, *options, traces) as served:
        yield served


def logs_of(node: ServedNode) -> Path:
    return node.run_dir / str(node.port) / "logs"


def lines_of(file: Path) -> list[Any]:
    with contextlib.suppress(FileNotFoundError):
        return [json.loads(line) for line in file.read_bytes().splitlines()]
    return []


async def test_every_line_is_json_and_says_whose_it_is(node: ServedNode) -> None:
    for line in node.output.splitlines():
        assert json.loads(line)["logger"] == "tidegate.controller"
    assert "serving " in node.output
    for name, about in (("controller", {}), ("scale-1.0", {"model": "scale", "version": 1})):
        found = lines_of(logs_of(node) / f"{name}.log")
        assert found
        for said in found:
            assert {"time", "level", "logger", "message"} <= said.keys()
            assert about.items() <= said.items()


async def test_an_error_names_the_request_and_the_access_log_has_it_too(node: ServedNode) -> None:
    sent = {"x-request-id": "my-own-id", "traceparent": TRACE}
    status, answer = await node.post("/v2/models/gather/infer", BEYOND, sent)
    assert status == 500, answer
    (error,) = [s for s in lines_of(logs_of(node) / "gather-1.0.log") if s["level"] == "error"]
    assert error["request_id"] == "my-own-id"
    assert "Traceback" in error["message"]
    assert (error["model"], error["version"], error["replica"]) == ("gather", 1, 0)
    access = logs_of(node) / "access.log"
    await node.until(
        lambda: any(s["request_id"] == "my-own-id" for s in lines_of(access)), timeout=20
    )
    (line,) = [s for s in lines_of(access) if s["request_id"] == "my-own-id"]
    assert line["traceparent"] == TRACE
    assert line["status"] == 500


async def test_a_sampled_request_is_traced_through_the_edge(
    node: ServedNode, collector: Collector
) -> None:
    body = rest_bodies()[0]
    for flags in ("01", "00"):
        sent = {"x-request-id": f"traced-{flags}", "traceparent": f"{TRACE[:-2]}{flags}"}
        assert (await node.post(rest_path("scale"), body, sent))[0] == 200

    def found() -> list[str]:
        return [
            named(span)["tidegate.request_id"]
            for about, span in collector.spans()
            if about["tidegate.model"] == "scale"
        ]

    # They are sent in batches, every five seconds.
    await node.until(found)
    assert found() == ["traced-01"]


async def test_a_request_without_an_id_gets_one_from_the_edge(node: ServedNode) -> None:
    assert (await node.post("/v2/models/again/infer", BEYOND))[0] == 500
    (error,) = [s for s in lines_of(logs_of(node) / "again-1.0.log") if s["level"] == "error"]
    assert len(error["request_id"]) == 36


async def test_a_replica_that_logs_without_end_stays_within_its_bounds(node: ServedNode) -> None:
    """Notices that cannot be read are a warning each time that they are looked at."""
    log = logs_of(node) / "scale-1.0.log"
    older = [log.with_name(f"{log.name}.{number}") for number in (1, 2, 3)]
    (pid,) = node.replicas("scale")
    notices = node.run_dir / str(node.port) / "notices.json"
    notices.write_text("{")
    async with asyncio.timeout(60):
        while not older[1].exists():
            os.kill(pid, signal.SIGHUP)
            await asyncio.sleep(0)
    assert not older[2].exists()
    # What came between two looks is cut off after the renaming.
    await node.until(lambda: all(f.stat().st_size <= 2 * SIZE for f in older[:2]))
    assert lines_of(older[0])[-1]["level"] == "warning"
    async with Traffic(node) as traffic:
        await traffic.more(100)
    assert traffic.failed == 0, traffic.failures


async def test_the_access_log_stays_within_its_bounds(node: ServedNode) -> None:
    older = [logs_of(node) / f"access.log.{number}" for number in (1, 2, 3)]
    async with Traffic(node) as traffic:
        await node.until(lambda: older[1].exists())
        first = older[0].stat().st_ino
        await node.until(lambda: older[0].stat().st_ino != first)
    assert traffic.failed == 0, traffic.failures
    assert not older[2].exists()
    # Envoy writes to the new file.
    access = logs_of(node) / "access.log"
    marked = {"x-request-id": "after"}
    assert (await node.post(rest_path("scale"), rest_bodies()[0], marked))[0] == 200
    files = [access, older[0]]
    await node.until(
        lambda: any(s["request_id"] == "after" for file in files for s in lines_of(file)),
    )


async def test_envoys_own_log_stays_within_its_bounds(node: ServedNode) -> None:
    log = node.run_dir / str(node.port) / "envoy.log"
    with log.open("ab") as writing:
        writing.write(b"something\n" * SIZE)
    await node.until(lambda: log.stat().st_size < SIZE)
    older = log.with_name("envoy.log.1")
    await node.until(older.exists)
    assert older.stat().st_size <= SIZE
    assert older.read_bytes().startswith(b"something\n")
