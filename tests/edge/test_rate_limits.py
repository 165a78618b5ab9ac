"""Rate limits: by key and by model, and what a caller beyond them is told."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.edge.harness import INFER, Edge, call, message, running_edge
from tidegate.edge.limits import retry_after
from tidegate.edge.trust import ApiKey, ApiKeys, RateLimit, RateLimits

REST = "/v2/models/m/infer"
A, B, C = "a" * 32, "b" * 32, "c" * 32
KEYS = ApiKeys((ApiKey("team-a", A), ApiKey("team-b", B), ApiKey("team-c", C)))
SLOW = 1 / 600
"""No token comes during a test."""


async def allowed(edge: Edge, count: int, model: str = "m", **headers: Any) -> Counter[str]:
    codes: Counter[str] = Counter()
    for _ in range(count):
        try:
            await edge.call(message(model), **headers)
            codes["OK"] += 1
        except grpc.aio.AioRpcError as error:
            codes[error.code().name] += 1
    return codes


async def test_each_key_has_a_bucket_of_its_own(run_dir: Path) -> None:
    limits = RateLimits(RateLimit(SLOW, 3), keys={"team-c": RateLimit(1000, 50)})
    async with running_edge(run_dir, api_keys=KEYS, limits=limits) as edge:
        await edge.serve(m="a")
        for _ in range(2):
            assert (await allowed(edge, 5))["UNAUTHENTICATED"] == 5  # takes from nobody
        assert await allowed(edge, 5, x_api_key=A) == {"OK": 3, "RESOURCE_EXHAUSTED": 2}
        assert await allowed(edge, 5, x_api_key=B) == {"OK": 3, "RESOURCE_EXHAUSTED": 2}
        assert await allowed(edge, 20, x_api_key=C) == {"OK": 20}
        code, words = await edge.failure(x_api_key=A)
        assert code == "RESOURCE_EXHAUSTED"
        assert words == "too many requests: the limit of this key is used up; try again in 600 s"
        answer = await edge.rest("POST", REST, b"{}", x_api_key=B)
        assert (answer.status, answer.json) == (429, {"error": words})
        assert answer.headers["retry-after"] == "600"
        # What is refused does not reach a replica; probes are never counted.
        assert edge.replicas["a"].requests == 26
        assert (await edge.rest("GET", "/v2/health/live", x_api_key=A)).status == 200


async def test_each_model_has_a_bucket_of_its_own(run_dir: Path) -> None:
    limits = RateLimits(per_model=RateLimit(SLOW, 4), models={"n": RateLimit(SLOW * 2, 2)})
    async with running_edge(run_dir, limits=limits) as edge:
        edge.tasks = {"7": "o"}
        await edge.replica("controller")
        await edge.serve(m="a", m__2="a", n="b", o="c", x="d")
        # However it is called, with a version or without, it is the model's bucket.
        assert await allowed(edge, 2) == {"OK": 2}
        assert (await edge.call(message("m", "2")))["replica"] == "a"
        assert (await edge.rest("POST", "/v2/models/m/versions/2/infer", b"{}")).status == 200
        assert await allowed(edge, 2) == {"RESOURCE_EXHAUSTED": 2}
        answer = await edge.rest("POST", REST, b"{}")
        assert (answer.status, answer.headers["retry-after"]) == (429, "600")
        assert "the limit of this model" in answer.json["error"]
        assert await allowed(edge, 4, "n") == {"OK": 2, "RESOURCE_EXHAUSTED": 2}
        answer = await edge.rest("POST", "/v2/models/n/infer", b"{}")
        assert (answer.status, answer.headers["retry-after"]) == (429, "300")
        assert await allowed(edge, 5, "o") == {"OK": 4, "RESOURCE_EXHAUSTED": 1}
        # Names that are none have no bucket, so many of them cannot take the others' places.
        assert await allowed(edge, 5, "absent") == {"NOT_FOUND": 5}
        assert (await edge.rest("GET", "/models")).status == 200


async def test_a_sole_model_and_unread_calls_are_limited(run_dir: Path) -> None:
    async with running_edge(run_dir, limits=RateLimits(per_model=RateLimit(SLOW, 3))) as edge:
        edge.sole = "m"
        await edge.serve(m="a")
        assert await allowed(edge, 5) == {"OK": 3, "RESOURCE_EXHAUSTED": 2}


async def test_tokens_come_back_at_the_rate(run_dir: Path) -> None:
    async with running_edge(run_dir, limits=RateLimits(per_model=RateLimit(20, 1))) as edge:
        await edge.serve(m="a")
        clock = asyncio.get_running_loop().time
        begin, done = clock(), 0
        while done < 20:
            done += (await allowed(edge, 1))["OK"]
        assert clock() - begin > 0.9


async def test_limits_hold_for_all_connections_and_threads(run_dir: Path) -> None:
    limits = RateLimits(per_model=RateLimit(SLOW, 30))
    async with running_edge(run_dir, threads=3, limits=limits) as edge:
        await edge.serve(m="a")

        async def one(_: int) -> int:
            return (await edge.rest("POST", REST, b"{}")).status

        statuses = Counter(await asyncio.gather(*(one(i) for i in range(60))))
        assert statuses == {200: 30, 429: 30}


async def test_a_grpc_caller_reads_when_to_come_again(run_dir: Path) -> None:
    async with running_edge(run_dir, limits=RateLimits(per_model=RateLimit(0.1, 1))) as edge:
        await edge.serve(m="a")
        await edge.call()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(edge.channel, message(), INFER)
        told = dict([*caught.value.initial_metadata(), *caught.value.trailing_metadata()])
        assert told["retry-after"] == "10"
        assert told["x-tidegate-limit"] == "model"


@pytest.mark.parametrize("limit", [RateLimit(1e-300, 2**40), RateLimit(1e6, 1), RateLimit(3.7, 2)])
async def test_envoy_takes_every_limit(run_dir: Path, limit: RateLimit) -> None:
    async with running_edge(run_dir, limits=RateLimits(per_model=limit)) as edge:
        await edge.serve(m="a")
        assert await allowed(edge, 1) == {"OK": 1}


async def test_a_thousand_limits_of_their_own(run_dir: Path) -> None:
    keys = tuple(ApiKey(f"key-{i}", f"{i:032}") for i in range(1000))
    own = {key.name: RateLimit(SLOW, 1 + i % 3) for i, key in enumerate(keys)}
    limits = RateLimits(RateLimit(SLOW, 1), keys=own)
    async with running_edge(run_dir, api_keys=ApiKeys(keys), limits=limits) as edge:
        await edge.serve(m="a")
        for i in (0, 1, 2, 998):
            found = await allowed(edge, 5, x_api_key=f"{i:032}")
            assert found == {"OK": 1 + i % 3, "RESOURCE_EXHAUSTED": 4 - i % 3}


def test_the_time_to_wait() -> None:
    assert [retry_after(RateLimit(rate, 1)) for rate in (1e6, 1, 0.9, 0.5, 1e-9)] == [
        1, 1, 2, 2, 3600,
    ]  # fmt: skip
