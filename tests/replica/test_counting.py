"""What a replica counts of its calls, and how it tells."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.replica.edge_client import EdgeClient
from tests.replica.fake_model import FakeModel
from tests.replica.served import INFER, METADATA, Replica, infer_request, serving
from tests.replica.waiting import WAIT, until
from tidegate.errors import InferenceFailed, InvalidInput
from tidegate.node.probing import ask_stats
from tidegate.replica.batch import Run
from tidegate.replica.counting import Counters
from tidegate.telemetry.statistics import GRPC, BatchStats, Duration, ModelStats
from tidegate.types import Array

A = np.ones((2, 3), np.float32)
BAD = 666.0
REST = "/v2/models/m/infer"


class FakeClock:
    def __init__(self) -> None:
        self.time = 100.0

    def now(self) -> float:
        return self.time


def body_of(value: float = 1.0) -> bytes:
    inputs = [
        {"name": name, "datatype": "FP32", "shape": [1, 2], "data": [value, value]}
        for name in ("a", "b")
    ]
    return orjson.dumps({"inputs": inputs})


def refuse_bad(array: Array) -> None:
    if BAD in array:
        raise InferenceFailed("bad")


async def told(replica: Replica) -> ModelStats:
    stats = await ask_stats(replica.socket)
    assert stats is not None
    return stats.counted


async def test_every_answer_is_counted_by_protocol_and_code(folder: Path) -> None:
    before = time.time()
    async with (
        serving(FakeModel(refuse_bad), folder) as replica,
        EdgeClient(replica.socket) as client,
    ):
        assert await told(replica) == ModelStats(requests={"grpc": {"OK": 0}, "rest": {"200": 0}})
        for _ in range(3):
            assert (await client.grpc(INFER, infer_request({"a": A, "b": A}))).grpc_status == 0
        assert (await client.rest("POST", REST, body_of())).status == 200
        assert (await client.grpc(INFER, infer_request({"a": A}))).grpc_status == 3
        assert (await client.rest("POST", REST, b"{")).status == 400
        assert (await client.rest("POST", REST, body_of(BAD))).status == 500
        assert (await client.rest("GET", REST)).status == 405
        # Not inference: not counted.
        assert (await client.rest("GET", "/v2/models/m")).status == 200
        assert (await client.rest("GET", "/v2/models/other")).status == 404
        assert (await client.grpc(METADATA, b"")).grpc_status != 0
        stats = await told(replica)
    assert stats.requests == {
        "grpc": {"OK": 3, "INVALID_ARGUMENT": 1},
        "rest": {"200": 1, "400": 1, "405": 1, "500": 1},
    }
    assert stats.inference_count == 7
    assert stats.execution_count == 4
    assert (stats.success.count, stats.fail.count) == (4, 4)
    assert stats.queue.count == stats.compute_infer.count == stats.compute_output.count == 4
    assert 0 < stats.compute_infer.ns < stats.success.ns
    assert stats.request_duration.count == stats.queue_duration.count == 4
    assert stats.compute_duration.count == stats.batch_size.count == 4
    assert stats.request_duration.total * 1e9 == pytest.approx(stats.success.ns, rel=1e-6)
    assert {rows: batch.count for rows, batch in stats.batches.items()} == {1: 1, 2: 3}
    assert before * 1e3 - 1 <= stats.last_inference_ms <= time.time() * 1e3 + 1


async def test_a_batch_counts_once_as_a_run_and_for_each_request_in_it(folder: Path) -> None:
    model = FakeModel()
    async with serving(model, folder) as replica:
        model.hold()
        clients = [EdgeClient(replica.socket) for _ in range(4)]
        for client in clients:
            await client.__aenter__()
        first = asyncio.create_task(clients[0].grpc(INFER, infer_request({"a": A, "b": A})))
        assert await asyncio.to_thread(model.entered.acquire, True, WAIT)
        others = [
            asyncio.create_task(client.grpc(INFER, infer_request({"a": A, "b": A})))
            for client in clients[1:]
        ]
        await until(lambda: replica.engine.depth == 3)
        waiting = await ask_stats(replica.socket)
        assert waiting is not None
        assert waiting.queue_depth == 3
        assert waiting.counted.success.count == 0
        model.release()
        await asyncio.gather(first, *others)
        stats = await told(replica)
        for client in clients:
            client.close()
    assert stats.success.count == 4
    assert stats.execution_count == 2
    assert stats.inference_count == 8
    assert {rows: batch.count for rows, batch in stats.batches.items()} == {2: 1, 6: 1}
    joined = stats.batches[6]
    # Each of the three had the whole batch's time; rounding is to nanoseconds.
    assert stats.compute_input.ns == pytest.approx(3 * joined.compute_input_ns, abs=4)
    assert stats.compute_input.ns > 0
    assert joined.compute_output_ns > 0


async def test_who_goes_away_is_counted_as_cancelled(folder: Path) -> None:
    model = FakeModel()
    async with serving(model, folder) as replica:
        model.hold()
        async with EdgeClient(replica.socket) as client:
            asking = asyncio.create_task(client.grpc(INFER, infer_request({"a": A, "b": A})))
            assert await asyncio.to_thread(model.entered.acquire, True, WAIT)
            asking.cancel()
            client.abort()
        await until(lambda: replica.service.stats().counted.fail.count == 1)
        model.release()
        await until(lambda: replica.service.stats().counted.execution_count == 1)
        stats = await told(replica)
    assert stats.requests["grpc"] == {"OK": 0, "CANCELLED": 1}
    assert stats.success.count == stats.request_duration.count == 0
    assert stats.fail.ns > 0


def test_times_of_a_batch() -> None:
    clock = FakeClock()
    counters = Counters(clock)
    runs = [Run(rows=6, requests=3, seconds=2.0, joining=0.5, splitting=0.25)]
    counters.delivered(runs, [90.0, 91.0, 92.0], began=95.0, ended=99.0, encoding=0.75)
    stats = counters.snapshot()
    second = 10**9
    assert stats.success == Duration(count=3, ns=(9 + 8 + 7) * second)
    assert stats.queue == Duration(count=3, ns=(5 + 4 + 3) * second)
    assert stats.compute_input == Duration(count=3, ns=3 * second // 2)
    assert stats.compute_infer == Duration(count=3, ns=6 * second)
    assert stats.compute_output == Duration(count=3, ns=3 * second)
    assert stats.batches == {
        6: BatchStats(
            count=1,
            compute_input_ns=second // 2,
            compute_infer_ns=2 * second,
            compute_output_ns=second,
        )
    }
    assert abs(stats.last_inference_ms - (time.time() - 1) * 1e3) < 1000


def test_an_answer_that_cannot_be_sent_is_a_failure() -> None:
    counters = Counters(FakeClock())
    counters.spoilt(InvalidInput("too large"), GRPC, grpc=True, arrived=98.0)
    counters.delivered([Run(1, 1, 1.0)], [98.0], began=99.0, ended=100.0, encoding=0.0)
    stats = counters.snapshot()
    assert stats.requests["grpc"] == {"OK": 0, "INVALID_ARGUMENT": 1}
    assert stats.success.count == 0
    assert stats.fail == Duration(count=1, ns=2 * 10**9)


@given(st.lists(st.integers(0, 10**6), max_size=400))
def test_batch_sizes_that_are_told_apart_are_bounded(sizes: list[int]) -> None:
    counters = Counters(FakeClock())
    for rows in [*sizes, *range(300)]:
        counters.delivered([Run(rows, 1, 1e-3)], [99.0], 99.5, 100.0, 0.0)
    stats = counters.snapshot()
    assert len(stats.batches) <= 256
    assert stats.batch_size.count == stats.execution_count == len(sizes) + 300


async def test_one_that_does_not_answer_in_time_says_nothing(tmp_path: Path) -> None:
    assert await ask_stats(tmp_path / "none") is None
    heard = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.set()
        await reader.read()
        writer.close()

    async def other(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b'HTTP/1.1 200 OK\r\ncontent-length: 13\r\n\r\n{"what": "?"}')
        writer.close()

    async with await asyncio.start_unix_server(silent, str(tmp_path / "s")):
        assert await ask_stats(tmp_path / "s", timeout=0.05) is None
        async with asyncio.timeout(WAIT):
            await heard.wait()
    async with await asyncio.start_unix_server(other, str(tmp_path / "o")):
        assert await ask_stats(tmp_path / "o") is None
