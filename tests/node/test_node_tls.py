"""A node that speaks TLS: who is let in, renewal, gateways in front of it, commands beside it."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest

from tests import models
from tests.cli.conftest import ENVIRONMENT, tidegate
from tests.edge.certificates import CA, OTHER_CA, chain, key, leaf, pem, write
from tests.edge.test_tls import context, grpc_channel, presented
from tests.gateway.harness import ServedGateway, endpoints_of
from tests.node.harness import START, ServedNode
from tests.node.traffic import Traffic, grpc_messages
from tidegate import AsyncClient, serve
from tidegate.config.loading import load_node_config
from tidegate.config.node import NodeConfig
from tidegate.controller.local_address import local_address
from tidegate.edge.certificates import read_server_tls
from tidegate.errors import ConfigurationError
from tidegate.protocols.open_inference import MODEL_INFER

X = np.ones((1, 4), np.float32)
ROW = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}


class SecureNode(ServedNode):
    """A node with TLS; its folder holds ``server.crt`` and ``server.key``."""

    def __init__(self, repository: Path, folder: Path, *options: str) -> None:
        self.folder = folder
        write(folder, leaf())
        files = "--tls-certificate", str(folder / "server.crt"), "--tls-key"
        super().__init__(repository, *files, str(folder / "server.key"), *options)

    async def until_ready(self, model: str | None = None) -> None:
        """Wait until the edge knows it: not every client gets through."""
        async with asyncio.timeout(START):
            while not (await self.status())["edge"]["ready"]:  # noqa: ASYNC110 - over HTTP
                await asyncio.sleep(0.02)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    models.scale(tmp_path / "models/scale/1/model.onnx", 2.0)
    return tmp_path / "models"


@pytest.fixture
async def node(repository: Path, tmp_path: Path) -> AsyncIterator[SecureNode]:
    async with SecureNode(repository, tmp_path) as node:
        yield node


async def infer(port: int, verify: ssl.SSLContext) -> httpx.Response:
    async with httpx.AsyncClient(verify=verify, trust_env=False) as http:
        return await http.post(f"https://localhost:{port}/v2/models/scale/infer", json=ROW)


async def over_grpc(channel: grpc.aio.Channel) -> bytes:
    method: Callable[..., Any] = channel.unary_unary(MODEL_INFER)
    return bytes(await method(grpc_messages("scale")[0], timeout=60))


async def test_a_node_that_speaks_tls(node: SecureNode) -> None:
    answer = await infer(node.port, context())
    assert answer.json()["outputs"][0]["data"] == [2, 4, 6, 8]
    async with grpc_channel(node.port) as channel:
        assert await over_grpc(channel)
    with pytest.raises(httpx.ConnectError):
        await infer(node.port, context(OTHER_CA))
    assert (await node.get("/v2/health/live"))[0] == 0, "nothing is answered in the clear"
    async with httpx.AsyncClient(verify=context(), trust_env=False) as http:
        page = await http.get(
            f"https://localhost:{node.port}/models/scale", headers={"accept": "text/html"}
        )
    assert f"https://localhost:{node.port}/models/scale" in page.text
    assert (await node.status())["address"] == f"https://{node.target}"
    here = "--port", str(node.port), "--run-dir", str(node.run_dir)
    said = await asyncio.to_thread(tidegate, "status", *here)
    assert f"https://{node.target}  ready" in said.stdout.decode()
    data = '{"x": [[1, 2, 3, 4]]}'
    said = await asyncio.to_thread(tidegate, "infer", "scale", "--data", data, "--json", *here)
    assert (said.returncode, b"[[2.0,4.0,6.0,8.0]]" in said.stdout) == (0, True), said


async def test_the_load_generator_says_that_it_speaks_no_tls(
    node: SecureNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ENVIRONMENT, "TIDEGATE_RUN_DIR", str(node.run_dir))
    said = await asyncio.to_thread(tidegate, "bench", node.target, "-m", "scale")
    assert said.returncode == 78, said
    assert b"speaks TLS" in said.stderr


async def test_renewal_without_a_failed_call(node: SecureNode) -> None:
    before = await presented(node.port)
    done = failed = 0
    stop = asyncio.Event()

    async def call_on_and_on(renewed: bool) -> None:
        nonlocal done, failed
        while not stop.is_set():
            async with grpc_channel(node.port) as channel:
                for _ in range(1 if renewed else 10_000):
                    try:
                        await over_grpc(channel)
                        done += 1
                    except grpc.aio.AioRpcError:
                        failed += 1
                    if stop.is_set():
                        return

    # Half of them with a connection for each call, so that some are made while it changes.
    callers = [asyncio.create_task(call_on_and_on(i % 2 == 0)) for i in range(4)]
    certificate, secret = node.folder / "server.crt", node.folder / "server.key"
    new = leaf()
    certificate.write_bytes(chain(new))
    await node.until(lambda: "is not that of the certificate" in node.output)
    assert await presented(node.port) == before, "what was there before stays in effect"
    assert "is not that of" in (await node.status())["problems"][0]
    secret.write_bytes(key(new))
    await node.until(lambda: "read anew" in node.output)
    while await presented(node.port) == before:  # noqa: ASYNC110 - of another process
        await asyncio.sleep(0.01)
    await node.until(lambda: "well again" in node.output)
    assert (await node.status())["problems"] == []
    at = done
    await node.until(lambda: done > at + 20)
    stop.set()
    await asyncio.gather(*callers)
    assert failed == 0


async def test_clients_with_certificates_and_a_gateway_that_has_one(
    repository: Path, tmp_path: Path
) -> None:
    (tmp_path / "ca.crt").write_bytes(pem())
    (tmp_path / "clients.crt").write_bytes(pem(OTHER_CA))
    certificate, secret = write(tmp_path, leaf(OTHER_CA, "gateway"), "gateway")
    document = {
        "registration": {"lease": 10.0},
        "endpoint_tls": {
            "ca": str(tmp_path / "ca.crt"),
            "certificate": str(certificate),
            "key": str(secret),
        },
    }
    async with ServedGateway(document) as gateway:
        join = "--join", f"http://127.0.0.1:{gateway.admin_port}"
        vouch = "--tls-client-ca", str(tmp_path / "clients.crt")
        async with SecureNode(repository, tmp_path, *vouch, *join) as node:
            with pytest.raises((httpx.TransportError, ssl.SSLError)):
                await infer(node.port, context())
            answer = await infer(node.port, context(shown=leaf(OTHER_CA)))
            assert answer.status_code == 200
            async with grpc_channel(node.port, shown=leaf(OTHER_CA)) as channel:
                assert await over_grpc(channel)
            here = "--port", str(node.port), "--run-dir", str(node.run_dir)
            said = await asyncio.to_thread(tidegate, "infer", "scale", "--data", "{}", *here)
            assert said.returncode == 78, said
            assert b"wants a certificate of its clients" in said.stderr

            def healthy(status: dict[str, Any]) -> bool:
                found = endpoints_of(status, "scale")
                return [e["health"] for e in found.values()] == ["healthy"]

            await gateway.eventually(healthy)
            await gateway.led("scale")
            async with Traffic(gateway) as traffic:
                await traffic.more(200)
                # It is renewed behind the gateway, too, which need not hear of it.
                write(node.folder, leaf())
                await node.until(lambda: "read anew" in node.output)
                await traffic.more(200)
            assert traffic.failed == 0, traffic.failures


async def test_a_gateway_that_is_told_of_the_node(node: SecureNode, tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_bytes(pem(CA))
    document = {
        "models": {"scale": {"endpoints": [f"localhost:{node.port}"]}},
        "endpoint_tls": {"ca": str(tmp_path / "ca.crt")},
    }
    async with ServedGateway(document) as gateway:
        await gateway.healthy("scale")
        async with AsyncClient(f"http://{gateway.target}") as client:
            assert (await client.infer("scale", {"x": X}))["y"].tolist() == [[2.0] * 4]


@pytest.mark.parametrize("mutual", [False, True])
def test_serve(repository: Path, tmp_path: Path, mutual: bool) -> None:
    certificate, secret = write(tmp_path, leaf())
    (tmp_path / "ca.crt").write_bytes(pem())
    more: dict[str, Any] = {"tls_client_ca": tmp_path / "ca.crt"} if mutual else {}
    with serve(repository, tls_certificate=certificate, tls_key=secret, **more) as server:
        assert server.url.startswith("https://127.0.0.1:")
        if mutual:
            with pytest.raises(ConfigurationError, match="wants a certificate"):
                server.client  # noqa: B018 - raises
            shown = context(shown=leaf())
            answer = httpx.get(f"{server.url}/v2/health/ready", verify=shown, trust_env=False)
            assert answer.status_code == 200
        else:
            assert server.model("scale").infer(X)["y"].tolist() == [[2.0] * 4]


def test_files_that_are_of_no_use(repository: Path, tmp_path: Path) -> None:
    certificate, _ = write(tmp_path, leaf())
    _, other = write(tmp_path, leaf(), "other")
    said = tidegate(
        "serve", str(repository), "--tls-certificate", str(certificate), "--tls-key", str(other),
        "--port", "0", "--admin-port", "0", "--run-dir", str(tmp_path / "r"),
    )  # fmt: skip
    assert said.returncode == 78, said
    assert b"is not that of the certificate" in said.stderr
    assert not list((tmp_path / "r").rglob("*.sock")), "nothing was started"


@pytest.mark.parametrize("key", ["tls_certificate", "tls_key", "tls_client_ca"])
def test_settings_that_go_together(tmp_path: Path, key: str) -> None:
    with pytest.raises(ConfigurationError, match=f"go together, and here is only {key}"):
        load_node_config(tmp_path, {}, {key: "file"})
    (tmp_path / "tidegate.yaml").write_text("tls_certificate: a.crt\n")
    config, _ = load_node_config(tmp_path, {"TIDEGATE_TLS_KEY": "a.key"}, {})
    assert config.tls_certificate == tmp_path / "a.crt", "from several places"


def test_by_which_name_this_machine_calls_it(tmp_path: Path) -> None:
    def called(issued: Any, host: str = "127.0.0.1") -> tuple[str, str | None]:
        certificate, secret = write(tmp_path, issued)
        config = NodeConfig(host=host, tls_certificate=certificate, tls_key=secret)
        found = local_address(config, 8000)
        return found.url("grpc"), found.problem

    assert called(leaf(), "0.0.0.0") == ("grpcs://127.0.0.1:8000", None)
    assert called(CA.issue_cert("localhost")) == ("grpcs://localhost:8000", None)
    _, problem = called(CA.issue_cert("node.example"))
    assert problem is not None
    assert "a certificate for node.example" in problem
    (tmp_path / "server.crt").unlink()
    gone = NodeConfig(tls_certificate=tmp_path / "server.crt", tls_key=tmp_path / "server.key")
    assert "cannot be read" in (local_address(gone, 8000).problem or "")
    assert local_address(NodeConfig(), 8000).url("http") == "http://127.0.0.1:8000"
    assert read_server_tls(*write(tmp_path, leaf())).mutual is False
