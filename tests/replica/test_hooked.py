"""The request path with hooks: in threads, bounded, with deadlines, and counted."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.replica.edge_client import EdgeClient, Reply
from tests.replica.fake_model import FakeModel
from tests.replica.served import INFER, Replica, infer_request, serving
from tests.replica.waiting import WAIT, until
from tidegate.clock import MonotonicClock
from tidegate.errors import InvalidInput
from tidegate.hooks import Batch, Model, Outputs, Request
from tidegate.protocols.open_inference import messages
from tidegate.replica.flight import FlightRecorder, read_suspects
from tidegate.replica.hooks import Functions
from tidegate.replica.public import Side
from tidegate.replica.tracing import Tracer
from tidegate.types import Array

TEXT = Side(kind="text")
JSON = Side(kind="json")


class Gate:
    """A hook that waits until it may go on."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.open = threading.Event()

    def __call__(self) -> None:
        self.entered.release()
        assert self.open.wait(WAIT)

    async def until_entered(self) -> None:
        assert await asyncio.to_thread(self.entered.acquire, True, WAIT)


def number(request: Request) -> dict[str, Array]:
    """``a`` is the number that was sent, ``b`` is 1."""
    if request.text == "bad":
        raise InvalidInput("send a number")
    row = np.full((1, 1), float(request.text), np.float32)
    return {"a": row, "b": np.ones((1, 1), np.float32)}


def said(request: Request, outputs: Outputs) -> dict[str, Any]:
    return {"sent": request.text, "total": float(outputs["total"][0, 0])}


def functions(**changed: Any) -> Functions:
    usual = Functions(number, said, incoming=TEXT, outgoing=JSON)
    return replace(usual, **changed)


def asking(text: str, **parameters: str) -> bytes:
    array = np.empty(1, np.object_)
    array[0] = text.encode()
    message = messages.ModelInferRequest.FromString(infer_request({"text": array}))
    for name, value in parameters.items():
        message.parameters[name].string_param = value
    return bytes(message.SerializeToString())


def answered(reply: Reply) -> Any:
    assert reply.grpc_status == 0, reply.grpc_message
    message = messages.ModelInferResponse.FromString(reply.message)
    assert message.outputs[0].name == "payload"
    return orjson.loads(message.raw_output_contents[0][4:])


@contextlib.asynccontextmanager
async def clients(replica: Replica, count: int) -> AsyncIterator[list[EdgeClient]]:
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(EdgeClient(replica.socket)) for _ in range(count)]


async def test_before_and_after_the_model(folder: Path) -> None:
    model = FakeModel()
    async with serving(model, folder, functions=functions()) as replica, clients(replica, 1) as c:
        reply = await c[0].grpc(INFER, asking("3"))
        assert answered(reply) == {"sent": "3", "total": 4.0}
        bad = await c[0].grpc(INFER, asking("bad"))
        assert (bad.grpc_status, bad.grpc_message) == (3, "send a number")
        broken = await c[0].grpc(INFER, asking("x"))
        assert broken.grpc_status == 13
        assert "preprocess raised ValueError" in broken.grpc_message
        assert answered(await c[0].grpc(INFER, asking("5")))["total"] == 6.0
        metadata = await c[0].rest("GET", "/v2/models/m")
        assert [t["name"] for t in metadata.json["inputs"]] == ["text"]
        assert [t["name"] for t in metadata.json["outputs"]] == ["payload"]


async def test_rest_and_hooks_of_one_side(folder: Path) -> None:
    async with (
        serving(FakeModel(), folder, functions=functions(postprocess=None)) as replica,
        clients(replica, 1) as c,
    ):
        body: dict[str, Any] = {
            "inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["3"]}]
        }
        reply = await c[0].rest("POST", "/v2/models/m/infer", orjson.dumps(body))
        assert [(o["name"], o["data"]) for o in reply.json["outputs"]] == [
            ("total", [4.0]),
            ("twice", [6.0]),
        ]
        body["outputs"] = [{"name": "twice"}]
        reply = await c[0].rest("POST", "/v2/models/m/infer", orjson.dumps(body))
        assert [o["name"] for o in reply.json["outputs"]] == ["twice"]


async def test_only_after_the_model(folder: Path) -> None:
    def largest(request: Request, outputs: Outputs) -> str:
        return f"{request.tensor('a').shape} {outputs['total'].max():.0f}"

    found = Functions(postprocess=largest, outgoing=Side(kind="text"))
    async with serving(FakeModel(), folder, functions=found) as replica, clients(replica, 1) as c:
        a = np.array([[1, 7]], np.float32)
        reply = await c[0].grpc(INFER, infer_request({"a": a, "b": a}))
        message = messages.ModelInferResponse.FromString(reply.message)
        assert message.raw_output_contents[0][4:] == b"(1, 2) 14"
        wrong = await c[0].grpc(INFER, infer_request({"a": a}))
        assert wrong.grpc_status == 3


async def test_requests_are_batched_after_preprocessing(folder: Path) -> None:
    model, gate = FakeModel(), Gate()

    def preprocess(request: Request) -> dict[str, Array]:
        if request.text != "0":
            gate()
        return number(request)

    model.hold()
    async with (
        serving(model, folder, functions=functions(preprocess=preprocess), threads=3) as replica,
        clients(replica, 4) as c,
    ):
        first = asyncio.create_task(c[0].grpc(INFER, asking("0")))
        assert await asyncio.to_thread(model.entered.acquire, True, WAIT)
        rest = [
            asyncio.create_task(one.grpc(INFER, asking(str(n)))) for n, one in enumerate(c[1:], 1)
        ]
        for _ in rest:
            await gate.until_entered()
        gate.open.set()
        await until(lambda: replica.engine.depth == 3)
        model.release()
        totals = [answered(reply)["total"] for reply in await asyncio.gather(first, *rest)]
        assert totals == [1.0, 2.0, 3.0, 4.0]
        assert [len(run) for run in model.runs] == [1, 3]


async def test_a_hook_that_hangs_keeps_neither_its_caller_nor_the_others(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()

    def preprocess(request: Request) -> dict[str, Array]:
        if request.text == "1":
            gate()
        return number(request)

    async with (
        serving(FakeModel(), folder, functions=functions(preprocess=preprocess)) as replica,
        clients(replica, 2) as c,
    ):
        try:
            hanging = await c[0].grpc(INFER, asking("1"), grpc_timeout="50m")
            assert (hanging.grpc_status, hanging.grpc_message[:22]) == (
                4,
                "no answer within the d",
            )
            for _ in range(3):
                assert answered(await c[1].grpc(INFER, asking("2")))["total"] == 3.0
            assert "1 of 2 threads are busy" in caplog.text
        finally:
            gate.open.set()


async def test_after_the_model_the_deadline_counts_too(folder: Path) -> None:
    gate = Gate()

    def postprocess(request: Request, outputs: Outputs) -> str:
        gate()
        return "late"

    async with (
        serving(FakeModel(), folder, functions=functions(postprocess=postprocess)) as replica,
        clients(replica, 1) as c,
    ):
        try:
            late = await c[0].grpc(INFER, asking("1"), grpc_timeout="50m")
            assert late.grpc_status == 4
        finally:
            gate.open.set()
        stats = replica.service.stats().counted
        assert (stats.success.count, stats.fail.count) == (0, 1)


async def test_waiting_requests_are_bounded_and_cancelled_ones_are_forgotten(
    folder: Path,
) -> None:
    gate, seen = Gate(), []

    def preprocess(request: Request) -> dict[str, Array]:
        seen.append(request.text)
        gate()
        return number(request)

    async with (
        serving(
            FakeModel(),
            folder,
            functions=functions(preprocess=preprocess),
            threads=1,
            max_queue_size=2,
        ) as replica,
        clients(replica, 5) as c,
    ):
        running = asyncio.create_task(c[0].grpc(INFER, asking("1")))
        await gate.until_entered()
        waiting = [asyncio.create_task(c[n].grpc(INFER, asking(str(n + 1)))) for n in (1, 2)]
        await until(lambda: replica.service.stats().queue_depth == 2)
        full = await c[3].grpc(INFER, asking("4"))
        assert (full.grpc_status, full.grpc_message[:22]) == (8, "2 requests are waiting")
        c[1].abort()
        await until(lambda: replica.service.stats().queue_depth == 1)
        fourth = asyncio.create_task(c[4].grpc(INFER, asking("5")))
        await until(lambda: replica.service.stats().queue_depth == 2)
        gate.open.set()
        for reply, total in ((await running, 2), (await waiting[1], 4), (await fourth, 6)):
            assert answered(reply)["total"] == total
        assert sorted(seen) == ["1", "3", "5"]
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await waiting[0]


async def test_a_deadline_that_passes_while_waiting(folder: Path) -> None:
    gate = Gate()

    def preprocess(request: Request) -> dict[str, Array]:
        gate()
        return number(request)

    async with (
        serving(
            FakeModel(), folder, functions=functions(preprocess=preprocess), threads=1
        ) as replica,
        clients(replica, 2) as c,
    ):
        running = asyncio.create_task(c[0].grpc(INFER, asking("1")))
        await gate.until_entered()
        assert (await c[1].grpc(INFER, asking("2"), grpc_timeout="50m")).grpc_status == 4
        assert replica.service.stats().queue_depth == 0
        assert (await c[1].grpc(INFER, asking("2"), grpc_timeout="0m")).grpc_status == 4
        gate.open.set()
        assert answered(await running)["total"] == 2


async def test_run_model_is_told_what_its_requests_share(folder: Path) -> None:
    model, batches = FakeModel(), []

    def run_model(handle: Model, batch: Batch) -> Outputs:
        batches.append((dict(batch.parameters), batch.rows))
        if (batch.inputs["a"] == 13).any():
            raise InvalidInput("13 brings bad luck")
        outputs = handle(batch.inputs)
        return {name: array * float(batch.parameters["scale"] or 1)  # type: ignore[arg-type]
                for name, array in outputs.items()}  # fmt: skip

    model.hold()
    found = functions(run_model=run_model, group_by=("scale",))
    async with (
        serving(model, folder, functions=found, threads=1) as replica,
        clients(replica, 6) as c,
    ):
        first = asyncio.create_task(c[0].grpc(INFER, asking("0")))
        assert await asyncio.to_thread(model.entered.acquire, True, WAIT)
        asked = (("1", "2"), ("2", "2"), ("3", "10"), ("4", "10"), ("13", "10"))
        rest = [
            asyncio.create_task(one.grpc(INFER, asking(text, scale=scale)))
            for one, (text, scale) in zip(c[1:], asked)
        ]
        await until(lambda: replica.engine.depth == 5)
        model.release()
        replies = await asyncio.gather(first, *rest)
        assert [answered(reply)["total"] for reply in replies[:-1]] == [1, 4, 6, 40, 50]
        assert (replies[-1].grpc_status, replies[-1].grpc_message) == (3, "13 brings bad luck")
        assert batches[0] == ({"scale": None}, 1)
        assert ({"scale": "2"}, 2) in batches
        assert ({"scale": "10"}, 3) in batches


async def test_times_of_hooks_are_those_of_inputs_and_outputs(folder: Path) -> None:
    async with (
        serving(FakeModel(), folder, functions=functions()) as replica,
        clients(replica, 1) as c,
    ):
        for _ in range(3):
            answered(await c[0].grpc(INFER, asking("1")))
        stats = replica.service.stats().counted
        assert (stats.success.count, stats.fail.count, stats.execution_count) == (3, 0, 3)
        assert stats.requests["grpc"] == {"OK": 3}
        parts = (stats.queue, stats.compute_input, stats.compute_infer, stats.compute_output)
        assert all(part.ns > 0 and part.count == 3 for part in parts)
        assert sum(part.ns for part in parts) <= stats.success.ns
        assert sum(stats.request_duration.counts) == 3


async def test_a_request_in_a_hook_is_in_the_flight_recorder(folder: Path) -> None:
    gate = Gate()

    def preprocess(request: Request) -> dict[str, Array]:
        gate()
        return number(request)

    async with (
        serving(FakeModel(), folder, functions=functions(preprocess=preprocess)) as replica,
        clients(replica, 2) as c,
    ):
        running = [
            asyncio.create_task(one.grpc(INFER, asking("1"), x_request_id=f"id-{n}"))
            for n, one in enumerate(c)
        ]
        for _ in running:
            await gate.until_entered()
        suspects = {suspect.request_id[1:] for suspect in read_suspects(folder / "flight")}
        assert suspects == {b"id-0", b"id-1"}
        gate.open.set()
        await asyncio.gather(*running)
        assert read_suspects(folder / "flight") == []
        assert replica.engine.depth == 0


async def test_suspects_run_one_by_one(folder: Path) -> None:
    gate = Gate()
    running: list[str] = []

    def preprocess(request: Request) -> dict[str, Array]:
        running.append(request.text)
        gate()
        return number(request)

    dead = FlightRecorder(folder / "other.flight")
    dead.write([b"\x04id-%d" % n for n in range(3)])
    async with (
        serving(
            FakeModel(), folder, functions=functions(preprocess=preprocess), threads=4
        ) as replica,
        clients(replica, 4) as c,
    ):
        suspects = [
            asyncio.create_task(
                one.grpc(INFER, asking(str(n)), x_request_id=f"id-{n}", x_envoy_attempt_count="2")
            )
            for n, one in enumerate(c[:3])
        ]
        await gate.until_entered()
        other = asyncio.create_task(c[3].grpc(INFER, asking("7")))
        await gate.until_entered()
        c[1].abort()
        assert sorted(running)[1:] == ["7"]
        gate.open.set()
        assert answered(await other)["total"] == 8
        for n in (0, 2):
            assert answered(await suspects[n])["total"] == n + 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await suspects[1]


async def test_hooks_see_the_callers_headers(folder: Path) -> None:
    seen: list[dict[str, str]] = []

    def preprocess(request: Request) -> dict[str, Array]:
        seen.append(dict(request.headers))
        return number(request)

    async with (
        serving(FakeModel(), folder, functions=functions(preprocess=preprocess)) as replica,
        clients(replica, 1) as c,
    ):
        headers: dict[str, Any] = {
            "x_own": "é",
            "grpc_timeout": "9S",
            "x_envoy_attempt_count": "1",
        }
        answered(await c[0].grpc(INFER, asking("1"), **headers))
        assert seen[0]["x-own"] == "é"
        assert not [name for name in seen[0] if name.startswith(("grpc-", "x-envoy", ":"))]


async def test_a_span_has_the_times_of_hooks(folder: Path) -> None:
    exporter = InMemorySpanExporter()
    tracer = Tracer(SimpleSpanProcessor(exporter), MonotonicClock(), {})
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with (
        serving(FakeModel(), folder, functions=functions(), tracer=tracer) as replica,
        clients(replica, 1) as c,
    ):
        answered(await c[0].grpc(INFER, asking("1"), traceparent=parent))
        assert (await c[0].grpc(INFER, asking("bad"), traceparent=parent)).grpc_status == 3
    good, bad = exporter.get_finished_spans()
    assert [event.name for event in good.events] == ["queued", "dequeued", "run", "ran", "encode"]
    assert good.attributes is not None
    assert bad.attributes is not None
    times = [
        good.attributes[f"tidegate.hooks.{name}_us"] for name in ("preprocess", "postprocess")
    ]
    assert all(isinstance(time, int) and time >= 0 for time in times)
    assert bad.attributes["error.type"] == "InvalidInput"


async def test_an_answer_that_cannot_be_sent(folder: Path) -> None:
    def postprocess(request: Request, outputs: Outputs) -> Any:
        return {"n": 2**70}

    async with (
        serving(FakeModel(), folder, functions=functions(postprocess=postprocess)) as replica,
        clients(replica, 1) as c,
    ):
        reply = await c[0].grpc(INFER, asking("1"))
        assert (reply.grpc_status, "no JSON" in reply.grpc_message) == (13, True)
        stats = replica.service.stats().counted
        assert (stats.success.count, stats.fail.count) == (0, 1)
