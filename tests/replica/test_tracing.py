"""Spans of requests, as a collector gets them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from tests import models
from tests.replica.collector import Collector, collecting
from tests.replica.edge_client import EdgeClient, Reply
from tests.replica.fake_model import FakeModel
from tests.replica.process import ReplicaProcess
from tests.replica.served import INFER, infer_request, serving
from tests.replica.waiting import WAIT, until
from tidegate.clock import MonotonicClock
from tidegate.errors import InferenceFailed
from tidegate.replica.tracing import Tracer, sampled_parent
from tidegate.types import Array

TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED = f"00-{TRACE_ID}-{SPAN_ID}-01"
A = np.ones((2, 2), np.float32)
REQUEST = infer_request({"a": A, "b": A})


@pytest.mark.parametrize(
    ("header", "sampled"),
    [
        (SAMPLED, True),
        (f"00-{TRACE_ID}-{SPAN_ID}-03", True),
        (f"cc-{TRACE_ID}-{SPAN_ID}-01-what-comes-later", True),
        (f"00-{TRACE_ID}-{SPAN_ID}-00", False),
        (f"00-{TRACE_ID}-{SPAN_ID}-01-more", False),
        (f"ff-{TRACE_ID}-{SPAN_ID}-01", False),
        (f"00-{'0' * 32}-{SPAN_ID}-01", False),
        (f"00-{TRACE_ID}-{'0' * 16}-01", False),
        (SAMPLED.upper(), False),
        (SAMPLED + "\n", False),
        ("", False),
        ("nonsense", False),
        ("-" * 10_000, False),
    ],
)
def test_the_caller_decides(header: str, sampled: bool) -> None:
    found = sampled_parent(header.encode())
    assert (found is not None) == sampled
    assert sampled_parent(None) is None


async def grpc(client: EdgeClient, message: bytes, headers: dict[str, Any]) -> Reply:
    return await client.grpc(INFER, message, **headers)


def tracer_to(exporter: InMemorySpanExporter) -> Tracer:
    return Tracer(SimpleSpanProcessor(exporter), MonotonicClock(), {"tidegate.model": "m"})


async def test_a_span_has_the_steps_of_its_request(folder: Path) -> None:
    exporter = InMemorySpanExporter()
    async with (
        serving(FakeModel(), folder, tracer=tracer_to(exporter)) as replica,
        EdgeClient(replica.socket) as client,
    ):
        headers = {"traceparent": SAMPLED, "x-request-id": "mine"}
        assert (await grpc(client, REQUEST, headers)).grpc_status == 0
        for header in ({}, {"traceparent": SAMPLED[:-1] + "0"}, {"traceparent": "nonsense"}):
            assert (await grpc(client, REQUEST, header)).grpc_status == 0
        await until(lambda: len(exporter.get_finished_spans()) == 1)
    (span,) = exporter.get_finished_spans()
    assert span.name == "inference.GRPCInferenceService/ModelInfer"
    assert span.context is not None
    assert span.parent is not None
    assert f"{span.context.trace_id:032x}" == TRACE_ID
    assert f"{span.parent.span_id:016x}" == SPAN_ID
    assert span.status.status_code is StatusCode.UNSET
    assert dict(span.attributes or {}) == {
        "rpc.system": "grpc",
        "rpc.service": "inference.GRPCInferenceService",
        "rpc.method": "ModelInfer",
        "tidegate.request_id": "mine",
        "tidegate.batch.rows": 2,
        "tidegate.batch.requests": 1,
    }
    assert span.resource.attributes["service.name"] == "tidegate"
    assert [event.name for event in span.events] == ["queued", "dequeued", "run", "ran", "encode"]
    times = [span.start_time, *(event.timestamp for event in span.events), span.end_time]
    assert times == sorted(times, key=lambda time: time or 0)


async def test_failures_say_why(folder: Path) -> None:
    def refuse(array: Array) -> None:
        raise InferenceFailed("never")

    exporter = InMemorySpanExporter()
    model = FakeModel(refuse)
    async with serving(model, folder, tracer=tracer_to(exporter)) as replica:
        async with EdgeClient(replica.socket) as client:
            traced = {"traceparent": SAMPLED}
            assert (await grpc(client, REQUEST, traced)).grpc_status == 13
            assert (await grpc(client, b"\xff", traced)).grpc_status == 3
            bad = await client.rest("POST", "/v2/models/m/infer", b"{", traced)
            assert bad.status == 400
            model.hold()
            asking = asyncio.create_task(grpc(client, REQUEST, traced))
            assert await asyncio.to_thread(model.entered.acquire, True, WAIT)
            assert await asyncio.to_thread(model.entered.acquire, True, WAIT)
            asking.cancel()
            client.abort()
        await until(lambda: len(exporter.get_finished_spans()) == 4)
        model.release()
    spans = exporter.get_finished_spans()
    assert [(s.attributes or {})["tidegate.code"] for s in spans] == [
        "INTERNAL",
        "INVALID_ARGUMENT",
        "INVALID_ARGUMENT",
        "CANCELLED",
    ]
    assert spans[2].name == "POST /v2/models/m/infer"
    assert all(span.status.status_code is StatusCode.ERROR for span in spans)
    assert spans[0].status.description == "never"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as server:
        yield server


async def traced_calls(folder: Path, endpoint: str) -> ReplicaProcess:
    """A replica that answers three calls, two of them traced, and is then ended."""
    replica = ReplicaProcess(folder, models.scale(folder / "m.onnx"), {}, "onnx", 1)
    replica.spec = replica.spec.model_copy(update={"otlp_endpoint": endpoint})
    await replica.start()
    try:
        await replica.ready()
        request = infer_request({"x": np.ones((1, 4), np.float32)})
        async with EdgeClient(folder / "s") as client:
            for headers in ({"traceparent": SAMPLED}, {}, {"traceparent": SAMPLED}):
                assert (await grpc(client, request, headers)).grpc_status == 0
        replica.process.terminate()
        assert await replica.ended() == 0
    finally:
        replica.clean_up()
    return replica


async def test_a_collector_gets_them_before_the_replica_ends(
    folder: Path, collector: Collector
) -> None:
    await traced_calls(folder, collector.endpoint + "/")
    spans = collector.spans()
    for about, _ in spans:
        assert about["tidegate.model"] == "m"
        assert about["tidegate.version"] == 2
    assert [span["traceId"] for _, span in spans] == [TRACE_ID, TRACE_ID]


async def test_a_collector_that_is_away_harms_nobody(folder: Path) -> None:
    replica = await traced_calls(folder, "http://127.0.0.1:9")
    assert "ended" in replica.log.read_text()
