"""What is found out about endpoints before a gateway starts, of real servers and of odd ones."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from tests import models
from tests.edge.certificates import CA, OTHER_CA, leaf, pem, server_tls, write
from tests.edge.harness import running_edge
from tests.node.harness import START, ServedNode
from tests.ports import free_port
from tidegate.config.gateway import GatewayConfig
from tidegate.gateway.survey import Survey, survey
from tidegate.protocols.open_inference import MODEL_READY
from tidegate.protocols.tensorflow_serving import GET_MODEL_STATUS

PATIENCE = 30.0
"""Seconds for those who do answer."""
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ServedNode]:
    folder = tmp_path_factory.mktemp("survey")
    models.scale(folder / "m/1/model.onnx", 2.0)
    async with ServedNode(folder) as node:
        yield node


async def look(models: dict[str, Any], **more: Any) -> Survey:
    config = GatewayConfig.model_validate({"models": models, **more})
    return await survey(config, find=2.0, ask=PATIENCE)


async def one(name: str, endpoint: dict[str, Any], **more: Any) -> tuple[str, str]:
    """The state of the only endpoint, and why."""
    found = await look({name: {"endpoints": [endpoint]}}, **more)
    ((answer,),) = (pool.answers for pool in found.pools)
    return answer.state, answer.words


@pytest.mark.parametrize(
    "protocol", ["tidegate", "open-inference", "tensorflow-serving", "seldon"]
)
async def test_a_node_of_ours_speaks_everything(node: ServedNode, protocol: str) -> None:
    assert await one("m", {"address": node.target, "protocol": protocol}) == ("ready", "")


@pytest.mark.parametrize("protocol", ["tidegate", "open-inference", "tensorflow-serving"])
async def test_a_model_that_is_not_there(node: ServedNode, protocol: str) -> None:
    state, words = await one("other", {"address": node.target, "protocol": protocol})
    assert (state, "it has no model 'other'" in words) == ("wrong", True), words


@contextlib.asynccontextmanager
async def foreign(method: str, answer: bytes | grpc.StatusCode) -> AsyncIterator[str]:
    """A server over gRPC that has one method; yields its address."""

    async def handle(request: bytes, context: Any) -> bytes:
        if isinstance(answer, bytes):
            return answer
        await context.abort(answer, "words")
        raise AssertionError

    class Handler(grpc.GenericRpcHandler):  # type: ignore[misc]
        def service(self, details: Any) -> Any:
            return (
                grpc.unary_unary_rpc_method_handler(handle) if details.method == method else None
            )

    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Handler(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


AVAILABLE, LOADING = b"\x0a\x04\x08\x01\x10\x1e", b"\x0a\x04\x08\x01\x10\x14"
OIP, TFS = ("open-inference", MODEL_READY), ("tensorflow-serving", GET_MODEL_STATUS)


@pytest.mark.parametrize(
    ("spoken", "answer", "state", "says"),
    [
        (OIP, b"\x08\x01", "ready", ""),
        (OIP, b"", "not ready", "is not ready"),
        (OIP, b"\xff", "wrong", "no message of the protocol"),
        (OIP, grpc.StatusCode.NOT_FOUND, "wrong", "no model 'm': words"),
        (OIP, grpc.StatusCode.RESOURCE_EXHAUSTED, "not ready", "RESOURCE_EXHAUSTED: words"),
        (TFS, AVAILABLE, "ready", ""),
        (TFS, LOADING, "not ready", "no version"),
    ],
)
async def test_other_servers(
    spoken: tuple[str, str], answer: bytes | grpc.StatusCode, state: str, says: str
) -> None:
    protocol, method = spoken
    async with foreign(method, answer) as address:
        found, words = await one("m", {"address": address, "protocol": protocol})
        assert (found, says in words) == (state, True), words
        for other in {"tidegate", "open-inference", "tensorflow-serving"} - {protocol}:
            found, words = await one("m", {"address": address, "protocol": other})
            said = f"it answers as {protocol}, not as {other}"
            assert (found, words) == ("wrong", said)
        assert (await one("m", {"address": address, "protocol": "seldon"}))[0] == "ready"


@pytest.mark.parametrize(
    ("path", "document", "protocol"),
    [
        ("/v2", {"name": "triton"}, "open-inference"),
        ("/v1/models/m", {"model_version_status": []}, "tensorflow-serving"),
    ],
)
@pytest.mark.parametrize("declared", ["tidegate", "open-inference", "tensorflow-serving"])
async def test_the_port_of_rest(
    path: str, document: dict[str, Any], protocol: str, declared: str
) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = (await reader.readline()).split()[1:2]
        body, status = json.dumps(document).encode(), b"200 OK"
        if asked != [path.encode()]:
            body, status = b"", b"404 Not Found"
        head = b"HTTP/1.1 %s\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
        writer.write(head % (status, len(body)) + body)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        state, words = await one("m", {"address": f"127.0.0.1:{port}", "protocol": declared})
    assert (state, f"answers as the REST API of {protocol}" in words) == ("wrong", True), words
    assert f"`rest: {port}`" in words


@pytest.mark.parametrize(
    ("path", "state"), [("/v2/health/live", "ready"), ("/elsewhere", "not ready")]
)
async def test_another_path_for_health(node: ServedNode, path: str, state: str) -> None:
    _, port = node.target.split(":")
    for endpoint in (
        {"address": node.target},
        {"address": node.target, "rest": int(port), "protocol": "seldon"},
    ):
        found = await look({"other": {"endpoints": [endpoint], "health_path": path}})
        ((answer,),) = (pool.answers for pool in found.pools)
        assert (answer.state, path in answer.words) == (state, state != "ready")


async def test_all_at_once_and_nobody_is_waited_for() -> None:
    closed = free_port()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        places = [f"127.0.0.1:{port}", f"127.0.0.1:{closed}"]
        models = {f"m{n}": {"endpoints": places} for n in range(20)}
        async with asyncio.timeout(PATIENCE):
            found = await survey(GatewayConfig.model_validate({"models": models}))
    assert len(found.pools) == 20
    for pool in found.pools:
        words = {e.address: a.words for e, a in zip(pool.endpoints, pool.answers, strict=True)}
        assert "no answer to GET" in words[f"127.0.0.1:{port}"]
        assert "refused" in words[f"127.0.0.1:{closed}"].lower()


async def test_time_that_is_over(node: ServedNode) -> None:
    config = GatewayConfig.model_validate({"models": {"m": {"endpoints": [node.target]}}})
    found = await survey(config, ask=0.0)
    assert [a.state for a in found.pools[0].answers] == ["not asked"]


async def test_sources_that_find_nothing(tmp_path: Path) -> None:
    nodefile = tmp_path / "nodefile.txt"
    found = await look(
        {"m": {"endpoints": [{"file": str(tmp_path / "gone")}]}}, nodefile=str(nodefile)
    )
    told = dict(found.problems)
    assert "cannot be read" in told[f"nodefile {nodefile}"]
    assert told[f"file {tmp_path / 'gone'}"]
    assert [(pool.name, pool.endpoints) for pool in found.pools] == [("m", ())]


async def test_endpoints_with_tls(tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_bytes(pem(CA))
    (tmp_path / "other.crt").write_bytes(pem(OTHER_CA))
    certificate, key = write(tmp_path, leaf())
    models.scale(tmp_path / "models/m/1/model.onnx", 2.0)
    tls = "--tls-certificate", str(certificate), "--tls-key", str(key)
    vouch = "--tls-client-ca", str(tmp_path / "other.crt")
    write(tmp_path, leaf(OTHER_CA), "me")
    mine = {"certificate": str(tmp_path / "me.crt"), "key": str(tmp_path / "me.key")}
    async with ServedNode(tmp_path / "models", *tls, *vouch, wait_ready=False) as node:
        async with asyncio.timeout(START):
            while not (await node.status())["edge"]["ready"]:  # noqa: ASYNC110 - over HTTP
                await asyncio.sleep(0.02)
        ca = {"ca": str(tmp_path / "ca.crt")}
        for protocol in ("tidegate", "open-inference"):
            at = {"address": node.target, "protocol": protocol}
            assert await one("m", at, endpoint_tls={**ca, **mine}) == ("ready", "")
            named = {**ca, **mine, "server_name": "localhost"}
            assert await one("m", at, endpoint_tls=named) == ("ready", "")
            state, _ = await one("m", at, endpoint_tls=ca)
            assert state in ("wrong", "not ready"), "no certificate was shown"
            elsewhere = {**ca, **mine, "server_name": "else.example"}
            state, words = await one("m", at, endpoint_tls=elsewhere)
            assert state == "wrong"
            assert "is for localhost, 127.0.0.1, and not for else.example" in words
            state, words = await one("m", at, endpoint_tls={"ca": str(tmp_path / "other.crt")})
            assert (state, "its certificate: " in words) == ("wrong", True)
            state, words = await one("m", {**at, "tls": True})
            assert (state, "passes with a private" in words) == ("wrong", True)
            state, words = await one("m", at)
            assert state != "ready"


async def test_a_certificate_for_another_address(tmp_path: Path) -> None:
    """An address must stand in the certificate; ``server_name`` is the way for those without."""
    (tmp_path / "ca.crt").write_bytes(pem(CA))
    folder = tmp_path / "n"
    folder.mkdir()
    async with running_edge(folder, tls=server_tls(addresses=["10.0.0.1"])) as node:
        await node.serve(m="a")
        at = {"address": f"127.0.0.1:{node.port}"}
        ca = {"ca": str(tmp_path / "ca.crt")}
        state, words = await one("m", at, endpoint_tls=ca)
        assert state == "wrong"
        assert "is for localhost, 10.0.0.1, and not for 127.0.0.1" in words
        assert "endpoint_tls.server_name" in words
        _, words = await one("m", at, endpoint_tls={**ca, "server_name": "localhost"})
        assert "TLS" not in words
