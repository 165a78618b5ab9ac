"""Direct mode against machines that misbehave: who is called, and what the caller sees."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.client.fake_gateway import Gateway, Node
from tests.node.harness import free_port
from tidegate import AsyncClient, Client, errors

X = {"x": np.ones((1, 4), np.float32)}


class Both:
    """One client of either kind, called alike."""

    def __init__(self, kind: str, url: str, **options: Any) -> None:
        self._loop = asyncio.new_event_loop() if kind == "async" else None
        make = AsyncClient if self._loop else Client
        self.client: Any = make(url, direct=True, timeout=20, **options)

    def run(self, call: Callable[[Any], Any]) -> Any:
        """Make one call."""
        if self._loop is None:
            return call(self.client)

        async def awaited() -> Any:
            return await call(self.client)

        return self._loop.run_until_complete(awaited())

    def infer(self, model: str = "m", **options: Any) -> Any:
        """Run a model once."""
        return self.run(lambda client: client.infer(model, X, **options))

    def close(self) -> None:
        """End."""
        self.run(lambda client: client.close())
        if self._loop is not None:
            self._loop.close()


@pytest.fixture(params=["blocking", "async"])
def direct(request: pytest.FixtureRequest) -> Iterator[Callable[..., Both]]:
    """Makes clients in direct mode."""
    with contextlib.ExitStack() as stack:

        def make(url: str, **options: Any) -> Both:
            client = Both(request.param, url, **options)
            stack.callback(client.close)
            return client

        yield make


@pytest.fixture
def nodes() -> Iterator[list[Node]]:
    """Three machines."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Node()) for _ in range(3)]


def served(nodes: list[Node]) -> list[int]:
    return [len(node.calls) for node in nodes]


# -- the usual ----------------------------------------------------------------------------------


def test_calls_of_models_go_to_the_endpoints_in_turns(
    direct: Callable[..., Both], nodes: list[Node]
) -> None:
    with Gateway(*(node.address for node in nodes)) as gateway:
        client = direct(gateway.url)
        for _ in range(30):
            assert client.infer().model == "m"
        assert served(nodes) == [10, 10, 10]
        assert (gateway.asked, gateway.calls) == (1, [])
        assert client.run(lambda c: c.model("m").ready())
        assert not gateway.calls
        assert not client.run(lambda c: c.ready())
        with pytest.raises(errors.TidegateError):
            client.run(lambda c: c.repository())
        assert gateway.calls == ["/v2/health/ready", "/v2/repository/index"]


def test_shares_are_as_weights(direct: Callable[..., Both], nodes: list[Node]) -> None:
    weights = (100, 200, 0)
    found = [{"address": n.address, "weight": w} for n, w in zip(nodes, weights, strict=True)]
    with Gateway(*found) as gateway:
        client = direct(gateway.url)
        for _ in range(30):
            client.infer()
    counts = served(nodes)
    assert counts[2] == 0
    assert counts[0] == pytest.approx(10, abs=2)


def test_priorities(direct: Callable[..., Both], nodes: list[Node]) -> None:
    found = [{"address": n.address, "priority": p} for p, n in enumerate(nodes)]
    with Gateway(*found) as gateway:
        client = direct(gateway.url)
        for _ in range(5):
            client.infer()
        assert served(nodes) == [5, 0, 0]
        nodes[0].stop()
        for _ in range(5):
            client.infer()
        assert served(nodes) == [5, 5, 0]
        nodes[1].stop()
        client.infer()
        assert served(nodes) == [5, 5, 1]


def test_versions(direct: Callable[..., Both], nodes: list[Node]) -> None:
    found = [
        {"address": nodes[0].address, "versions": ["1"]},
        {"address": nodes[1].address, "versions": ["1", "2"]},
        {"address": nodes[2].address},
    ]
    with Gateway(*found) as gateway:
        client = direct(gateway.url)
        for _ in range(6):
            client.infer(version=2)
        assert served(nodes) == [0, 3, 3]
        assert nodes[1].calls[0] == "/v2/models/m/versions/2/infer"
        gateway.of_model["one"] = found[:1]
        with pytest.raises(errors.ModelNotFound, match="the gateway has no such model"):
            client.infer("one", version=2)


def test_what_the_headers_are_for(direct: Callable[..., Both], nodes: list[Node]) -> None:
    with Gateway(nodes[0].address) as gateway:
        client = direct(
            gateway.url,
            headers={"authorization": "Bearer secret"},
            endpoint_headers={"x-team": "vision"},
        )
        client.infer()
        assert gateway.heads[0]["authorization"] == "Bearer secret"
        assert "x-team" not in gateway.heads[0]
    (head,) = nodes[0].heads
    assert "authorization" not in head
    assert head["x-team"] == "vision"
    with pytest.raises(errors.ConfigurationError, match="endpoint_headers"):
        Client(gateway.url, endpoint_headers={"x-team": "vision"})


# -- encryption ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for this machine, with its key, that vouches for itself."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    file = tmp_path_factory.mktemp("tls") / "both.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-days", "2", "-subj", "/CN=here", "-addext",
         "subjectAltName=IP:127.0.0.1", "-out", file, "-keyout", file.with_suffix(".key")],
        check=True, capture_output=True,
    )  # fmt: skip
    return file


def serving_tls(authority: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority, authority.with_suffix(".key"))
    return context


@pytest.mark.parametrize("encrypted", [False, True])
def test_secure_endpoints_are_called_over_tls(
    direct: Callable[..., Both], authority: Path, encrypted: bool
) -> None:
    context = serving_tls(authority)
    with (
        Node(context) as node,
        Gateway(
            {"address": node.address, "secure": True}, tls=context if encrypted else None
        ) as gateway,
    ):
        client = direct(gateway.url, ca_file=authority)
        for _ in range(3):
            client.infer()
        assert len(node.calls) == 3
        stranger = direct(gateway.url.replace("https", "http"))
        with pytest.raises(errors.TidegateError):
            stranger.infer()
        assert len(node.calls) == 3


def test_what_was_to_be_encrypted_does_not_go_in_the_clear(
    direct: Callable[..., Both], nodes: list[Node], authority: Path
) -> None:
    context = serving_tls(authority)
    with (
        Node(context) as node,
        Gateway(*(n.address for n in nodes), tls=context) as gateway,
    ):
        with pytest.raises(errors.ModelNotFound, match="the gateway has no such model"):
            direct(gateway.url, ca_file=authority).infer()
        gateway.endpoints.append({"address": node.address, "secure": True})
        direct(gateway.url, ca_file=authority).infer()
        assert len(node.calls) == 1
    assert served(nodes) == [0, 0, 0]


# -- endpoints that fail ------------------------------------------------------------------------


def reset(node: Node) -> None:
    node.answer = None


def unavailable(node: Node) -> None:
    node.answer = (503, b'{"error":"draining"}')


def garbage(node: Node) -> None:
    node.answer = (200, b"SSH-2.0-OpenSSH")


@pytest.mark.parametrize("fault", [Node.stop, reset, unavailable, garbage])
def test_another_endpoint_answers_for_one_that_fails(
    direct: Callable[..., Both], nodes: list[Node], fault: Callable[[Node], None]
) -> None:
    with Gateway(*(node.address for node in nodes)) as gateway:
        client = direct(gateway.url)
        for _ in range(6):
            client.infer()
        fault(nodes[0])
        for _ in range(60):
            client.infer()
        assert not gateway.calls


def test_a_call_is_sent_twice_at_most(direct: Callable[..., Both], nodes: list[Node]) -> None:
    for node in nodes:
        reset(node)
    with Gateway(*(node.address for node in nodes)) as gateway:
        with pytest.raises(errors.ConnectionLost):
            direct(gateway.url).infer()
        assert sorted(served(nodes)) == [0, 1, 1]
        assert not gateway.calls


@pytest.mark.parametrize("status", [400, 404, 413, 422, 429, 500, 501])
def test_other_answers_are_the_callers(
    direct: Callable[..., Both], nodes: list[Node], status: int
) -> None:
    for node in nodes:
        node.answer = (status, b'{"error":"why"}')
    with (
        Gateway(*(node.address for node in nodes)) as gateway,
        pytest.raises(errors.RequestError, match="why"),
    ):
        direct(gateway.url).infer()
    assert sum(served(nodes)) == 1


def test_a_call_that_could_not_be_sent_is_tried_everywhere(
    direct: Callable[..., Both], nodes: list[Node]
) -> None:
    dead = [f"127.0.0.1:{free_port()}" for _ in range(5)]
    with Gateway(*dead, nodes[0].address) as gateway:
        client = direct(gateway.url)
        for _ in range(10):
            client.infer()
        assert not gateway.calls
    assert len(nodes[0].calls) == 10


def test_the_gateway_is_the_last_resort(direct: Callable[..., Both]) -> None:
    with Gateway(f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}") as gateway:
        client = direct(gateway.url)
        with pytest.raises(errors.ModelNotFound, match="the gateway has no such model"):
            client.infer()
        assert gateway.calls == ["/v2/models/m/infer"]


def test_nobody_is_left(direct: Callable[..., Both], nodes: list[Node]) -> None:
    with Gateway(*(node.address for node in nodes)) as gateway:
        client = direct(gateway.url)
        client.infer()
        for machine in (gateway, *nodes):
            machine.stop()
        with pytest.raises(errors.ServerUnreachable, match="none of the endpoints of model 'm'"):
            client.infer()
        nodes[1].start()
        count = len(nodes[1].calls)
        while len(nodes[1].calls) == count:
            with contextlib.suppress(errors.ServerUnreachable):
                client.infer()


def test_an_endpoint_that_hangs_costs_only_its_own_calls(
    direct: Callable[..., Both], nodes: list[Node]
) -> None:
    with Gateway(*(node.address for node in nodes)) as gateway:
        client = direct(gateway.url)
        nodes[0].hanging = True
        late = 0
        for _ in range(12):
            try:
                client.infer(timeout=0.3)
            except errors.DeadlineExceeded:
                late += 1
        nodes[0].wake()
        assert 1 <= late <= 4
        assert len(nodes[1].calls) + len(nodes[2].calls) == 12 - late


def test_a_bad_model_takes_no_other_with_it(
    direct: Callable[..., Both], nodes: list[Node]
) -> None:
    for node in nodes:
        node.of_model["bad"] = (500, b'{"error":"it raised"}')
    with Gateway(*(node.address for node in nodes)) as gateway:
        client = direct(gateway.url)
        for _ in range(60):
            with pytest.raises(errors.InferenceFailed, match="it raised"):
                client.infer("bad")
        before = [sum("/bad/" not in path for path in node.calls) for node in nodes]
        assert before == [0, 0, 0]
        for _ in range(30):
            client.infer("good")
    assert [sum("/good/" in path for path in node.calls) for node in nodes] == [10, 10, 10]


def test_a_blackholed_endpoint_is_passed_over(
    direct: Callable[..., Both], nodes: list[Node]
) -> None:
    """Nobody sends so much as a reset from there; connecting has a second."""
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(_full_listener())
        gateway = stack.enter_context(Gateway(full, nodes[0].address))
        client = direct(gateway.url)
        for _ in range(8):
            client.infer()
        assert len(nodes[0].calls) == 8


@contextlib.contextmanager
def _full_listener() -> Iterator[str]:
    """A port whose queue is full: the kernel drops what wants to connect."""
    import socket

    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        while True:
            waiting = stack.enter_context(socket.socket())
            waiting.settimeout(0.2)
            try:
                waiting.connect(listener.getsockname())
            except TimeoutError:
                break
        yield f"127.0.0.1:{listener.getsockname()[1]}"


# -- the gateway --------------------------------------------------------------------------------


def test_calls_go_on_while_the_gateway_is_dead(
    direct: Callable[..., Both], nodes: list[Node]
) -> None:
    with Gateway(nodes[0].address, ttl_ms=1) as gateway:
        client = direct(gateway.url)
        client.infer()
        gateway.stop()
        ended = threading.Event()
        timer = threading.Timer(2.5, ended.set)  # beyond the time to live
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
        Client(gateway.url, direct=True, timeout=20) as client,
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
        Client(gateway.url, direct=True, timeout=20) as client,
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
            gateway.until_asked(gateway.asked + 2)
        ended.set()
        assert all(work.result() for work in working)
        assert not gateway.calls


def test_closing_ends_what_waits(nodes: list[Node]) -> None:
    nodes[0].hanging = True
    with Gateway(nodes[0].address) as gateway, ThreadPoolExecutor(1) as threads:
        client = Client(gateway.url, direct=True, timeout=20)
        call = threads.submit(client.infer, "m", X)
        with nodes[0].changed:
            assert nodes[0].changed.wait_for(lambda: nodes[0].heads, 20)
        client.close()
        with pytest.raises((errors.ConnectionLost, RuntimeError)):
            call.result(10)
        nodes[0].wake()
