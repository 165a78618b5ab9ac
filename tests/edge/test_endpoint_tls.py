"""TLS towards endpoints: which machines a gateway believes, and what it shows them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme

from tests.edge.certificates import CA, OTHER_CA, chain, key, leaf, pem, server_tls
from tests.edge.gateway_harness import Gateway
from tests.edge.harness import INFER, Edge, Load, running_edge, until
from tidegate.edge.pools import Server
from tidegate.edge.trust import ClientTls, ServerTls
from tidegate.protocols import open_inference


def place(node: Edge, name: str = "localhost", **more: Any) -> Server:
    return Server(f"127.0.0.1:{node.port}", secure=True, name=f"{name}:{node.port}", **more)


def shown(by: trustme.LeafCert, ca: trustme.CA = CA, name: str | None = None) -> ClientTls:
    return ClientTls(pem(ca), chain(by), key(by), name)


@contextlib.asynccontextmanager
async def between(
    run_dir: Path, node: ServerTls, theirs: Mapping[str, Any] | None = None, **ours: Any
) -> AsyncIterator[tuple[Gateway, Edge]]:
    """A gateway in front of a node that speaks TLS."""
    (run_dir / "n").mkdir()
    (run_dir / "g").mkdir()
    async with running_edge(run_dir / "n", tls=node, **(theirs or {})) as behind:
        await behind.serve(m="a")
        async with Gateway(run_dir / "g", **ours) as gateway:
            yield gateway, behind


async def refuses(gateway: Gateway) -> None:
    """No call gets through, and each fails quickly."""
    for _ in range(3):
        async with asyncio.timeout(30):
            assert (await gateway.failure())[0] == "UNAVAILABLE"


async def test_calls_and_checks_go_over_tls(run_dir: Path) -> None:
    async with between(run_dir, server_tls(), upstream_tls=ClientTls(pem())) as (gateway, node):
        await gateway.route(place(node))
        await until(gateway.answers)
        answer = await gateway.rest("POST", "/v2/models/m/infer", b"{}")
        assert (answer.status, answer.json["replica"]) == (200, "a")
        # One that speaks in the clear beside it gets its calls in the clear.
        clear = await gateway.server("clear")
        await gateway.route(place(node), Server(clear.address))
        await until(lambda: both_answer(gateway))


async def both_answer(gateway: Gateway) -> bool:
    return await gateway.answers() and set(await gateway.shares(40)) == {"a", "clear"}


@pytest.mark.parametrize(
    ("ours", "name", "believed"),
    [
        (ClientTls(pem()), "localhost", True),
        (ClientTls(pem()), "127.0.0.1", True),
        (ClientTls(pem()), "", True),
        (ClientTls(pem()), "other.example", False),
        (ClientTls(pem(), server_name="localhost"), "other.example", True),
        (ClientTls(pem(), server_name="127.0.0.1"), "", True),
        (ClientTls(pem(), server_name="other.example"), "localhost", False),
        (ClientTls(pem(), server_name="127.0.0.2"), "", False),
        (ClientTls(pem(OTHER_CA)), "localhost", False),
        (ClientTls(pem(), public_ca=True), "localhost", True),
        (ClientTls(pem(), public_ca=True), "", False),  # it would be anybody's certificate
        (ClientTls(pem(), public_ca=True), "127.0.0.1", False),
        (ClientTls(pem(), public_ca=True, server_name="localhost"), "", True),
        (ClientTls(), "localhost", False),
        (ClientTls(), "", False),
    ],
)
async def test_who_is_believed(run_dir: Path, ours: ClientTls, name: str, believed: bool) -> None:
    async with between(run_dir, server_tls(), upstream_tls=ours) as (gateway, node):
        await gateway.route(place(node, name))
        if believed:
            await until(gateway.answers)
        else:
            await refuses(gateway)
            assert node.replicas["a"].requests == 0


@pytest.mark.parametrize("name", ["", "127.0.0.1", "[::1]", "a name?"])
async def test_an_address_is_believed_by_a_certificate_for_it(run_dir: Path, name: str) -> None:
    """Another of the same authority will not do, or each of its machines could pass for all."""
    another = server_tls(addresses=["10.0.0.1"])
    async with between(run_dir, another, upstream_tls=ClientTls(pem())) as (gateway, node):
        await gateway.route(place(node, name))
        await refuses(gateway)
        # What it may be called does not count either where it is given as an address.
        node.change(tls=server_tls(addresses=[]))
        await node.publish()
        await refuses(gateway)
        assert node.replicas["a"].requests == 0
        node.change(tls=server_tls())
        await node.publish()
        await until(gateway.answers)
        gateway.change(upstream_tls=ClientTls(pem(), server_name="localhost"))
        node.change(tls=another)
        await node.publish()
        await gateway.publish()
        await until(gateway.answers)


async def test_an_address_of_another_model_is_not_believed(run_dir: Path) -> None:
    """What one cluster believes is not what another does; a new endpoint is believed at once."""
    stranger = server_tls(addresses=["127.0.0.2"])
    async with between(run_dir, stranger, upstream_tls=ClientTls(pem())) as (gateway, node):
        other = Server("127.0.0.2:9", secure=True)
        await gateway.route(other, model="other")
        await gateway.route(place(node, ""))
        await refuses(gateway)
        # In one cluster they may stand for each other: the edge sees names, and not who has them.
        await gateway.route(place(node, ""), other)
        await until(gateway.answers)
        await gateway.route(place(node, ""))
        node.change(tls=server_tls(addresses=["127.0.0.3"]))
        await node.publish()
        await until(not_(gateway.answers))


async def test_endpoints_of_version_6(run_dir: Path) -> None:
    for address, believed in (("::1", True), ("::2", False)):
        folder = run_dir / str(believed)
        folder.mkdir()
        server = server_tls(addresses=[address])
        async with between(folder, server, {"host": "::1"}, upstream_tls=ClientTls(pem())) as (
            gateway,
            node,
        ):
            await gateway.route(Server(f"[::1]:{node.port}", secure=True))
            if believed:
                await until(gateway.answers)
            else:
                await refuses(gateway)


async def test_an_expired_certificate_is_not_believed(run_dir: Path) -> None:
    old = leaf(valid=-1)
    tls = ServerTls(chain(old), key(old))
    async with between(run_dir, tls, upstream_tls=ClientTls(pem())) as (gateway, node):
        await gateway.route(place(node))
        await refuses(gateway)


async def test_nodes_may_ask_for_a_certificate(run_dir: Path) -> None:
    tls = server_tls(client_ca=OTHER_CA)
    ours = shown(leaf(OTHER_CA))
    async with between(run_dir, tls, upstream_tls=ours) as (gateway, node):
        await gateway.route(place(node))
        await until(gateway.answers)
        gateway.change(upstream_tls=ClientTls(pem()))
        await gateway.publish()
        await until(not_(gateway.answers))
        await refuses(gateway)
        gateway.change(upstream_tls=ours)
        await gateway.publish()
        await until(gateway.answers)


def not_(condition: Callable[[], Any]) -> Callable[[], Any]:
    async def opposite() -> bool:
        return not await condition()

    return opposite


async def test_both_sides_renew_while_calls_run(run_dir: Path) -> None:
    tls = server_tls(client_ca=OTHER_CA)
    async with between(run_dir, tls, upstream_tls=shown(leaf(OTHER_CA))) as (gateway, node):
        await gateway.route(place(node))
        await until(gateway.answers)
        async with Load(gateway) as load:
            for _ in range(5):
                gateway.change(upstream_tls=shown(leaf(OTHER_CA)))
                await gateway.publish()
                node.change(tls=server_tls(client_ca=OTHER_CA))
                await node.publish()
                await load.more(200)
        assert load.errors == []


class Ready(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Says that it is ready, whatever it is asked."""

    def service(self, details: Any) -> Any:
        answer = b"\x08\x01" if details.method == open_inference.MODEL_READY else b"\x0a\x01m"
        return grpc.unary_unary_rpc_method_handler(lambda _request, _context: answer)


async def test_another_server_over_tls(run_dir: Path) -> None:
    """A server of grpcio, which takes HTTP/2 only from who agrees on it in the handshake."""
    own = leaf()
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Ready(),))
    credentials = grpc.ssl_server_credentials(
        [(key(own), chain(own))], pem(), require_client_auth=True
    )
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    async with Gateway(run_dir, upstream_tls=shown(leaf())) as gateway:
        await gateway.route(
            Server(f"127.0.0.1:{port}", "open-inference", secure=True, name=f"localhost:{port}")
        )

        async def answered() -> bool:
            with contextlib.suppress(grpc.aio.AioRpcError):
                return bool(await gateway.call(method=INFER) == b"\x0a\x01m")
            return False

        await until(answered)
    await server.stop(None)
