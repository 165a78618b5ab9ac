"""API keys: who is let in, and who learns of a key."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.edge.harness import MIB, Edge, Rest, message, running_edge, until
from tidegate.edge.trust import ApiKey, ApiKeys

REST = "/v2/models/m/infer"
KEYS = ApiKeys((ApiKey("team-a", "a" * 32), ApiKey("team-b", "b" * 32)))
A, B = "a" * 32, "b" * 32


@pytest.fixture
async def guarded(run_dir: Path) -> AsyncIterator[Edge]:
    async with running_edge(run_dir, api_keys=KEYS) as running:
        await running.replica("controller")
        await running.serve(m="a")
        yield running


@pytest.mark.parametrize(
    "headers",
    [
        {"x_api_key": A},
        {"authorization": f"Bearer {A}"},
        {"x_api_key": A, "authorization": "Bearer " + B},
        {"x_api_key": A, "x_tidegate_key": "root"},
    ],
)
async def test_a_known_key_is_let_in_and_goes_no_further(
    guarded: Edge, headers: dict[str, Any]
) -> None:
    for answer in (
        await guarded.call(**headers),
        (await guarded.rest("POST", REST, b"{}", **headers)).json,
    ):
        assert answer["headers"]["x-tidegate-key"] == "team-a"
        assert A not in str(answer)
        assert B not in str(answer)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"x_api_key": ""},
        {"x_api_key": "A" * 32},
        {"x_api_key": "c" * 32, "authorization": f"Bearer {A}"},
        {"x_api_key": "a" * 31},
        {"x_api_key": "a" * 33},
        {"x_api_key": f"{A},{A}"},
        {"authorization": f"Basic {A}"},
        {"authorization": f"Bearer  {A}"},
        {"x_tidegate_key": "team-a"},
        {"cookie": f"x-api-key={A}"},
        {"x_api_key": "' OR 1=1 --"},
        {"x_api_key": "y" * 20_000},
    ],
)
async def test_others_are_not(guarded: Edge, headers: dict[str, Any]) -> None:
    code, words = await guarded.failure(**headers)
    assert code == "UNAUTHENTICATED"
    answer = await guarded.rest("POST", REST, b"{}", **headers)
    assert (answer.status, answer.json) == (401, {"error": words})
    assert "x-api-key" in words
    assert guarded.replicas["a"].requests == 0


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (f"x-api-key: {A}\r\nx-api-key: {'c' * 32}", 200),  # the first one counts
        (f"x-api-key: {'c' * 32}\r\nx-api-key: {A}", 401),
        (f"X-API-KEY: {A}", 200),
        (f"x-api-key:   {A}  ", 200),
        (f"x-api-key: \xff{A}", 401),
        (f"x-api-key: {A}\0", 400),
        (f"x-api-key : {A}", 400),
        (f"x-api-key: {A}\r\nconnection: x-tidegate-key", 200),
        (f"x-api-key: {A}\r\ncontent-length: 2\r\ntransfer-encoding: chunked", 400),
        ("x-api-key: %s%n%d\r\nx-tidegate-key: team-a", 401),
        (f"authorization: bearer {A}", 401),  # as Envoy reads it
    ],
)
async def test_hostile_headers(guarded: Edge, lines: str, status: int) -> None:
    client = Rest(guarded.port)
    head = f"GET /v2/models/m HTTP/1.1\r\nhost: x\r\n{lines}\r\n\r\n"
    await client.send(head.encode("latin-1"))
    answer = await client.receive()
    assert answer.status == status
    assert A.encode() not in answer.body
    if status == 200:
        assert answer.json["headers"]["x-tidegate-key"] == "team-a"
    await client.close()
    assert (await guarded.call(x_api_key=B))["headers"]["x-tidegate-key"] == "team-b"


async def test_probes_need_no_key(guarded: Edge) -> None:
    for path in ("/v2/health/live", "/v2/health/ready"):
        assert (await guarded.rest("GET", path)).status == 200
        assert (await guarded.rest("POST", path)).status == 405
    for method in ("/grpc.health.v1.Health/Check", "/inference.GRPCInferenceService/ServerLive"):
        answer = await guarded.call(b"", method=method, x_tidegate_key="root")
        assert answer["replica"] == "controller"
        assert "x-tidegate-key" not in answer["headers"]
    for path in ("/v2", "/", "/v2/models", "/v2/health/live/../../models", "/v2/health/live/x"):
        assert (await guarded.rest("GET", path)).status == 401, path


async def test_a_browser_asks_without_a_key(guarded: Edge) -> None:
    origin = "https://app.example"
    guarded.change(origins=(origin,))
    await guarded.publish()
    asking: dict[str, Any] = {"origin": origin, "access_control_request_method": "POST"}
    told = await guarded.rest("OPTIONS", REST, **asking)
    assert (told.status, told.headers["access-control-allow-origin"]) == (204, origin)
    # Whatever is not answered so needs a key, the same request of another kind, too.
    others: list[dict[str, Any]] = [
        {**asking, "content_type": "application/grpc"},
        {**asking, "origin": "https://other.example"},
        {"origin": origin},
    ]
    for headers in others:
        refused = await guarded.rest("OPTIONS", REST, **headers)
        denied = refused.status == 401 or refused.headers.get("grpc-status") == "16"
        assert denied, headers
    # A page reads why it was refused.
    refused = await guarded.rest("POST", REST, b"{}", origin=origin)
    assert (refused.status, refused.headers["access-control-allow-origin"]) == (401, origin)
    assert refused.headers["www-authenticate"] == "Bearer"
    answer = await guarded.rest("POST", REST, b"{}", origin=origin, x_api_key=A)
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, origin)
    assert guarded.replicas["a"].requests == 1


async def test_what_a_stranger_sends_is_not_held(guarded: Edge) -> None:
    """Refused by its head alone; how much of the rest is written, nobody reads."""
    before = psutil.Process(guarded.envoy.pid).memory_info().rss
    head = f"POST {REST} HTTP/1.1\r\nhost: x\r\ncontent-length: {60 * MIB}\r\n\r\n".encode()

    async def upload() -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", guarded.port)
        writer.write(head)
        answer = await reader.readuntil(b"\r\n")
        # It writes on, as clients do that look at the answer at the end.
        with contextlib.suppress(OSError):
            for _ in range(30):
                writer.write(bytes(MIB))
                await writer.drain()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        return answer

    answers = await asyncio.gather(*(upload() for _ in range(20)))
    assert answers == [b"HTTP/1.1 401 Unauthorized\r\n"] * 20
    async with asyncio.timeout(20):
        code, _ = await guarded.failure(message(payload=60 * MIB))
    assert code == "UNAUTHENTICATED"
    assert psutil.Process(guarded.envoy.pid).memory_info().rss - before < 20 * MIB
    assert guarded.replicas["a"].requests == 0


async def test_a_thousand_keys_change_while_calls_run(guarded: Edge) -> None:
    """New keys count at once, old ones no more, and no connection ends."""
    many = tuple(ApiKey(f"key-{i}", f"{i:032}") for i in range(1000))
    running = asyncio.create_task(guarded.call(x_api_key=A, x_do="hold"))
    await guarded.replicas["a"].request_event.wait()
    guarded.change(api_keys=ApiKeys(many))
    await guarded.publish()
    for i in (0, 500, 999):
        answer = await guarded.call(x_api_key=f"{i:032}")
        assert answer["headers"]["x-tidegate-key"] == f"key-{i}"
    assert (await guarded.failure(x_api_key=A))[0] == "UNAUTHENTICATED"
    guarded.replicas["a"].release.set()
    assert (await running)["headers"]["x-tidegate-key"] == "team-a"
    totals = await guarded.envoy.admin.get("/stats?filter=downstream_cx_(total|drain_close)$")
    assert b"http.clients.downstream_cx_drain_close: 0" in totals


async def test_without_any_key_nobody_is_let_in(guarded: Edge) -> None:
    guarded.change(api_keys=ApiKeys(()))
    await guarded.publish()
    assert (await guarded.failure(x_api_key=A))[0] == "UNAUTHENTICATED"


def texts_of(directory: Path) -> list[str]:
    return [path.read_text() for path in directory.iterdir() if path.is_file()]


async def test_a_key_is_nowhere_to_be_read(run_dir: Path) -> None:
    log = run_dir / "access.log"
    async with running_edge(run_dir, api_keys=KEYS, access_log=log) as edge:
        await edge.serve(m="a")
        await edge.call(x_api_key=A)
        await edge.rest("POST", REST + "?x=1", b"{}", authorization=f"Bearer {A}")
        await edge.failure(x_api_key=A[1:])

        async def written() -> bool:
            return log.exists() and len(log.read_text().splitlines()) == 3

        await until(written)
        dump = (await edge.envoy.admin.get("/config_dump?include_eds")).decode()
        assert "ApiKeyAuthPerRoute" in dump
        for text in (dump, *texts_of(run_dir), repr(edge.settings), str(KEYS)):
            assert A[1:] not in text
        assert [json.loads(line)["key"] for line in log.read_text().splitlines()] == [
            "team-a", "team-a", None,
        ]  # fmt: skip
