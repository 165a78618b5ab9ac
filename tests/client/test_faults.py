"""What can go wrong between a client and a server; every fault is a typed error."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import math
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent import futures
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
import pytest_asyncio

from tests import models
from tests.client.fake_server import Script, reply, saying, scripted
from tests.node.failures_table import running
from tests.node.harness import ServedNode
from tests.ports import free_port
from tidegate import AsyncClient, Client, errors
from tidegate.protocols.statuses import GrpcCode

X = {"x": np.ones((1, 4), np.float32)}
MIB = 2**20
METADATA = b'{"name":"m","versions":["1"],"platform":"p","inputs":[],"outputs":[]}'


@pytest.fixture(params=["blocking", "async"])
def infer(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """One inference by a client of its own."""

    async def by_async(url: str, timeout: float | None, options: dict[str, Any]) -> Any:
        async with AsyncClient(url, **options) as client:
            return await client.infer("m", X, timeout=timeout)

    def run(url: str, timeout: float | None = 20.0, **options: Any) -> Any:
        if request.param == "async":
            return asyncio.run(by_async(url, timeout, options))
        with Client(url, **options) as client:
            return client.infer("m", X, timeout=timeout)

    return run


# -- connections --------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["http", "grpc", "https", "grpcs"])
def test_nobody_listens(infer: Callable[..., Any], scheme: str) -> None:
    url = f"{scheme}://127.0.0.1:{free_port()}"
    with pytest.raises(errors.ServerUnreachable, match=f"nobody answers at {url}") as caught:
        infer(url)
    assert "tidegate serve" in str(caught.value)


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_the_host_does_not_exist(infer: Callable[..., Any], scheme: str) -> None:
    with pytest.raises(errors.ServerUnreachable, match=r"host\.invalid"):
        infer(f"{scheme}://host.invalid:8000")


def hang(connection: socket.socket, request: bytes) -> None:
    while connection.recv(65536):
        pass


def drip(connection: socket.socket, request: bytes) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n")
    connection.settimeout(0.02)
    while True:
        connection.sendall(b" ")
        with contextlib.suppress(TimeoutError):
            connection.recv(65536)


def drip_headers(connection: socket.socket, request: bytes) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nx: ")
    connection.settimeout(0.02)
    while True:
        connection.sendall(b"a")
        with contextlib.suppress(TimeoutError):
            connection.recv(65536)


@pytest.mark.parametrize("script", [hang, drip, drip_headers])
def test_an_answer_that_does_not_come_in_time(infer: Callable[..., Any], script: Script) -> None:
    with scripted(script) as port, pytest.raises(errors.DeadlineExceeded, match=r"in 0\.3 s"):
        infer(f"http://127.0.0.1:{port}", timeout=0.3)


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (b"", errors.ConnectionLost, "broke off"),
        (b"HTTP/1.1 200 OK\r\ncontent-le", errors.ConnectionLost, "broke off"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{}", errors.ConnectionLost, "broke off"),
        (
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n9\r\n{}",
            errors.ConnectionLost,
            "broke off",
        ),
        (b"SSH-2.0-OpenSSH_9.9\r\n\r\n", errors.InvalidAnswer, "does not speak HTTP"),
        (b"HTTP/1.1 two OK\r\n\r\n", errors.InvalidAnswer, "does not speak HTTP"),
        (b"HTTP/1.1 200 OK\r\n\r\n", errors.InvalidAnswer, "is not JSON"),
        (reply(body=b"nothing"), errors.InvalidAnswer, "'nothing' is not JSON"),
        (reply(body=b'{"outputs":3}'), errors.InvalidAnswer, "'outputs' are 3"),
        (
            reply("200 OK", b'{"outputs":[]}', "inference-header-content-length: many"),
            errors.InvalidAnswer,
            "Inference-Header-Content-Length",
        ),
        (
            reply("200 OK", b'{"outputs":[]}', "inference-header-content-length: 99"),
            errors.InvalidAnswer,
            "99, but the body has 14 bytes",
        ),
        (
            reply("307 Temporary Redirect", b"", "location: http://elsewhere/"),
            errors.InvalidAnswer,
            "on to http://elsewhere/",
        ),
        (reply("200 OK", b"junk", "content-encoding: gzip"), errors.InvalidAnswer, "unpacked"),
        (reply("200 OK", b"junk", "content-encoding: br"), errors.InvalidAnswer, "unpacked"),
    ],
)
def test_odd_answers(
    infer: Callable[..., Any], answer: bytes, kind: type[Exception], words: str
) -> None:
    with scripted(saying(answer)) as port, pytest.raises(kind, match=words):
        infer(f"http://127.0.0.1:{port}")


def test_a_compressed_answer_is_unpacked(infer: Callable[..., Any]) -> None:
    body = gzip.compress(b'{"model_name":"m","outputs":[]}')
    with scripted(saying(reply("200 OK", body, "content-encoding: gzip"))) as port:
        assert infer(f"http://127.0.0.1:{port}").model == "m"


def endless(connection: socket.socket, request: bytes) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
    while True:
        connection.sendall(chunk)


@pytest.mark.parametrize(
    "script",
    [
        endless,
        saying(b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999999\r\n\r\n"),
        saying(reply("200 OK", gzip.compress(b" " * 64 * MIB), "content-encoding: gzip")),
    ],
)
def test_what_is_too_large_takes_little_memory(infer: Callable[..., Any], script: Script) -> None:
    with scripted(script) as port:
        tracemalloc.start()
        try:
            with pytest.raises(errors.MessageTooLarge, match=r"limit of 1048576.*max_answer_size"):
                infer(f"http://127.0.0.1:{port}", max_answer_size=MIB)
            assert tracemalloc.get_traced_memory()[1] < 16 * MIB
        finally:
            tracemalloc.stop()


def test_a_question_is_asked_again_when_a_kept_connection_was_just_closed() -> None:
    def once(connection: socket.socket, request: bytes) -> None:
        connection.sendall(reply())
        connection.recv(65536)  # and no answer

    with scripted(once) as port, Client(f"http://127.0.0.1:{port}") as client:
        assert client.live()
        assert client.live()
        assert client.live()


# -- statuses -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, b'{"error":"why"}', errors.InvalidInput),
        (401, b'{"error":"why"}', errors.Unauthenticated),
        (403, b'{"error":"why"}', errors.PermissionDenied),
        (404, b'{"error":"why"}', errors.ModelNotFound),
        (409, b"why", errors.InvalidInput),
        (413, b"why", errors.MessageTooLarge),
        (422, b'{"error":"why"}', errors.Quarantined),
        (422, b'{"detail":[{"msg":"why"}]}', errors.InvalidInput),
        (429, b'{"error":"why"}', errors.QueueFull),
        (500, b'{"error":"why"}', errors.InferenceFailed),
        (501, b'{"error":"why"}', errors.Unsupported),
        (502, b"<html>why</html>", errors.ConnectionLost),
        (503, b"why", errors.ModelNotReady),
        (504, b"why", errors.DeadlineExceeded),
        (599, b"why", errors.RequestError),
    ],
)
def test_http_statuses(
    infer: Callable[..., Any], status: int, body: bytes, kind: type[Exception]
) -> None:
    answer = reply(f"{status} No", body, "retry-after: 7")
    with scripted(saying(answer)) as port, pytest.raises(kind, match="why") as caught:
        infer(f"http://127.0.0.1:{port}")
    assert type(caught.value) is kind
    if isinstance(caught.value, errors.QueueFull):
        assert caught.value.retry_after == 7


def test_a_status_without_words(infer: Callable[..., Any]) -> None:
    with scripted(saying(reply("503 No"))) as port, pytest.raises(errors.ModelNotReady) as caught:
        infer(f"http://127.0.0.1:{port}")
    assert "503 and no words" in str(caught.value)


def test_a_server_that_is_none_of_the_protocol() -> None:
    answer = saying(reply("404 Not Found", b"nothing here"))
    with scripted(answer) as port, Client(f"http://127.0.0.1:{port}/somewhere/v2/") as client:
        assert not client.live()
        with pytest.raises(errors.MethodNotFound, match=r"is this a server of the Open Inf"):
            client.metadata()


@pytest.mark.parametrize(
    ("body", "ready"), [(b"", True), (b'{"ready":true}', True), (b'{"ready":false}', False)]
)
def test_a_server_that_says_no_with_the_status_200(body: bytes, ready: bool) -> None:
    answer = saying(reply(body=body))
    with scripted(answer) as port, Client(f"http://127.0.0.1:{port}") as client:
        assert client.ready() is ready
        assert client.model("m").ready() is ready


class Fixed(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Answers every method with one status, or with one message."""

    def __init__(self, code: int, words: str, message: bytes) -> None:
        self._code, self._words, self._message = code, words, message

    def service(self, details: Any) -> Any:
        def answer(request: bytes, context: Any) -> bytes:
            if self._code:
                code = next(c for c in grpc.StatusCode if c.value[0] == self._code)
                context.abort(code, self._words)
            return self._message

        return grpc.unary_unary_rpc_method_handler(answer)


@contextlib.contextmanager
def grpc_server(
    code: int = 0, words: str = "", message: bytes = b"", credentials: Any = None
) -> Iterator[str]:
    server = grpc.server(futures.ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((Fixed(code, words, message),))
    if credentials is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    try:
        yield f"grpc://127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


@pytest.mark.parametrize(
    ("code", "words", "kind"),
    [
        (GrpcCode.CANCELLED, "why", errors.Cancelled),
        (GrpcCode.UNKNOWN, "why", errors.InferenceFailed),
        (GrpcCode.INVALID_ARGUMENT, "why", errors.InvalidInput),
        (GrpcCode.DEADLINE_EXCEEDED, "why", errors.DeadlineExceeded),
        (GrpcCode.NOT_FOUND, "why", errors.ModelNotFound),
        (GrpcCode.ALREADY_EXISTS, "why", errors.RequestError),
        (GrpcCode.PERMISSION_DENIED, "why", errors.PermissionDenied),
        (GrpcCode.RESOURCE_EXHAUSTED, "why", errors.QueueFull),
        (GrpcCode.RESOURCE_EXHAUSTED, "beyond the limit of 3: why", errors.MessageTooLarge),
        (GrpcCode.FAILED_PRECONDITION, "why", errors.Quarantined),
        (GrpcCode.UNIMPLEMENTED, "why", errors.Unsupported),
        (GrpcCode.INTERNAL, "why", errors.InferenceFailed),
        (GrpcCode.UNAVAILABLE, "why", errors.ModelNotReady),
        (GrpcCode.UNAUTHENTICATED, "why", errors.Unauthenticated),
        (GrpcCode.NOT_FOUND, "", errors.ModelNotFound),
    ],
)
def test_grpc_statuses(
    infer: Callable[..., Any], code: GrpcCode, words: str, kind: type[Exception]
) -> None:
    with grpc_server(code, words) as url, pytest.raises(kind, match=words or "no words") as caught:
        infer(url)
    assert type(caught.value) is kind


def test_grpc_answers_that_are_none(infer: Callable[..., Any]) -> None:
    with grpc_server(message=b"\xff\xff") as url, pytest.raises(errors.InvalidAnswer):
        infer(url)
    large = grpc_server(message=b" " * MIB)
    with large as url, pytest.raises(errors.MessageTooLarge, match="max_answer_size"):
        infer(url, max_answer_size=1000)


def test_grpc_to_a_server_that_is_far_away(infer: Callable[..., Any]) -> None:
    """Connecting may take as long as the call: round trips add up, with TLS above all."""

    def pass_on(there: socket.socket, back: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := there.recv(65536):
                back.sendall(data)
            back.shutdown(socket.SHUT_WR)

    with grpc_server(message=b"") as url:
        port = int(url.rpartition(":")[2])

        def far(connection: socket.socket, request: bytes) -> None:
            threading.Event().wait(0.4)
            with socket.create_connection(("127.0.0.1", port)) as server:
                server.sendall(request)
                back = threading.Thread(target=pass_on, args=(server, connection))
                back.start()
                pass_on(connection, server)
                back.join()

        with scripted(far) as behind:
            assert dict(infer(f"grpc://127.0.0.1:{behind}")) == {}


def test_grpc_to_a_server_of_http_alone(infer: Callable[..., Any]) -> None:
    answer = saying(reply("400 Bad Request"))
    with scripted(answer) as port, pytest.raises(errors.ConnectionFailed):
        infer(f"grpc://127.0.0.1:{port}", timeout=30)


# -- what the caller gives ----------------------------------------------------------------------


def test_headers_go_with_every_call(infer: Callable[..., Any]) -> None:
    seen: list[bytes] = []

    def note(connection: socket.socket, request: bytes) -> None:
        seen.append(request)
        connection.sendall(reply(body=b'{"outputs":[]}'))

    with scripted(note) as port:
        url = f"http://127.0.0.1:{port}/base/"
        infer(url, timeout=30, headers={"Authorization": "Bearer t"})
    head = seen[0].lower()
    assert head.startswith(b"post /base/v2/models/m/infer http/1.1\r\n")
    assert b"\r\nauthorization: bearer t\r\n" in head
    assert b"\r\naccept-encoding: identity\r\n" in head
    assert b"\r\ngrpc-timeout: 30000000u\r\n" in head


@pytest.mark.parametrize(
    "headers", [{"x": "caf\u00e9"}, {"x": "a\r\nb: c"}, {"x y": "a"}, {"": "a"}, {"x": 3}]
)
@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_headers_that_cannot_be_sent(scheme: str, headers: Any) -> None:
    with pytest.raises(errors.ConfigurationError, match="header"):
        Client(f"{scheme}://127.0.0.1", headers=headers)


def test_proxies_are_for_other_machines(
    infer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bytes] = []

    def note(connection: socket.socket, request: bytes) -> None:
        seen.append(request)
        connection.sendall(reply(body=b'{"outputs":[]}'))

    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with scripted(note) as proxy, scripted(saying(reply(body=b'{"outputs":[]}'))) as port:
        for name in ("http_proxy", "HTTP_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy}")
        for host in ("127.0.0.1", "localhost"):
            infer(f"http://{host}:{port}")
        assert seen == []
        infer("http://models.example")
        assert seen[0].startswith(b"POST http://models.example/v2/models/m/infer ")
        assert b"\r\nhost: models.example\r\n" in seen[0]
        monkeypatch.setenv("http_proxy", f"u%40x:p@127.0.0.1:{proxy}")
        infer("http://models.example:81")
        assert seen[1].startswith(b"POST http://models.example:81/v2/models/m/infer ")
        assert b"\r\nProxy-Authorization: Basic dUB4OnA=\r\n" in seen[1]


@pytest.mark.parametrize("timeout", ["5", 0, -1, float("nan"), [3]])
def test_a_timeout_that_is_none(timeout: Any) -> None:
    with pytest.raises(errors.InvalidInput, match="give seconds above 0"):
        Client("http://127.0.0.1:1", timeout=timeout)
    with pytest.raises(errors.InvalidInput, match="give seconds above 0"):
        Client("http://127.0.0.1:1").infer("m", X, timeout=timeout)


def test_a_closed_client_makes_no_calls() -> None:
    client = Client("http://127.0.0.1:1")
    client.close()
    with pytest.raises(RuntimeError, match="is closed"):
        client.infer("m", X)


@contextlib.contextmanager
def silent() -> Iterator[tuple[int, threading.Event]]:
    """A server that takes what comes and says nothing; the event is set when something has."""
    came = threading.Event()

    def take(connection: socket.socket, request: bytes) -> None:
        came.set()
        hang(connection, request)

    with scripted(take) as port:
        yield port, came


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_closing_a_client_cuts_its_calls(scheme: str) -> None:
    with silent() as (port, came), futures.ThreadPoolExecutor(1) as thread:
        client = Client(f"{scheme}://127.0.0.1:{port}", timeout=math.inf)
        call = thread.submit(client.infer, "m", X)
        assert came.wait(20)
        client.close()
        with pytest.raises(errors.ConnectionLost, match="this client was closed"):
            call.result(20)


@pytest.mark.parametrize("scheme", ["http", "grpc"])
async def test_closing_an_async_client_cuts_its_calls(scheme: str) -> None:
    with silent() as (port, came):
        client = AsyncClient(f"{scheme}://127.0.0.1:{port}", timeout=math.inf)
        call = asyncio.create_task(client.infer("m", X))
        assert await asyncio.to_thread(came.wait, 20)
        await client.close()
        with pytest.raises(errors.ConnectionLost, match="this client was closed"):
            await asyncio.wait_for(call, 20)


def test_a_forked_process_has_connections_of_its_own() -> None:
    code = """
import os, sys
from tidegate import Client
client = Client(sys.argv[1])
assert client.live()
if os.fork() == 0:
    assert client.live()
    os._exit(0)
assert os.wait()[1] == 0
assert client.live()
"""
    connections = []

    def note(connection: socket.socket, request: bytes) -> None:
        connections.append(connection)
        connection.sendall(reply())
        while connection.recv(65536):
            connection.sendall(reply())

    with scripted(note) as port:
        url = f"http://127.0.0.1:{port}"
        subprocess.run([sys.executable, "-c", code, url], check=True, timeout=60)
    assert len(connections) == 2


def test_an_async_client_belongs_to_one_loop() -> None:
    client = AsyncClient("http://127.0.0.1:1")
    assert not asyncio.run(client.live())
    with pytest.raises(RuntimeError, match="another event loop"):
        asyncio.run(client.live())


async def test_waiting_for_a_server_that_is_yet_to_come() -> None:
    port = free_port()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(reply())
        writer.close()

    async with AsyncClient(f"http://127.0.0.1:{port}") as client:
        with pytest.raises(errors.DeadlineExceeded, match=r"not ready after 0\.5 s: nobody"):
            await client.wait_ready(0.5)
        waiting = asyncio.create_task(client.wait_ready(30))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        async with await asyncio.start_server(answer, "127.0.0.1", port):
            await waiting


# -- a node that dies ---------------------------------------------------------------------------


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def slow_node(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ServedNode]:
    root = tmp_path_factory.mktemp("slow")
    models.slow(root / "slow.onnx")
    async with ServedNode(root) as served:
        yield served


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("scheme", ["http", "grpc"])
@pytest.mark.parametrize("kind", [Client, AsyncClient])
async def test_the_server_is_killed_in_the_middle(
    slow_node: ServedNode, scheme: str, kind: type[Client | AsyncClient]
) -> None:
    await slow_node.until_ready()
    await slow_node.until(lambda: not running(slow_node, "slow"))
    client: Any = kind(f"{scheme}://{slow_node.target}")
    long = {"x": np.full((1, 1), 3000, np.float32)}
    if kind is Client:
        call = asyncio.create_task(asyncio.to_thread(client.infer, "slow", long))
    else:
        call = asyncio.create_task(client.infer("slow", long))
    edge = psutil.Process((await slow_node.status())["edge"]["pid"])
    await slow_node.until(lambda: running(slow_node, "slow"))
    edge.kill()
    with pytest.raises(errors.ConnectionLost, match="broke off before its answer was whole"):
        await call
    if kind is Client:
        await asyncio.to_thread(client.wait_ready, 30)
        client.close()
    else:
        await client.wait_ready(30)
        await client.close()


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("scheme", ["http", "grpc"])
async def test_control_that_a_server_does_not_give(slow_node: ServedNode, scheme: str) -> None:
    async with AsyncClient(f"{scheme}://{slow_node.target}") as client:
        await client.wait_ready(30)
        with pytest.raises(errors.PermissionDenied):
            await client.load("slow")
        with pytest.raises(errors.PermissionDenied):
            await client.unload("slow")


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("scheme", ["http", "grpc"])
async def test_a_call_that_is_cancelled_is_cancelled_on_the_server(
    slow_node: ServedNode, scheme: str
) -> None:
    long = {"x": np.full((1, 1), 30_000, np.float32)}
    async with AsyncClient(f"{scheme}://{slow_node.target}") as client:
        await client.wait_ready(30)
        model = client.model("slow")

        await slow_node.until(lambda: not running(slow_node, "slow"))
        first = asyncio.create_task(model.infer({"x": np.full((1, 1), 1000, np.float32)}))
        await slow_node.until(lambda: running(slow_node, "slow"))
        queued = asyncio.create_task(model.infer(long))
        await asyncio.sleep(0.2)
        queued.cancel()
        with pytest.raises(asyncio.CancelledError):
            await queued
        await first
        # It would have been run now, for half a minute.
        await model.infer({"x": np.zeros((1, 1), np.float32)}, timeout=25)


@contextlib.contextmanager
def url_of(answer: bytes) -> Iterator[str]:
    with scripted(saying(answer)) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.mark.parametrize(
    "serving",
    [
        url_of(reply("400 Bad Request", b"why", "connection: close")),
        url_of(reply("500 Error", b"why", "connection: close")),
        grpc_server(GrpcCode.FAILED_PRECONDITION, "why"),
    ],
)
def test_a_model_that_cannot_be_loaded(serving: AbstractContextManager[str]) -> None:
    with serving as url, Client(url) as client:
        for call in (client.load, client.unload):
            with pytest.raises(errors.LoadFailed, match="why"):
                call("m")


@pytest.mark.parametrize(
    "serving",
    [
        url_of(reply("404 Not Found", b"nothing here", "connection: close")),
        grpc_server(GrpcCode.UNIMPLEMENTED, "nothing here"),
    ],
)
def test_a_server_without_the_extensions(serving: AbstractContextManager[str]) -> None:
    with serving as url, Client(url) as client:
        for call in (client.repository, client.statistics):
            with pytest.raises((errors.MethodNotFound, errors.Unsupported), match="nothing"):
                call()


# -- encrypted ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for localhost that no authority vouches for, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext",
         "subjectAltName=DNS:localhost,IP:127.0.0.1", "-out", certificate, "-keyout", key],
        check=True, capture_output=True,
    )  # fmt: skip
    return certificate, key


def test_https(infer: Callable[..., Any], certificate: tuple[Path, Path]) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    with scripted(saying(reply(body=b'{"outputs":[]}')), context) as port:
        url = f"https://localhost:{port}"
        with pytest.raises(errors.ServerUnreachable, match="certificate"):
            infer(url)
        assert dict(infer(url, ca_file=certificate[0])) == {}


def test_grpcs(infer: Callable[..., Any], certificate: tuple[Path, Path]) -> None:
    public, key = (path.read_bytes() for path in certificate)
    credentials = grpc.ssl_server_credentials([(key, public)])
    with grpc_server(message=b"", credentials=credentials) as url:
        secure = url.replace("grpc://127.0.0.1", "grpcs://localhost")
        with pytest.raises(errors.ServerUnreachable):
            infer(secure, timeout=30)
        assert dict(infer(secure, ca_file=certificate[0])) == {}


@pytest.mark.parametrize("scheme", ["https", "grpcs"])
@pytest.mark.parametrize("content", [None, "", "junk"])
def test_a_ca_file_that_is_none(
    infer: Callable[..., Any], tmp_path: Path, scheme: str, content: str | None
) -> None:
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_text(content)
    with pytest.raises(errors.ConfigurationError, match="ca_file"):
        infer(f"{scheme}://localhost:{free_port()}", ca_file=file)
