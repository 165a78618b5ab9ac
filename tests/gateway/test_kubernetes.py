"""EndpointSlices as a source of endpoints, with an API server of the test's own."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import trustme

from tests.gateway.following import Following
from tests.gateway.kubernetes_server import PATH, ApiServer, slice_of
from tests.gateway.waiting import Waits
from tidegate.errors import ConfigurationError
from tidegate.gateway.discovery.kubernetes import EndpointSlices, of_service
from tidegate.gateway.discovery.kubernetes_api import Cluster

SEVEN, EIGHT, NINE = "10.0.0.7:8000", "10.0.0.8:8000", "10.0.0.9:8000"
SELECTOR = of_service("resnet")


@pytest_asyncio.fixture
async def server() -> AsyncIterator[ApiServer]:
    async with ApiServer() as server:
        server.put(slice_of("resnet-a", ["10.0.0.7"]))
        yield server


@pytest.fixture
def waits() -> Waits:
    return Waits()


def source_at(server: ApiServer, waits: Waits) -> EndpointSlices:
    return EndpointSlices(lambda: Cluster(server.url, "ml"), SELECTOR, sleep=waits)


async def test_a_list_and_then_a_watch(server: ApiServer, waits: Waits) -> None:
    async with Following(source_at(server, waits)) as seen:
        await seen.until_known(SEVEN)
        await server.until_watched()
        server.put(slice_of("resnet-b", ["10.0.0.8"]))
        await seen.until_known(SEVEN, EIGHT)
        server.put(slice_of("resnet-a", ["10.0.0.9"]))
        await seen.until_known(EIGHT, NINE)
        server.delete("resnet-b")
        await seen.until_known(NINE)
        server.delete("resnet-a")
        await seen.until_known()
        await seen.until_problem("service-name=resnet: there are no such EndpointSlices")
        server.put(slice_of("resnet-c", ["10.0.0.7"]))
        await seen.until_known(SEVEN)
        await seen.until_problem(None)
    path, params, _ = server.requests[0]
    assert path == f"{PATH}ml/endpointslices"
    assert params == {"labelSelector": "kubernetes.io/service-name=resnet", "limit": "100"}
    _, params, _ = server.requests[1]
    assert params["allowWatchBookmarks"] == params["watch"] == "true"
    assert params["resourceVersion"] == "101"
    assert server.lists == 1


async def test_a_watch_that_ends_goes_on_where_it_was(server: ApiServer, waits: Waits) -> None:
    async with Following(source_at(server, waits)) as seen:
        await server.until_watched()
        server.bookmark()
        server.end_watches()
        await waits.go_on()
        await server.until_watched(2)
        _, params, _ = server.requests[-1]
        assert params["resourceVersion"] == str(server.version)
        server.put(slice_of("resnet-b", ["10.0.0.8"]))
        await seen.until_known(SEVEN, EIGHT)
    assert server.lists == 1
    assert seen.problems == []


@pytest.mark.parametrize("as_event", [True, False])
async def test_a_version_that_is_gone(server: ApiServer, waits: Waits, as_event: bool) -> None:
    server.gone_as_event = as_event
    async with Following(source_at(server, waits)) as seen:
        await server.until_watched()
        server.end_watches()
        await waits.reached()
        server.put(slice_of("resnet-a", ["10.0.0.8"]))
        server.compact()
        await waits.go_on()
        await waits.go_on()
        await seen.until_known(EIGHT)
        await server.until_watched(3)
        assert server.lists == 2
    assert seen.problems == []


async def test_a_thousand_endpoints_in_ten_slices_and_four_pages(waits: Waits) -> None:
    async with ApiServer() as server:
        server.largest_page = 3
        for n in range(10):
            server.put(slice_of(f"s{n}", [f"10.0.{n}.{m}" for m in range(1, 101)]))
        async with Following(source_at(server, waits)) as seen:
            await seen.until(lambda: len(seen.known or ()) == 1000)
            await server.until_watched()
            assert (len(seen.sets), server.lists) == (1, 4)
            for n in range(10):
                server.put(slice_of(f"s{n}", [f"10.1.{n}.{m}" for m in range(1, 101)]))
            await seen.until(
                lambda: all(address.startswith("10.1.") for address in seen.addresses or [""])
            )
            assert len(seen.known or ()) == 1000


async def test_a_list_that_is_gone_between_its_pages(server: ApiServer, waits: Waits) -> None:
    server.largest_page = 1
    server.put(slice_of("resnet-b", ["10.0.0.8"]))
    server.oldest = server.version + 1
    async with Following(source_at(server, waits)) as seen:
        await waits.reached()
        server.oldest = 0
        await waits.go_on()
        await seen.until_known(SEVEN, EIGHT)
    assert seen.problems == []


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (401, "does not accept no token, which it was shown (401): because"),
        (403, "does not let the gateway list and watch endpointslices of discovery.k8s.io in ml"),
        (404, "answered 404: because"),
        (429, "answered 429: because"),
        (500, "answered 500: because"),
        (302, "answered 302: because"),
    ],
)
async def test_an_api_server_that_refuses(
    server: ApiServer, waits: Waits, status: int, says: str
) -> None:
    server.refusal = (status, "because\n\x1b[31m")
    async with Following(source_at(server, waits)) as seen:
        await seen.until_problem(says)
        assert str(seen.problem).isprintable()
        assert seen.sets == [()]
        for _ in range(8):
            await waits.go()
        assert waits.asked[-1] >= 15
        server.refusal = None
        await waits.go_on()
        await seen.until_known(SEVEN)
        await seen.until_problem(None)
        await server.until_watched()
        server.refusal = (status, "because")
        server.end_watches()
        await waits.go_on()
        await seen.until_problem(says)
        assert seen.addresses == [SEVEN]


async def test_a_token_that_may_list_but_not_watch(server: ApiServer, waits: Waits) -> None:
    server.watch_refusal = (403, "no watch")
    async with Following(source_at(server, waits)) as seen:
        await seen.until_problem("no watch")
        for _ in range(6):
            await waits.go()
        assert seen.addresses == [SEVEN]
        assert len(seen.problems) == 1
        assert waits.asked[-1] >= 8


async def test_a_server_that_dies_and_comes_back(server: ApiServer, waits: Waits) -> None:
    async with Following(source_at(server, waits)) as seen:
        await seen.until_known(SEVEN)
        await server.until_watched()
        await server.stop()
        await seen.until_problem("the last known endpoints stay")
        await waits.go()
        assert "cannot be reached" in str(seen.problem)
        assert seen.addresses == [SEVEN]
        server.put(slice_of("resnet-a", ["10.0.0.8"]))
        await server.start()
        await waits.go_on()
        await seen.until_known(EIGHT)
        await seen.until_problem(None)
        assert len(seen.sets) == 2


async def test_a_watch_that_hangs_is_begun_anew(
    server: ApiServer, waits: Waits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tidegate.gateway.discovery.kubernetes_api._GRACE", 0.1)
    source = source_at(server, waits)
    source.watch_seconds = 0.1
    async with Following(source) as seen:
        await server.until_watched()
        server.watching.clear()  # which will never hear of anything again
        server.put(slice_of("resnet-a", ["10.0.0.8"]))
        await waits.go_on()
        await seen.until_known(EIGHT)
    assert server.lists == 1
    assert seen.problems == []


async def test_a_server_that_accepts_and_never_answers(
    server: ApiServer, waits: Waits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tidegate.gateway.discovery.kubernetes_api._PATIENCE", 0.5)
    server.silent = True
    async with Following(source_at(server, waits)) as seen:
        await seen.until_problem("did not answer in time")
        server.silent = False
        await waits.go_on()
        await seen.until_known(SEVEN)


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "is not JSON"),
        (b"<html>", "is not JSON"),
        (b"[]", "no object of JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"{}", "metadata of an EndpointSlice is a NoneType"),
        (b'{"metadata": {"resourceVersion": "1"}, "items": [1]}', "an item of an EndpointSlice"),
        (b'{"metadata": {"resourceVersion": "1"}, "items": [{"a": ', "is not JSON"),
        (b"\xff" * 100, "is not JSON"),
    ],
)
async def test_a_malformed_list(server: ApiServer, waits: Waits, raw: bytes, says: str) -> None:
    server.raw = raw
    async with Following(source_at(server, waits)) as seen:
        await seen.until_problem(says)
        server.raw = None
        await waits.go_on()
        await seen.until_known(SEVEN)
        await seen.until_problem(None)


@pytest.mark.parametrize(
    ("sent", "says"),
    [
        (b"what?\n", "is not JSON"),
        (b"[]\n", "no object of JSON"),
        (b'{"type": "ADDED"}\n', "without type or object"),
        (b'{"type": "ADDED", "object": {}}\n', "metadata of an EndpointSlice"),
        (b'{"type": "EXPLODED", "object": {"metadata": {"resourceVersion": "1"}}}\n', "EXPLODED"),
        (b'{"type": "ERROR", "object": {"code": 500, "message": "etcd"}}\n', "ended: etcd"),
        (b"x" * (5 * 2**20), "more than 4194304 bytes"),
    ],
)
async def test_a_malformed_event(server: ApiServer, waits: Waits, sent: bytes, says: str) -> None:
    async with Following(source_at(server, waits)) as seen:
        await server.until_watched()
        server.send(sent)
        await seen.until_problem(says)
        assert seen.addresses == [SEVEN]
        await waits.go_on()
        await seen.until_problem(None)
        await server.until_watched(2)
        server.put(slice_of("resnet-a", ["10.0.0.8"]))
        await seen.until_known(EIGHT)


async def test_an_event_in_pieces(server: ApiServer, waits: Waits) -> None:
    async with Following(source_at(server, waits)) as seen:
        await server.until_watched()
        watching, server.watching = server.watching, set()
        server.put(slice_of("resnet-a", ["10.0.0.8"]))
        server.watching = watching
        _, line = server.history[-1]
        for n in range(0, len(line), 7):
            server.send(line[n : n + 7])
        await seen.until_known(EIGHT)


async def test_too_many_endpoints(server: ApiServer, waits: Waits) -> None:
    async with Following(source_at(server, waits)) as seen:
        await server.until_watched()
        for n in range(11):
            pods = [f"10.{n}.{m >> 8}.{m & 255}" for m in range(1000)]
            server.put(slice_of(f"s{n}", pods))
        await seen.until_problem("more than 10000 endpoints")
        assert len(seen.known or ()) <= 10_000


async def test_the_token_is_read_for_every_request_and_the_ca_counts(
    tmp_path: Path, waits: Waits
) -> None:
    ca = trustme.CA()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1").configure_cert(tls)
    ca.cert_pem.write_to_path(str(tmp_path / "ca.crt"))
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "other.crt"))
    (tmp_path / "token").write_text("first\n")
    (tmp_path / "namespace").write_text("ml\n")
    async with ApiServer(tls) as server:
        server.put(slice_of("resnet-a", ["10.0.0.7"]))
        environ = {
            "KUBERNETES_SERVICE_HOST": "127.0.0.1",
            "KUBERNETES_SERVICE_PORT": str(server.port),
        }
        own = Cluster.own(environ, folder=tmp_path)
        assert own.namespace == "ml"
        async with Following(EndpointSlices(lambda: own, SELECTOR, sleep=waits)) as seen:
            await server.until_watched()
            (tmp_path / "token").write_text("second")
            server.end_watches()
            await waits.go_on()
            await server.until_watched(2)
            assert seen.addresses == [SEVEN]
        tokens = [headers["authorization"] for _, _, headers in server.requests]
        assert tokens == ["Bearer first", "Bearer first", "Bearer second"]
        for other in (tmp_path / "other.crt", None):
            strange = Cluster(server.url, "ml", tmp_path / "token", other)
            asked = len(server.requests)
            source = EndpointSlices(lambda cluster=strange: cluster, SELECTOR, sleep=waits)  # type: ignore[misc]
            async with Following(source) as seen:
                await seen.until_problem("cannot be reached")
                assert "certificate" in str(seen.problem).lower()
            assert len(server.requests) == asked


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "No such file"), ("", "holds no token"), ("a b", "no token"), ("ä", "no token")],
)
async def test_a_token_that_cannot_be_read(
    server: ApiServer, waits: Waits, tmp_path: Path, content: str | None, says: str
) -> None:
    token = tmp_path / "token"
    if content is not None:
        token.write_text(content)
    source = EndpointSlices(lambda: Cluster(server.url, "ml", token), SELECTOR, sleep=waits)
    async with Following(source) as seen:
        await seen.until_problem(says)
        token.write_text("right")
        await waits.go_on()
        await seen.until_known(SEVEN)


async def test_no_token_in_the_clear(waits: Waits, tmp_path: Path) -> None:
    cluster = Cluster("http://10.255.255.1:8001", "ml", tmp_path / "token")
    async with Following(EndpointSlices(lambda: cluster, SELECTOR, sleep=waits)) as seen:
        await seen.until_problem("would get the token unencrypted")


async def test_a_ca_that_is_none(waits: Waits, tmp_path: Path) -> None:
    (tmp_path / "ca").write_text("nothing")
    for ca in (tmp_path / "ca", tmp_path / "missing"):
        cluster = Cluster("https://127.0.0.1:1", "ml", None, ca)
        async with Following(EndpointSlices(lambda c=cluster: c, SELECTOR, sleep=waits)) as seen:  # type: ignore[misc]
            await seen.until_problem("holds no certificates")


async def test_outside_of_a_cluster(waits: Waits, tmp_path: Path) -> None:
    def own() -> Cluster:
        return Cluster.own({}, folder=tmp_path)

    with pytest.raises(ConfigurationError, match="no Kubernetes API here"):
        own()
    async with Following(EndpointSlices(own, SELECTOR, sleep=waits)) as seen:
        await seen.until_problem("no Kubernetes API here")
        assert seen.sets == [()]


def test_the_address_of_a_cluster_with_ipv6(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("t")
    own = Cluster.own({"KUBERNETES_SERVICE_HOST": "fd00::1"}, folder=tmp_path)
    assert (own.server, own.namespace) == ("https://[fd00::1]:443", "default")
    assert Cluster.own({"KUBERNETES_SERVICE_HOST": "a"}, "ml", tmp_path).namespace == "ml"
