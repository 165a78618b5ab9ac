"""``tidegate gateway`` with TLS, keys and limits: its files as they change or are wrong."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import ssl
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import trustme

from tests.edge.certificates import CA, OTHER_CA, leaf, pem, server_tls, write
from tests.edge.fake_server import FakeServer
from tests.edge.harness import call, message, running_edge, until
from tests.edge.test_tls import context, der, grpc_channel, presented
from tests.gateway.harness import ServedGateway, endpoints_of
from tests.node.harness import fetch
from tidegate import AsyncClient
from tidegate.edge.certificates import read_server_tls, valid_until
from tidegate.errors import Unauthenticated

A, B = "a" * 32, "b" * 32


def put_keys(folder: Path, *lines: str) -> Path:
    """Replace the file of keys at once."""
    new = folder / "keys.new"
    new.write_text("\n".join(lines))
    new.chmod(0o600)
    return new.replace(folder / "keys")


def document(folder: Path, address: str, **more: Any) -> dict[str, Any]:
    certificate, key = write(folder, leaf())
    return {
        "models": {"m": {"endpoints": [{"address": address, "tls": False}]}},
        "tls": {"certificate": str(certificate), "key": str(key)},
        "api_keys": {"file": str(put_keys(folder, f"team-a {A}"))},
        **more,
    }


@contextlib.asynccontextmanager
async def guarded(folder: Path, **more: Any) -> AsyncIterator[ServedGateway]:
    async with FakeServer("a") as server:
        gateway = ServedGateway(document(folder, server.address, **more), wait_ready=False)
        async with gateway:
            await gateway.healthy()
            yield gateway


async def told(gateway: ServedGateway, words: str | None) -> None:
    """Wait until ``/status`` tells what is wrong with certificates and keys."""

    def says(status: dict[str, Any]) -> bool:
        found = [s["problem"] for s in status["sources"] if s["source"].startswith("certificates")]
        return found == [] if words is None else bool(found) and words in found[0]

    await gateway.eventually(says)


async def code_of(gateway: ServedGateway, key: str, shown: trustme.LeafCert | None = None) -> str:
    async with grpc_channel(gateway.port, shown=shown) as channel:
        try:
            await call(channel, message(), x_api_key=key)
        except grpc.aio.AioRpcError as error:
            return str(error.code().name)
        return "OK"


def becomes(ask: Callable[[], Any], wanted: object) -> Any:
    async def is_so() -> bool:
        return bool(await ask() == wanted)

    return until(is_so)


async def test_clients_come_in_with_a_key_over_tls(tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_bytes(pem())
    async with guarded(tmp_path) as gateway:
        url = f"https://localhost:{gateway.port}"
        async with AsyncClient(url, ca_file=tmp_path / "ca.crt") as client:
            assert await client.ready()
            with pytest.raises(Unauthenticated, match="x-api-key"):
                await client.model("m").metadata()
        async with httpx.AsyncClient(verify=context(), trust_env=False) as http:
            answer = await http.post(
                f"{url}/v2/models/m/infer", content=b"{}", headers={"authorization": f"Bearer {A}"}
            )
            assert answer.json()["headers"]["x-tidegate-key"] == "team-a"
            # Where the model is served is told to callers.
            found = await http.get(f"{url}/v2/models/m/endpoints", headers={"x-api-key": A})
            assert found.status_code == 200
            assert (await http.get(f"{url}/v2/models/m/endpoints")).status_code == 401
            for path in ("/status", "/debug/balancing", "/nodes", "/metrics"):
                assert (await http.get(url + path, headers={"x-api-key": A})).status_code == 404
        # The admin port speaks in the clear, on loopback, and tells no secret.
        assert A not in str(await gateway.status())


async def test_certificates_and_keys_are_taken_up_as_they_change(tmp_path: Path) -> None:
    async with guarded(tmp_path) as gateway:
        stop, errors, done = asyncio.Event(), list[str](), 0

        async def calls() -> None:
            nonlocal done
            async with grpc_channel(gateway.port) as channel:
                while not stop.is_set():
                    try:
                        await call(channel, message(), x_api_key=A)
                        done += 1
                    except grpc.aio.AioRpcError as error:
                        errors.append(str(error))

        async def more_calls() -> None:
            before = done
            await until(lambda: reached(lambda: done > before + 20 or bool(errors)))

        working = [asyncio.create_task(calls()) for _ in range(2)]
        await more_calls()
        paths = write(tmp_path, leaf())
        renewed = der(read_server_tls(*paths))
        await becomes(lambda: presented(gateway.port), renewed)
        await more_calls()
        # A certificate that came without its key changes nothing, and is told.
        write(tmp_path, leaf(), "other")
        (tmp_path / "other.crt").replace(paths[0])
        await told(gateway, "is not that of the certificate")
        assert await presented(gateway.port) == renewed
        # Keys change all the same: both are let in while both are there.
        put_keys(tmp_path, f"team-a {A}", f"team-a {B}")
        await becomes(lambda: code_of(gateway, B), "OK")
        (tmp_path / "other.key").replace(paths[1])
        await told(gateway, None)
        await becomes(lambda: presented(gateway.port), der(read_server_tls(*paths)))
        await more_calls()
        stop.set()
        await asyncio.gather(*working)
        assert errors == []
        put_keys(tmp_path, f"team-a {B}")
        await becomes(lambda: code_of(gateway, A), "UNAUTHENTICATED")
        (tmp_path / "keys").chmod(0o644)
        await told(gateway, "chmod 600")
        assert await code_of(gateway, B) == "OK"
        assert written_in(gateway.run_dir).isdisjoint({A, B})


async def reached(condition: Callable[[], bool]) -> bool:
    return condition()


def written_in(directory: Path) -> set[str]:
    """The keys that stand in any file of a run directory."""
    found: set[str] = set()
    for place, _, names in os.walk(directory):
        for name in names:
            path = Path(place) / name
            if path.is_file():
                found |= set(re.findall("(a{32}|b{32})", path.read_text(errors="replace")))
    return found


async def test_a_controller_that_comes_back_finds_keys_and_certificates(tmp_path: Path) -> None:
    async with guarded(tmp_path) as gateway:
        before = await presented(gateway.port)
        gateway.kill_controller()
        assert gateway.process is not None
        await gateway.process.wait()
        assert await code_of(gateway, A) == "OK"
        assert await code_of(gateway, B) == "UNAUTHENTICATED"
        put_keys(tmp_path, f"team-b {B}")  # nobody looks
        assert await code_of(gateway, A) == "OK"
        await gateway.serve()
        await becomes(lambda: code_of(gateway, B), "OK")
        assert await code_of(gateway, A) == "UNAUTHENTICATED"
        assert await presented(gateway.port) == before


async def test_files_of_no_use_are_refused_before_anything_starts(tmp_path: Path) -> None:
    old = write(tmp_path, leaf(valid=-1), "old")
    open_to_all = tmp_path / "open"
    open_to_all.write_text(f"team-a {A}")
    open_to_all.chmod(0o644)
    refusals: list[tuple[dict[str, Any], str]] = [
        ({"tls": {"certificate": "absent", "key": "absent"}}, "cannot be read: No such file"),
        ({"tls": {"certificate": str(old[0]), "key": str(old[1])}}, "renew it"),
        ({"api_keys": {"file": str(open_to_all)}}, "run chmod 600"),
        ({"rate_limits": {"per_key": "5/s"}}, "say with api_keys which there are"),
    ]
    for wrong, words in refusals:
        gateway = ServedGateway({"models": {}, **wrong}, wait_ready=False)
        with pytest.raises(RuntimeError) as caught:
            async with gateway:
                raise AssertionError("it started")
        assert words in " ".join(str(caught.value).split())
        assert "Traceback" not in str(caught.value)
        assert gateway.processes() == []


async def test_limits_and_clients_certificates(tmp_path: Path) -> None:
    (tmp_path / "clients.crt").write_bytes(pem(OTHER_CA))
    certificate, key = write(tmp_path, leaf())
    async with guarded(
        tmp_path,
        tls={
            "certificate": str(certificate),
            "key": str(key),
            "client_ca": str(tmp_path / "clients.crt"),
        },
        rate_limits={"per_key": {"per_second": 0.01, "burst": 3}},
    ) as gateway:
        with pytest.raises((httpx.TransportError, ssl.SSLError)):
            async with httpx.AsyncClient(verify=context(), trust_env=False) as http:
                await http.get(f"https://localhost:{gateway.port}/v2/health/live")
        known = context(shown=leaf(OTHER_CA))
        async with httpx.AsyncClient(verify=known, trust_env=False) as http:
            url = f"https://localhost:{gateway.port}/v2/models/m/infer"
            answers = [
                await http.post(url, content=b"{}", headers={"x-api-key": A}) for _ in range(5)
            ]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
        assert answers[-1].headers["retry-after"] == "100"
        assert await code_of(gateway, B, leaf(OTHER_CA)) == "UNAUTHENTICATED"
        admin = f"http://127.0.0.1:{gateway.admin_port}/metrics"
        page = (await asyncio.to_thread(fetch, admin))[1].decode()
        assert 'tidegate_edge_refused_total{reason="key"} 1' in page
        assert 'tidegate_edge_refused_total{reason="key_limit"} 2' in page
        expiry = valid_until(certificate.read_bytes()).timestamp()
        told_expiry = re.search("^tidegate_edge_certificate_expiry.* (.*)$", page, re.MULTILINE)
        assert told_expiry is not None
        assert float(told_expiry[1]) == pytest.approx(expiry, abs=1)


async def test_status_says_why_an_address_is_not_believed(tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_bytes(pem())
    tls = server_tls(addresses=["10.0.0.1"])
    with tempfile.TemporaryDirectory(prefix="tg", dir="/tmp") as folder:  # for Unix sockets
        async with running_edge(Path(folder), tls=tls) as node:
            await node.serve(m="a")
            address = f"127.0.0.1:{node.port}"
            settings: dict[str, Any] = {
                "models": {"m": {"endpoints": [address]}},
                "endpoint_tls": {"ca": str(tmp_path / "ca.crt")},
            }
            async with ServedGateway(settings, wait_ready=False) as gateway:
                await gateway.eventually(
                    lambda status: (
                        "is for localhost, 10.0.0.1, and not for 127.0.0.1"
                        in endpoints_of(status, "m")[address]["reason"]
                    )
                )
                settings["endpoint_tls"]["server_name"] = "localhost"
                await gateway.edit(settings)
                await gateway.healthy()
                assert (await gateway.ask())["replica"] == "a"
                node.change(tls=server_tls(client_ca=OTHER_CA))
                await node.publish()
                await gateway.eventually(
                    lambda status: (
                        "it may want a certificate" in endpoints_of(status, "m")[address]["reason"]
                    )
                )


async def test_a_gateway_does_not_call_itself(tmp_path: Path) -> None:
    """It would be healthy as long as the other is, and every call, and check, might go round."""
    async with FakeServer("a") as server:
        settings: dict[str, Any] = {"models": {"m": {"endpoints": [server.address]}}}
        async with ServedGateway(settings) as gateway:
            own = f"127.0.0.1:{gateway.port}"
            settings["models"]["m"]["endpoints"].append(own)
            settings["models"]["n"] = {"endpoints": [own]}
            await gateway.edit(settings)
            status = await gateway.eventually(
                lambda status: any(own in each["source"] for each in status["sources"])
            )
            assert list(endpoints_of(status, "m")) == [server.address]
            assert endpoints_of(status, "n") == {}
            # A page whose site lets its own name lead here is not told all this.
            async with httpx.AsyncClient(trust_env=False) as browser:
                for path in ("/status", "/debug/balancing"):
                    url = f"http://127.0.0.1:{gateway.admin_port}{path}"
                    answer = await browser.get(url, headers={"host": "evil.example"})
                    assert answer.status_code == 403
            assert (await gateway.ask())["replica"] == "a"


async def test_nodes_that_speak_tls(tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_bytes(pem())
    with tempfile.TemporaryDirectory(prefix="tg", dir="/tmp") as folder:  # for Unix sockets
        async with running_edge(Path(folder), tls=server_tls(CA)) as node:
            await node.serve(m="a")
            settings = {
                "models": {"m": {"endpoints": [f"localhost:{node.port}"]}},
                "endpoint_tls": {"ca": str(tmp_path / "ca.crt")},
            }
            async with ServedGateway(settings) as gateway:
                await gateway.healthy()
                assert (await gateway.ask())["replica"] == "a"
