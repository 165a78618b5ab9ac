"""Clients that show a certificate: to a gateway and to nodes that want one, all of them real."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from tests import models
from tests.cli.conftest import tidegate
from tests.edge.certificates import CA, OTHER_CA, key, leaf, pem, write
from tests.edge.harness import until
from tests.gateway.harness import ServedGateway, endpoints_of
from tests.node.harness import ServedNode
from tests.ports import free_port
from tidegate import AsyncClient, Client, errors
from tidegate.client.address import Address
from tidegate.client.connection import Connection
from tidegate.client.trust import tls_context

X = {"x": np.ones((1, 4), np.float32)}
SCHEMES = pytest.mark.parametrize("scheme", ["https", "grpcs"])
shared = pytest.mark.asyncio(loop_scope="module")


@dataclass
class Guarded:
    """A gateway and a node behind it, which lets in who shows a certificate of ``OTHER_CA``.

    The gateway lets in those of ``CA`` as well.
    """

    gateway: ServedGateway
    node: ServedNode
    folder: Path

    def of(self, name: str | None) -> dict[str, Any]:
        """Arguments of a client that shows the certificate of this name."""
        known: dict[str, Any] = {"ca_file": self.folder / "ca.crt", "timeout": 20.0}
        if name is not None:
            known["certificate_file"] = self.folder / f"{name}.crt"
            known["key_file"] = self.folder / f"{name}.key"
        return known


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guarded(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Guarded]:
    folder = tmp_path_factory.mktemp("guarded")
    models.scale(folder / "models/scale/1/model.onnx", 2.0)
    (folder / "ca.crt").write_bytes(pem(CA))
    (folder / "clients.crt").write_bytes(pem(OTHER_CA))
    (folder / "all.crt").write_bytes(pem(OTHER_CA) + pem(CA))
    certificate, secret = map(str, write(folder, leaf(), "server"))
    write(folder, leaf(OTHER_CA, "me"), "me")
    write(folder, leaf(CA, "stranger"), "stranger")
    write(folder, leaf(OTHER_CA, "late", valid=-1), "late")
    vouch = str(folder / "clients.crt")
    document = {
        "tls": {"certificate": certificate, "key": secret, "client_ca": str(folder / "all.crt")},
        "endpoint_tls": {
            "ca": str(folder / "ca.crt"),
            "certificate": str(folder / "me.crt"),
            "key": str(folder / "me.key"),
        },
        "registration": {},
    }
    async with ServedGateway(document, wait_ready=False) as gateway:
        tls = "--tls-certificate", certificate, "--tls-key", secret, "--tls-client-ca", vouch
        join = "--join", f"http://127.0.0.1:{gateway.admin_port}"
        async with ServedNode(folder / "models", *tls, *join, wait_ready=False) as node:

            def healthy(status: dict[str, Any]) -> bool:
                found = endpoints_of(status, "scale")
                return [e["health"] for e in found.values()] == ["healthy"]

            await gateway.eventually(healthy)
            await gateway.led("scale")
            yield Guarded(gateway, node, folder)


def infer(url: str, **options: Any) -> list[Any]:
    with Client(url, **options) as client:
        return list(client.infer("scale", X)["y"].tolist())


async def infer_async(url: str, **options: Any) -> list[Any]:
    async with AsyncClient(url, **options) as client:
        return list((await client.infer("scale", X))["y"].tolist())


@shared
@SCHEMES
async def test_who_is_let_in(guarded: Guarded, scheme: str) -> None:
    for server in (guarded.node, guarded.gateway):
        url = f"{scheme}://{server.target}"
        assert await asyncio.to_thread(infer, url, **guarded.of("me")) == [[2.0] * 4]
        assert await infer_async(url, **guarded.of("me")) == [[2.0] * 4]


@shared
@SCHEMES
@pytest.mark.parametrize(
    ("name", "hint"),
    [
        (None, "give certificate_file and key_file"),
        ("stranger", "show one that it trusts: .*stranger.crt"),
        ("late", "show one that it trusts: .*late.crt"),
    ],
)
async def test_who_is_not(guarded: Guarded, scheme: str, name: str | None, hint: str) -> None:
    url = f"{scheme}://{guarded.node.target}"
    with pytest.raises(errors.ServerUnreachable, match=f"does not let this client in.*{hint}"):
        await asyncio.to_thread(infer, url, **guarded.of(name))
    with pytest.raises(errors.ServerUnreachable, match=f"does not let this client in.*{hint}"):
        await infer_async(url, **guarded.of(name))


@shared
@SCHEMES
@pytest.mark.parametrize(
    ("host", "ca", "hint"),
    [
        ("127.0.0.1", "clients.crt", "give ca_file the certificates of who vouches for it"),
        ("127.0.0.1", None, "give ca_file the certificates of who vouches for it"),
        ("127.0.0.2", "ca.crt", "give the URL with a name, or an address"),
    ],
)
async def test_whom_a_client_does_not_believe(
    guarded: Guarded, scheme: str, host: str, ca: str | None, hint: str
) -> None:
    forward = await asyncio.start_server(
        lambda reader, writer: _passed_on(reader, writer, guarded.node.port), "127.0.0.2"
    )
    port = guarded.node.port if host == "127.0.0.1" else forward.sockets[0].getsockname()[1]
    url = f"{scheme}://{host}:{port}"
    options = {**guarded.of("me"), "ca_file": None if ca is None else guarded.folder / ca}
    async with forward:
        with pytest.raises(errors.ServerUnreachable, match=f"is not believed.*{hint}"):
            await asyncio.to_thread(infer, url, **options)
        with pytest.raises(errors.ServerUnreachable, match=f"is not believed.*{hint}"):
            await infer_async(url, **options)


async def _passed_on(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int
) -> None:
    """Stand between a client and a node."""
    there, back = await asyncio.open_connection("127.0.0.1", port)

    async def carry(source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while piece := await source.read(2**16):
                to.write(piece)
        to.close()

    await asyncio.gather(carry(reader, back), carry(there, writer))


@shared
@SCHEMES
async def test_files_that_are_renewed(guarded: Guarded, scheme: str, tmp_path: Path) -> None:
    """New connections show what the files hold now; while that is of no use, what they held."""
    for name in ("ca.crt", "stranger.crt", "stranger.key"):
        (tmp_path / name.replace("stranger", "own")).write_bytes(
            (guarded.folder / name).read_bytes()
        )
    options: dict[str, Any] = {
        "ca_file": tmp_path / "ca.crt",
        "certificate_file": tmp_path / "own.crt",
        "key_file": tmp_path / "own.key",
    }
    url = f"{scheme}://{guarded.node.target}"
    with Client(url, **options) as client:
        async with AsyncClient(url, **options) as awaited:

            async def refused() -> None:
                with pytest.raises(errors.ServerUnreachable, match="does not let this client in"):
                    await asyncio.to_thread(client.infer, "scale", X)
                with pytest.raises(errors.ServerUnreachable, match="does not let this client in"):
                    await awaited.infer("scale", X)

            async def served() -> bool:
                try:
                    await asyncio.to_thread(client.infer, "scale", X)
                    await awaited.infer("scale", X)
                except errors.ServerUnreachable:
                    return False
                return True

            await refused()
            # A certificate without its key, as it is for a moment when both are renewed.
            (tmp_path / "own.crt").write_bytes((guarded.folder / "me.crt").read_bytes())
            await refused()
            (tmp_path / "own.key").write_bytes((guarded.folder / "me.key").read_bytes())
            await until(served)
            (tmp_path / "own.key").unlink()
            assert await served()


@shared
@SCHEMES
async def test_direct_mode_shows_it_to_endpoints(guarded: Guarded, scheme: str) -> None:
    url = f"{scheme}://{guarded.gateway.target}"

    assert await asyncio.to_thread(direct, url, guarded.of("me")) == "new"
    # Who is not let in there goes by way of the gateway, which trusts more.
    assert await asyncio.to_thread(direct, url, guarded.of("stranger")) == "refused"
    async with AsyncClient(url, direct=True, **guarded.of("me")) as client:
        assert (await client.infer("scale", X))["y"].tolist() == [[2.0] * 4]
        assert [each.state for each in client.model("scale").endpoints()] == ["new"]


def direct(url: str, options: dict[str, Any]) -> str:
    with Client(url, direct=True, **options) as client:
        assert client.infer("scale", X)["y"].tolist() == [[2.0] * 4]
        return client.model("scale").endpoints()[0].state


@shared
async def test_the_command_line(guarded: Guarded) -> None:
    def run(*options: str) -> tuple[int, bytes]:
        said = tidegate("infer", "scale", "-d", '{"x": [[1, 2, 3, 4]]}', "--json", *options)
        return said.returncode, said.stdout + said.stderr

    folder = guarded.folder
    mine = "--certificate-file", str(folder / "me.crt"), "--key-file", str(folder / "me.key")
    there = "--url", f"grpcs://{guarded.gateway.target}", "--ca-file", str(folder / "ca.crt")
    status, said = await asyncio.to_thread(run, *there, *mine)
    assert (status, b"[[2.0,4.0,6.0,8.0]]" in said) == (0, True), said
    status, said = await asyncio.to_thread(run, *there)
    assert (status, b"give certificate_file and key_file" in said) == (69, True), said
    here = "--port", str(guarded.node.port), "--run-dir", str(guarded.node.run_dir)
    status, said = await asyncio.to_thread(run, *here, *mine)
    assert (status, b"[[2.0,4.0,6.0,8.0]]" in said) == (0, True), said


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with certificates, keys and what may be taken for them."""
    own = leaf()
    write(tmp_path, own, "own")
    write(tmp_path, leaf(), "other")
    (tmp_path / "junk").write_text("junk")
    sealed = load_pem_private_key(key(own), None).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
    )
    (tmp_path / "sealed").write_bytes(sealed)
    return tmp_path


@SCHEMES
@pytest.mark.parametrize("call", [infer, lambda *a, **k: asyncio.run(infer_async(*a, **k))])
@pytest.mark.parametrize(
    ("certificate", "secret", "says"),
    [
        ("gone", "own.key", "certificate_file: .*gone cannot be read: No such file"),
        ("own.crt", "gone", "key_file: .*gone cannot be read: No such file"),
        ("own.crt", ".", "key_file: .* cannot be read: Is a directory"),
        ("own.crt", "other.key", "key_file: .* is not that of the certificate in .*own.crt"),
        ("own.crt", "sealed", "key_file: .*sealed is encrypted; take its password off"),
        ("own.crt", "junk", "certificate_file: .*own.crt and .*junk hold no"),
        ("junk", "own.key", "certificate_file: .*junk and .*own.key hold no"),
        ("own.key", "own.crt", "certificate_file: .*own.key and .*own.crt hold no"),
    ],
)
def test_files_that_are_of_no_use(
    files: Path, scheme: str, call: Callable[..., Any], certificate: str, secret: str, says: str
) -> None:
    with pytest.raises(errors.ConfigurationError, match=says):
        call(
            f"{scheme}://localhost:{free_port()}",
            certificate_file=files / certificate,
            key_file=files / secret,
        )


def test_contexts_are_shared_while_they_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = Connection(Address.parse("https://localhost"))
    usual = tls_context(connection)
    assert tls_context(Connection(Address.parse("https://other.example"))) is usual
    (tmp_path / "ca.crt").write_bytes(pem(CA))
    with monkeypatch.context() as changed:
        changed.setenv("SSL_CERT_FILE", str(tmp_path / "ca.crt"))
        assert len(tls_context(connection).get_ca_certs()) == 1
    assert tls_context(connection) is usual


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize("given", ["certificate_file", "key_file"])
def test_files_that_go_together(kind: Callable[..., Any], given: str) -> None:
    with pytest.raises(errors.ConfigurationError, match="go together: give both"):
        kind("https://localhost", **{given: "a"})
