"""What a node's replicas say of their load, through its edge, to who asks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest

from tests import models
from tests.node.harness import ServedNode
from tests.replica.served import infer_request
from tidegate.protocols.load_reports import ASK_HEADER, ASK_VALUE, REPORT_HEADER
from tidegate.protocols.open_inference import MODEL_INFER

ASKING = {ASK_HEADER: ASK_VALUE}
SLOW = infer_request({"x": np.full((1, 1), 30, np.float32)}, model="slow")
"""A request that takes about 30 ms."""


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[ServedNode]:
    models.slow(tmp_path / "models/slow/1/model.onnx")
    (tmp_path / "models/slow/model.yaml").write_text("batching: {enabled: false}\n")
    async with ServedNode(tmp_path / "models") as served:
        yield served


async def test_a_gateway_that_asks_is_told(node: ServedNode) -> None:
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [1]}]}
    async with httpx.AsyncClient(base_url=f"http://{node.target}", trust_env=False) as http:
        answer = await http.post("/v2/models/slow/infer", json=body, headers=ASKING)
        assert answer.status_code == 200
        assert 0 <= utilization(answer.headers[REPORT_HEADER]) < 0.5
        refused = await http.post("/v2/models/slow/infer", json={}, headers=ASKING)
        assert refused.status_code == 400
        assert REPORT_HEADER in refused.headers
        answer = await http.post("/v2/models/slow/infer", json=body)
        assert REPORT_HEADER not in answer.headers
    async with grpc.aio.insecure_channel(node.target) as channel:
        # Four at a time, of which one runs: it is busy, and the others wait.
        said = [0.0]
        async with asyncio.timeout(60):
            while max(said) < 2.0:
                said += await asyncio.gather(*(reported(channel) for _ in range(4)))
        assert max(said) < 10
        call = channel.unary_unary(MODEL_INFER)(SLOW)
        assert REPORT_HEADER not in dict(await call.initial_metadata())
        await call


async def reported(channel: grpc.aio.Channel) -> float:
    call = channel.unary_unary(MODEL_INFER)(SLOW, metadata=tuple(ASKING.items()))
    metadata = dict(await call.initial_metadata())
    await call
    return utilization(metadata[REPORT_HEADER])


def utilization(report: str) -> float:
    name, _, value = report.removeprefix("TEXT ").partition("=")
    assert name == "application_utilization"
    return float(value)
