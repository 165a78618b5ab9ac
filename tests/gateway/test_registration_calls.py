"""``/nodes`` of a gateway's admin port, over real HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import httpx
import psutil
import pytest

from tests.gateway.standin import GatewayStandIn
from tidegate.clock import MonotonicClock
from tidegate.controller import admin_grpc
from tidegate.errors import InvalidInput
from tidegate.gateway import registration_calls
from tidegate.gateway.own_places import OwnPlaces
from tidegate.protocols.registration import AnnouncedModel, Announcement, encode_announcement

NODE = "/nodes/10.0.0.7:8000"
SAID = Announcement("10.0.0.7:8000", (AnnouncedModel("m", (1,), 1, ready=True),), instance="first")
BODY = encode_announcement(SAID)


@pytest.fixture
async def gateway() -> AsyncIterator[GatewayStandIn]:
    async with GatewayStandIn() as gateway:
        yield gateway


@pytest.fixture
async def http(gateway: GatewayStandIn) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=gateway.url, trust_env=False) as client:
        yield client


async def nodes(http: httpx.AsyncClient) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await http.get("/nodes")).json()["nodes"]
    return found


async def test_a_node_joins_is_seen_and_leaves(
    gateway: GatewayStandIn, http: httpx.AsyncClient
) -> None:
    answer = await http.put(NODE, content=BODY)
    assert (answer.status_code, answer.json()) == (200, {"lease_ms": 5000, "renew_ms": 1500})
    assert gateway.addresses("m") == ["10.0.0.7:8000"]
    assert gateway.changes == 1
    [node] = await nodes(http)
    assert (node["name"], node["state"]) == ("10.0.0.7:8000", "registered")
    assert 0 < node["lease_left_s"] <= 5
    assert (node["models_ready"], node["models_not_ready"]) == (1, 0)
    one = (await http.get(NODE)).json()
    assert one["models"][0]["name"] == "m"
    assert "instance" not in one
    assert (await http.get("/nodes/10.0.0.8:8000")).status_code == 404
    await http.put(NODE, content=BODY)
    assert gateway.changes == 1
    answer = await http.delete(NODE)
    assert answer.json() == {"known": True, "published": True}
    assert gateway.changes == 2
    assert (await http.delete(NODE)).json()["known"] is False
    assert await nodes(http) == []


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("169.254.169.254:80", "only the own link knows"),
        ("[fe80::1]:8000", "only the own link knows"),
        ("127.0.0.1:7001", "round in circles"),
        ("[::1]:7002", "round in circles"),
        ("[::ffff:127.0.0.1]:7001", "round in circles"),
        ("[::ffff:169.254.169.254]:80", "only the own link knows"),
        ("127.0.0.1:7003", ""),
        ("10.0.0.7:7001", ""),
    ],
)
async def test_addresses_that_are_no_nodes(
    gateway: GatewayStandIn, http: httpx.AsyncClient, address: str, words: str
) -> None:
    """A node must not make the gateway call itself, nor what only its machine reaches."""
    said = encode_announcement(Announcement(address, SAID.models))
    answer = await http.put(NODE, content=said)
    assert answer.status_code == (400 if words else 200), answer.text
    assert words in answer.json().get("error", "")
    assert gateway.addresses("m") == ([] if words else [address])


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("begun", [b"", b"P", b"GET /nodes HTTP/1.1\r\nx: "])
async def test_who_connects_and_says_nothing(
    gateway: GatewayStandIn, monkeypatch: pytest.MonkeyPatch, begun: bytes, before: bool
) -> None:
    """Neither on a new connection nor on one that has carried a request."""
    monkeypatch.setattr(admin_grpc, "HEAD_TIMEOUT", 0.5)
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    if before:
        writer.write(b"GET /nodes HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert await reader.readuntil(b'{"nodes":[]}')
    writer.write(begun)
    async with asyncio.timeout(60):
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
    writer.close()


async def test_other_machines_do_not_take_all_connections(
    gateway: GatewayStandIn, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin_grpc, "MOST_CONNECTIONS", 1)
    assert (await http.get("/nodes")).status_code == 200
    async with httpx.AsyncClient(base_url=gateway.url, trust_env=False) as another:
        assert (await another.get("/nodes")).status_code == 200
    monkeypatch.setattr(admin_grpc, "is_from_here", lambda client, server: False)
    async with httpx.AsyncClient(base_url=gateway.url, trust_env=False) as another:
        with pytest.raises(httpx.TransportError):
            await another.get("/nodes")


def test_the_gateways_own_machine_is_no_other_machines_to_announce() -> None:
    clock = MonotonicClock()
    own = OwnPlaces([("10.0.0.1", 8000)], clock)
    for address in ("127.0.0.1:9000", "[::1]:9000", "127.9.9.9:9000"):
        with pytest.raises(InvalidInput, match="the gateway's machine"):
            own.check_announced(address, from_here=False)
        own.check_announced(address, from_here=True)
    own.check_announced("127.0.0.1:8000", from_here=True)
    with pytest.raises(InvalidInput, match="round in circles"):
        own.check_announced("10.0.0.1:8000", from_here=False)
    everywhere = OwnPlaces([("0.0.0.0", 8000)], clock)
    everywhere.check_announced("10.255.0.2:8000", from_here=False)
    interfaces = psutil.net_if_addrs().values()
    here = {e.address for found in interfaces for e in found if e.family == socket.AF_INET}
    for host in here:
        with pytest.raises(InvalidInput, match="round in circles"):
            everywhere.check_announced(f"{host}:8000", from_here=True)


async def test_who_leaves_is_answered_when_the_edge_has_been_told(
    gateway: GatewayStandIn, http: httpx.AsyncClient
) -> None:
    await http.put(NODE, content=BODY)
    gateway.applied.clear()
    leaving = asyncio.create_task(http.delete(NODE))
    await gateway.until(lambda: gateway.changes == 2)
    assert (await nodes(http)) == []
    assert not leaving.done()
    gateway.applied.set()
    assert (await leaving).json() == {"known": True, "published": True}


async def test_an_edge_that_is_not_told_holds_up_nobody_for_long(
    gateway: GatewayStandIn, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registration_calls, "PATIENCE", 0.05)
    await http.put(NODE, content=BODY)
    gateway.applied.clear()
    assert (await http.delete(NODE)).json() == {"known": True, "published": False}


async def test_what_was_sent_before_leaving_is_refused(http: httpx.AsyncClient) -> None:
    await http.put(NODE, content=BODY)
    await http.delete(NODE, params={"instance": "first"})
    answer = await http.put(NODE, content=BODY)
    assert answer.status_code == 400
    assert "has left" in answer.json()["error"]


async def test_a_token_is_needed_where_there_is_one(
    gateway: GatewayStandIn, http: httpx.AsyncClient
) -> None:
    gateway.token = "sésame"
    for shown, words in (
        (None, "show the gateway's token"),
        ("Basic c2VzYW1l", "show the gateway's token"),
        ("Bearer", "show the gateway's token"),
        ("Bearer wrong", "is not that of this gateway"),
    ):
        headers = {} if shown is None else {"authorization": shown}
        for method, path in (("PUT", NODE), ("DELETE", NODE), ("GET", NODE), ("GET", "/nodes")):
            answer = await http.request(method, path, content=BODY, headers=headers)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
            assert words in answer.json()["error"]
    assert gateway.addresses("m") == []
    gateway.token = "sesame"
    answer = await http.put(NODE, content=BODY, headers={"authorization": "bearer sesame"})
    assert answer.status_code == 200
    # By name, which only who knows the token may.
    named = {"authorization": "Bearer sesame", "host": "gateway:8002"}
    assert (await http.put(NODE, content=BODY, headers=named)).status_code == 200


async def test_pages_in_browsers_are_refused(
    gateway: GatewayStandIn, http: httpx.AsyncClient
) -> None:
    for name, value in (
        ("origin", "https://elsewhere.example"),
        ("sec-fetch-site", "cross-site"),
        ("host", "rebound.example:8002"),
    ):
        for method in ("PUT", "DELETE", "GET"):
            answer = await http.request(method, NODE, content=BODY, headers={name: value})
            assert answer.status_code == 403, (name, method)
    assert gateway.addresses("m") == []


BAD: list[tuple[str, bytes, int, str]] = [
    ("/nodes/nowhere", BODY, 400, "cannot be the name of a node"),
    ("/nodes/a%2Fb:1", BODY, 400, "cannot be the name of a node"),
    ("/nodes/" + "x" * 2000 + ":1", BODY, 400, "cannot be the name of a node"),
    (NODE, b"{", 400, "not JSON"),
    (NODE, b"", 400, "not JSON"),
    (NODE, json.dumps({"address": "gpu"}).encode(), 400, "'address' is 'gpu'"),
    (NODE, b" " * (2**20 + 1), 413, "larger than"),
]


async def test_bad_announcements_are_refused_in_words(http: httpx.AsyncClient) -> None:
    for path, body, status, words in BAD:
        answer = await http.put(path, content=body)
        assert (answer.status_code, answer.headers["content-type"]) == (
            status,
            "application/json",
        )
        assert words in answer.json()["error"]
    assert await nodes(http) == []


async def test_a_body_that_does_not_come_is_not_waited_for(
    gateway: GatewayStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registration_calls, "PATIENCE", 0.05)
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(b"PUT " + NODE.encode() + b" HTTP/1.1\r\nhost: 127.0.0.1\r\n")
    writer.write(b"content-length: 100\r\n\r\n{")
    async with asyncio.timeout(60):
        assert b" 504 " in await reader.readline()
        assert b"did not come within" in await reader.readuntil(b"}")
    writer.close()
    await writer.wait_closed()


async def test_other_methods_are_refused(http: httpx.AsyncClient) -> None:
    answer = await http.delete("/nodes")
    assert answer.status_code == 405
    assert answer.headers["allow"] == "GET"
