"""TLS towards clients: who is let in, and how certificates are renewed."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import httpx
import pytest
import trustme

from tests.edge.harness import Edge, call, message, running_edge
from tidegate.edge.trust import ServerTls

CA = trustme.CA()


def issued(ca: trustme.CA = CA, name: str = "localhost", **options: object) -> ServerTls:
    leaf = ca.issue_cert(name, "127.0.0.1", **options)  # type: ignore[arg-type]
    chain = b"".join(blob.bytes() for blob in leaf.cert_chain_pems)
    return ServerTls(chain, leaf.private_key_pem.bytes())


def pem(ca: trustme.CA = CA) -> bytes:
    return ca.cert_pem.bytes()


def secure_channel(port: int, ca: bytes | None = None) -> grpc.aio.Channel:
    credentials = grpc.ssl_channel_credentials(ca or pem())
    return grpc.aio.secure_channel(
        f"localhost:{port}", credentials, options=[("grpc.use_local_subchannel_pool", 1)]
    )


@pytest.fixture
async def secure(run_dir: Path) -> AsyncIterator[Edge]:
    async with running_edge(run_dir, tls=issued()) as running:
        await running.serve(m="a")
        yield running


def client_context(ca: trustme.CA = CA) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=pem(ca).decode())


async def test_clients_over_tls(secure: Edge) -> None:
    async with secure_channel(secure.port) as channel:
        assert (await call(channel, message()))["replica"] == "a"
    async with httpx.AsyncClient(verify=client_context(), trust_env=False) as client:
        answer = await client.post(f"https://localhost:{secure.port}/v2/models/m/infer", json={})
        assert (answer.status_code, answer.json()["replica"]) == (200, "a")
