"""Direct mode and the gateway: when it is asked, what its answers do, and its death."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.client.conftest import Both, X
from tests.client.fake_gateway import Gateway, Node, served
from tests.ports import free_port
from tidegate import Client, errors

# -- the gateway --------------------------------------------------------------------------------


def test_calls_go_on_while_the_gateway_is_dead(
    direct: Callable[..., Both], nodes: list[Node]
) -> None:
    with Gateway(nodes[0].address, ttl_ms=1) as gateway:
        client = direct(gateway.url)
        client.infer()
        gateway.stop()
        ended = threading.Event()
        timer = threading.Timer(1.2, ended.set)  # beyond the time to live
        timer.start()
        count = 1
        while not ended.is_set():
            client.infer()
            count += 1
        assert len(nodes[0].calls) == count
        gateway.endpoints = [nodes[1].address]
        gateway.start()
        while not nodes[1].calls:
            client.infer()


def test_endpoints_that_change(direct: Callable[..., Both], nodes: list[Node]) -> None:
    with Gateway(nodes[0].address, ttl_ms=1000) as gateway:
        client = direct(gateway.url)
        client.infer()
        gateway.endpoints = [nodes[1].address, nodes[2].address]
        while not nodes[1].calls or not nodes[2].calls:
            client.infer()
        before = len(nodes[0].calls)
        for _ in range(10):
            client.infer()
        assert len(nodes[0].calls) == before


HOSTILE = [
    b"",
    b"null",
    b"[" * 100_000,
    b'{"model_name":"m","ttl_ms":-1,"endpoints":[]}',
    json.dumps(
        {"model_name": "m", "ttl_ms": 1, "endpoints": [{"address": "10.0.0.1:1"}] * 10_001}
    ).encode(),
    b'{"model_name":"m","ttl_ms":1,"endpoints":[{"address":"evil.example:80"}]}',
    b'{"model_name":"m","ttl_ms":1,"endpoints":[{"address":"0.0.0.0:80"}]}',
    b'{"model_name":"m","ttl_ms":1,"endpoints":[{"address":8000}]}',
    b" " * 5_000_000,
]


@pytest.mark.parametrize("body", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_answers_from_the_beginning(direct: Callable[..., Both], body: bytes) -> None:
    with Gateway() as gateway:
        gateway.answer = (200, body)
        with pytest.raises(errors.ModelNotFound, match="the gateway has no such model"):
            direct(gateway.url).infer()
        assert gateway.calls == ["/v2/models/m/infer"]


@pytest.mark.parametrize("body", [HOSTILE[0], HOSTILE[-1]], ids=["nothing", "huge"])
def test_after_a_hostile_answer_the_one_before_counts(
    direct: Callable[..., Both], nodes: list[Node], body: bytes
) -> None:
    with Gateway(nodes[0].address, ttl_ms=1000) as gateway:
        client = direct(gateway.url)
        client.infer()
        gateway.answer = (200, body)
        asked, count = gateway.asked, 1
        while gateway.asked < asked + 2:
            client.infer()
            count += 1
        assert len(nodes[0].calls) == count


@pytest.mark.parametrize(
    "endpoint",
    [
        {"protocol": "seldon"},
        {"protocol": "tensorflow-serving"},
        {"protocol": "carrier-pigeon"},
        {"protocol": "open-inference"},
        {"weight": 0},
    ],
)
def test_endpoints_that_this_client_cannot_call(
    direct: Callable[..., Both], nodes: list[Node], endpoint: dict[str, Any]
) -> None:
    with Gateway({"address": nodes[0].address, **endpoint}) as gateway:
        with pytest.raises(errors.ModelNotFound, match="the gateway"):
            direct(gateway.url).infer()
        gateway.endpoints.append(
            {"address": "127.0.0.1:9", "rest": nodes[1].address, "protocol": "open-inference"}
        )
        direct(gateway.url).infer()
    assert served(nodes) == [0, 1, 0]


@pytest.mark.parametrize("status", [404, 500, 501, 503])
def test_a_server_that_tells_of_no_endpoints_is_called_itself(
    direct: Callable[..., Both], status: int
) -> None:
    with Gateway() as gateway:
        gateway.answer = (status, b'{"error":"why"}')
        client = direct(gateway.url)
        for _ in range(2):
            with pytest.raises(errors.ModelNotFound, match="the gateway has no such model"):
                client.infer()
        assert gateway.calls == ["/v2/models/m/infer"] * 2


@pytest.mark.parametrize(
    ("status", "kind"), [(401, errors.Unauthenticated), (403, errors.PermissionDenied)]
)
def test_a_gateway_that_refuses_the_caller(
    direct: Callable[..., Both], nodes: list[Node], status: int, kind: type[Exception]
) -> None:
    with Gateway(nodes[0].address, ttl_ms=1000) as gateway:
        client = direct(gateway.url)
        client.infer()
        gateway.answer = (status, b'{"error":"who are you?"}')
        with pytest.raises(kind, match="who are you"):
            direct(gateway.url).infer()
        with contextlib.suppress(kind):
            while True:
                client.infer()
        with pytest.raises(kind, match="who are you"):
            client.infer()
        assert not gateway.calls


def test_no_gateway_at_all(direct: Callable[..., Both]) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(errors.ServerUnreachable, match=f"nobody answers at {url}"):
        direct(url).infer()


def test_a_version_that_nobody_has_while_the_gateway_is_dead(
    direct: Callable[..., Both], nodes: list[Node]
) -> None:
    with Gateway({"address": nodes[0].address, "versions": ["1"]}) as gateway:
        client = direct(gateway.url)
        client.infer(version=1)
        gateway.stop()
        with pytest.raises(errors.ServerUnreachable, match=gateway.url):
            client.infer(version=2)
        client.infer(version=1)


def test_models_that_were_not_called_for_long_are_forgotten(
    direct: Callable[..., Both], nodes: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tidegate.client.direct._MOST_MODELS", 2)
    with Gateway() as gateway:
        for number, node in enumerate(nodes):
            gateway.of_model[f"m{number}"] = [node.address]
        client = direct(gateway.url)
        for model in ("m0", "m1", "m2", "m2", "m1", "m0"):
            client.infer(model)
        assert gateway.asked == 4
        known = [client.client.model(f"m{n}").endpoints() for n in range(3)]
        assert [len(found) for found in known] == [1, 1, 0]


def test_an_empty_set_does_not_end_what_is_known_at_once(
    direct: Callable[..., Both], nodes: list[Node]
) -> None:
    """A gateway that was started anew may not have heard of its nodes yet."""
    with Gateway(nodes[0].address, ttl_ms=1000) as gateway:
        client = direct(gateway.url)
        client.infer()
        gateway.endpoints = []
        while gateway.asked < 3:
            client.infer()
        assert not gateway.calls


# -- threads ------------------------------------------------------------------------------------


def test_threads_share_a_client(nodes: list[Node]) -> None:
    with (
        Gateway(*(node.address for node in nodes), ttl_ms=1000) as gateway,
        Client(gateway.url, direct=True, timeout=60) as client,
        ThreadPoolExecutor(16) as threads,
    ):
        done = list(threads.map(lambda _: client.infer("m", X).model, range(480)))
        assert done == ["m"] * 480
        assert not gateway.calls
    counts = served(nodes)
    assert sum(counts) == 480
    assert max(counts) - min(counts) <= 48


def test_threads_while_machines_come_and_go(nodes: list[Node]) -> None:
    """Machines leave the set as they die, and come back; connections are not closed too soon."""
    addresses = [node.address for node in nodes]
    with (
        Gateway(*addresses, ttl_ms=1) as gateway,
        Client(gateway.url, direct=True, timeout=60) as client,
        ThreadPoolExecutor(8) as threads,
    ):
        ended = threading.Event()

        def work() -> int:
            count = 0
            while not ended.is_set():
                client.infer("m", X)
                count += 1
            return count

        working = [threads.submit(work) for _ in range(8)]
        for turn in range(4):
            gateway.endpoints = addresses[turn % 3 :][:2]
            gateway.until_asked(gateway.asked + 1)
        ended.set()
        assert all(work.result() for work in working)
        assert not gateway.calls


def test_closing_ends_what_waits(nodes: list[Node]) -> None:
    nodes[0].hanging = True
    with Gateway(nodes[0].address) as gateway, ThreadPoolExecutor(1) as threads:
        client = Client(gateway.url, direct=True, timeout=60)
        call = threads.submit(client.infer, "m", X)
        with nodes[0].changed:
            assert nodes[0].changed.wait_for(lambda: nodes[0].heads, 60)
        client.close()
        with pytest.raises((errors.ConnectionLost, RuntimeError)):
            call.result(60)
        nodes[0].wake()
