"""TLS towards clients: who is let in, and how certificates are renewed."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import grpc
import httpx
import pytest
import trustme

from tests.edge.certificates import CA, OTHER_CA, chain, key, leaf, pem, server_tls
from tests.edge.harness import MIB, Edge, Rest, call, failure, message, running_edge, until
from tidegate.edge.trust import ApiKey, ApiKeys, ServerTls
from tidegate.errors import EdgeFailed

REST = "/v2/models/m/infer"


def grpc_channel(
    port: int, ca: trustme.CA = CA, shown: trustme.LeafCert | None = None
) -> grpc.aio.Channel:
    own = (key(shown), chain(shown)) if shown is not None else (None, None)
    return grpc.aio.secure_channel(
        f"localhost:{port}",
        grpc.ssl_channel_credentials(pem(ca), *own),
        options=[
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", -1),
        ],
    )


def context(ca: trustme.CA = CA, shown: trustme.LeafCert | None = None) -> ssl.SSLContext:
    found = ssl.create_default_context(cadata=pem(ca).decode())
    if shown is not None:
        shown.configure_cert(found)
    return found


async def https(
    port: int, ca: trustme.CA = CA, shown: trustme.LeafCert | None = None, body: bytes = b"{}"
) -> httpx.Response:
    async with httpx.AsyncClient(verify=context(ca, shown), trust_env=False) as client:
        return await client.post(f"https://localhost:{port}{REST}", content=body)


async def refused(port: int, shown: trustme.LeafCert | None = None, ca: trustme.CA = CA) -> None:
    """Neither gRPC nor HTTPS gets through."""
    async with grpc_channel(port, ca, shown) as channel:
        code, _ = await failure(call(channel, message(), timeout=30))
        assert code == grpc.StatusCode.UNAVAILABLE
    with pytest.raises((httpx.TransportError, ssl.SSLError)):
        await https(port, ca, shown)


async def presented(port: int) -> bytes:
    """The certificate that a new client is shown."""
    _, writer = await asyncio.open_connection("localhost", port, ssl=context())
    shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return bytes(shown)


def der(tls: ServerTls) -> bytes:
    first = tls.certificate.decode().split("-----END CERTIFICATE-----")[0]
    return ssl.PEM_cert_to_DER_cert(first + "-----END CERTIFICATE-----")


@pytest.fixture
async def secure(run_dir: Path) -> AsyncIterator[Edge]:
    async with running_edge(run_dir, tls=server_tls()) as running:
        await running.serve(m="a")
        yield running


async def test_clients_over_tls(secure: Edge) -> None:
    async with grpc_channel(secure.port) as channel:
        assert (await call(channel, message()))["replica"] == "a"
        assert len(await call(channel, message(payload=4 * MIB), x_do=f"big {8 * MIB}")) == 8 * MIB
        code, words = await failure(call(channel, message("absent")))
        assert (code.name, words) == ("NOT_FOUND", "model/absent is not served here")
    answer = await https(secure.port, body=bytes(4 * MIB))
    assert (answer.status_code, answer.json()["size"]) == (200, 4 * MIB)
    assert answer.http_version == "HTTP/1.1"


async def test_the_message_limit_holds_over_tls(secure: Edge) -> None:
    secure.change(max_message_size=MIB)
    await secure.publish()
    async with grpc_channel(secure.port) as channel:
        code, words = await failure(call(channel, message(payload=2 * MIB)))
    assert (code.name, words) == (
        "RESOURCE_EXHAUSTED", f"the message is larger than the limit of {MIB} bytes",
    )  # fmt: skip


async def test_who_does_not_know_the_authority_does_not_come_in(secure: Edge) -> None:
    await refused(secure.port, ca=OTHER_CA)


async def test_who_speaks_in_the_clear_gets_nothing(secure: Edge) -> None:
    client = Rest(secure.port)
    with pytest.raises(OSError):
        await client.call("GET", "/v2/health/live")
    await client.close()
    code, _ = await secure.failure(timeout=30)
    assert code == "UNAVAILABLE"


@pytest.mark.parametrize(
    ("version", "accepted"),
    [("TLSv1_1", False), ("TLSv1_2", True), ("TLSv1_3", True)],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_versions_of_tls(secure: Edge, version: str, accepted: bool) -> None:
    old = context()
    old.set_ciphers("ALL:@SECLEVEL=0")
    old.minimum_version = old.maximum_version = ssl.TLSVersion[version]
    old.set_alpn_protocols(["h2", "http/1.1"])
    try:
        _, writer = await asyncio.open_connection("localhost", secure.port, ssl=old)
    except (ssl.SSLError, ConnectionError):
        assert not accepted
        return
    assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == "h2"
    writer.close()
    assert accepted


async def test_an_expired_certificate_is_the_clients_to_refuse(secure: Edge) -> None:
    """The controller reads none that has expired; one may expire while nobody renews it."""
    expired = leaf(valid=-1)
    secure.change(tls=ServerTls(chain(expired), key(expired)))
    await secure.publish()
    await refused(secure.port)


async def test_clients_must_show_a_certificate_that_is_known(run_dir: Path) -> None:
    log = run_dir / "access.log"
    tls = server_tls(client_ca=CA)
    async with running_edge(run_dir, tls=tls, access_log=log) as edge:
        await edge.serve(m="a")
        known = leaf(name="robot.example")
        async with grpc_channel(edge.port, shown=known) as channel:
            answer = await call(channel, message(), x_forwarded_client_cert="Subject=root")
            assert answer["replica"] == "a"
            assert "x-forwarded-client-cert" not in answer["headers"]
        assert (await https(edge.port, shown=known)).status_code == 200
        for wrong in (None, leaf(OTHER_CA), leaf(valid=-1)):
            await refused(edge.port, wrong)
        # An authority that is no longer trusted: its clients are not, those of another one are.
        edge.change(tls=replace(tls, client_ca=pem(OTHER_CA)))
        await edge.publish()
        await refused(edge.port, known)
        assert (await https(edge.port, shown=leaf(OTHER_CA))).status_code == 200
        edge.change(tls=replace(tls, require_client_certificate=False))
        await edge.publish()
        assert (await https(edge.port)).status_code == 200
        await refused(edge.port, leaf(OTHER_CA))
    assert "CN=robot.example" in log.read_text()


async def test_renewal_under_load_fails_no_call(secure: Edge) -> None:
    """New connections are shown the new certificate, and those that are open stay open."""
    stop = asyncio.Event()
    done, errors = 0, list[str]()

    async def more_than(goal: int) -> bool:
        return done > goal or bool(errors)

    async def grpc_calls() -> None:
        nonlocal done
        async with grpc_channel(secure.port) as channel:
            while not stop.is_set():
                try:
                    await call(channel, message())
                    done += 1
                except grpc.aio.AioRpcError as error:
                    errors.append(str(error))

    async def rest_calls(client: httpx.AsyncClient) -> None:
        nonlocal done
        while not stop.is_set():
            try:
                answer = await client.post(f"https://localhost:{secure.port}{REST}", content=b"{}")
                assert answer.status_code == 200
                done += 1
            except httpx.HTTPError as error:
                errors.append(repr(error))

    async with httpx.AsyncClient(verify=context(), trust_env=False) as client:
        workers = [asyncio.create_task(grpc_calls()) for _ in range(4)]
        workers += [asyncio.create_task(rest_calls(client)) for _ in range(4)]
        for _ in range(10):
            before, tls = done, server_tls()
            secure.change(tls=tls)
            await secure.publish()
            assert await presented(secure.port) == der(tls)
            await until(partial(more_than, before + 100))
        stop.set()
        await asyncio.gather(*workers)
    assert errors == []
    stats = await secure.envoy.admin.get("/stats?filter=downstream_cx_drain_close")
    assert b"http.clients.downstream_cx_drain_close: 0" in stats


async def test_what_envoy_refuses_changes_nothing(secure: Edge) -> None:
    """The files are checked before; if Envoy knows better, calls go on as they did."""
    before = await presented(secure.port)
    wrong = replace(server_tls(), key=key(leaf()))
    with pytest.raises(EdgeFailed, match="refused its configuration") as caught:
        await secure.control.publish(secure.topology(), replace(secure.settings, tls=wrong))
    assert "PRIVATE" not in str(caught.value)
    assert await presented(secure.port) == before
    renewed = server_tls()
    secure.change(tls=renewed)
    await secure.publish()
    assert await presented(secure.port) == der(renewed)


async def test_tls_is_turned_on_and_off(run_dir: Path) -> None:
    async with running_edge(run_dir) as edge:
        await edge.serve(m="a")
        assert (await edge.rest("POST", REST, b"{}")).status == 200
        edge.change(tls=server_tls())
        await edge.publish()
        assert (await https(edge.port)).status_code == 200
        edge.change(tls=None)
        await edge.publish()
        assert (await edge.rest("POST", REST, b"{}")).status == 200


async def test_keys_and_secrets_over_tls(secure: Edge) -> None:
    secret = "s" * 32
    secure.change(api_keys=ApiKeys((ApiKey("team", secret),)))
    await secure.publish()
    async with grpc_channel(secure.port) as channel:
        code, _ = await failure(call(channel, message()))
        assert code.name == "UNAUTHENTICATED"
        assert (await call(channel, message(), x_api_key=secret))["replica"] == "a"
    private = secure.settings.tls
    assert private is not None
    dump = await secure.envoy.admin.get("/config_dump")
    body = private.key.splitlines()[1]
    assert body not in dump
    assert secret.encode() not in dump
    for path in secure.run_dir.iterdir():
        if path.is_file():
            assert body not in path.read_bytes()


async def test_an_edge_is_replaced_under_tls(run_dir: Path) -> None:
    """A hot restart: the new process fetches its certificate before it takes a connection."""
    keys = ApiKeys((ApiKey("team", "s" * 32),))
    async with running_edge(run_dir, tls=server_tls(), drain_timeout=1.0, api_keys=keys) as edge:
        await edge.serve(m="a")
        stop, errors, done = asyncio.Event(), list[str](), 0

        async def calls() -> None:
            nonlocal done
            async with grpc_channel(edge.port) as channel:
                while not stop.is_set():
                    try:
                        await call(channel, message(), x_api_key="s" * 32)
                        done += 1
                    except grpc.aio.AioRpcError as error:
                        errors.append(str(error))

        async def fifty_more(goal: int) -> bool:
            return done > goal + 50 or bool(errors)

        working = [asyncio.create_task(calls()) for _ in range(4)]
        await until(partial(fifty_more, done))
        old = edge.envoy
        tls = server_tls()
        edge.change(threads=edge.settings.threads + 1, tls=tls)
        await edge.publish()
        edge.envoy = await old.hot_restart(edge.settings)
        async with asyncio.timeout(20):
            await old.wait()
        assert await presented(edge.port) == der(tls)
        await until(partial(fifty_more, done))
        stop.set()
        await asyncio.gather(*working)
        assert errors == []
