"""Direct mode against machines that misbehave: who is called, and what the caller sees."""

from __future__ import annotations

import contextlib
import shutil
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.client.conftest import Both
from tests.client.fake_gateway import Gateway, Node, served
from tests.ports import free_port
from tidegate import Client, errors

# -- the usual ----------------------------------------------------------------------------------


def test_calls_of_models_go_to_the_endpoints_in_turns(
    direct: Callable[..., Both], nodes: list[Node]
) -> None:
    with Gateway(*(node.address for node in nodes)) as gateway:
        client = direct(gateway.url)
        for _ in range(30):
            assert client.infer().model == "m"
        assert min(served(nodes)) >= 8
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
    assert counts[0] == pytest.approx(10, abs=3)


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
        assert served(nodes)[0] == 0
        assert min(served(nodes)[1:]) >= 2
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
                client.infer(timeout=1.0)
            except errors.DeadlineExceeded:
                late += 1
        nodes[0].wake()
        assert 1 <= late <= 4
        assert len(nodes[1].calls) + len(nodes[2].calls) == 12 - late


def test_a_slow_model_on_a_machine_that_lives_is_waited_for(
    direct: Callable[..., Both], nodes: list[Node]
) -> None:
    with (
        Gateway(nodes[0].address, nodes[1].address) as gateway,
        ThreadPoolExecutor(1) as threads,
    ):
        nodes[0].hanging = nodes[1].hanging = True
        call = threads.submit(direct(gateway.url).infer)
        while not sum(served(nodes)):
            threading.Event().wait(0.01)
        (asked,) = (node for node in nodes if node.calls)
        asked.until_checked(2)
        nodes[0].wake()
        nodes[1].wake()
        assert call.result(60).model == "m"
    assert sum(served(nodes)) == 1


def test_calls_that_wait_for_a_machine_that_lives_no_more_go_elsewhere(
    direct: Callable[..., Both], nodes: list[Node]
) -> None:
    with Gateway(nodes[0].address, nodes[1].address) as gateway:
        client = direct(gateway.url)
        nodes[0].hanging = nodes[0].frozen = True
        for _ in range(2):
            client.infer()
        assert served(nodes) == [1, 2, 0]
        nodes[0].wake()


def test_with_nowhere_to_go_a_call_waits(direct: Callable[..., Both], nodes: list[Node]) -> None:
    with Gateway(nodes[0].address) as gateway, ThreadPoolExecutor(1) as threads:
        nodes[0].hanging = nodes[0].frozen = True
        call = threads.submit(direct(gateway.url).infer)
        nodes[0].until_checked(2)
        nodes[0].wake()
        assert call.result(60).model == "m"
    assert served(nodes) == [1, 0, 0]


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
    assert min(sum("/good/" in path for path in node.calls) for node in nodes) >= 8


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
