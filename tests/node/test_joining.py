"""A real node that joins gateways, and gateways that are away, hang, refuse and come back."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import orjson
import pytest
import trustme

from tests import models
from tests.gateway.standin import GatewayStandIn
from tests.node.harness import ServedNode, fetch
from tests.node.test_stop import command

INPUT = orjson.dumps(
    {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}
)


@pytest.fixture
async def gateway() -> AsyncIterator[GatewayStandIn]:
    # A node renews after 0.3 s, and is forgotten after 1 s.
    async with GatewayStandIn(lease=1.0) as gateway:
        yield gateway


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    models.scale(tmp_path / "models/scale/1/model.onnx", 2.0)
    models.scale(tmp_path / "models/scale/2/model.onnx", 3.0)
    (tmp_path / "models/scale/model.yaml").write_text(
        "versions: {only: [1, 2], labels: {stable: 1}}\ntask_ids: [69]\n"
    )
    return tmp_path / "models"


async def infer(node: ServedNode) -> int:
    status, _ = await node.post("/v2/models/scale/infer", INPUT)
    return status


def known(gateway: GatewayStandIn) -> bool:
    return bool(gateway.addresses("scale"))


def versions(gateway: GatewayStandIn) -> frozenset[int] | None:
    found = gateway.registry.models(gateway.now()).get("scale", ())
    return found[0].versions if found else None


def calls(gateway: GatewayStandIn, method: str) -> int:
    return sum(call.startswith(method) for call in gateway.calls)


async def test_what_gateways_are_told(repository: Path, gateway: GatewayStandIn) -> None:
    """One that is there, and one that is away at first, each by itself."""
    other = GatewayStandIn(lease=1.0)
    await other.start()
    await other.stop()
    async with ServedNode(repository, "--join", f"{gateway.url} {other.url}") as node:
        await gateway.until(lambda: versions(gateway) == frozenset({1, 2}))
        [endpoint] = gateway.registry.models(gateway.now())["scale"]
        assert endpoint.address == node.target
        assert endpoint.labels == frozenset({"stable"})
        assert gateway.registry.tasks(gateway.now()) == {"69": "scale"}
        said = gateway.registry.describe_node(node.target, gateway.now())
        assert said is not None
        assert said["name"] == node.target
        assert said["models"][0]["default_version"] == 2
        assert said["capacity"]["replicas"] == {"scale": 2}
        assert said["capacity"]["cores"] > 0
        # The other one is away, which is said once, and holds up nothing.
        status = {each["gateway"]: each for each in (await node.status())["gateways"]}
        assert status[gateway.url]["state"] == "joined"
        assert status[other.url]["state"] == "away"
        assert "nobody answers there" in status[other.url]["reason"]
        assert node.output.count(other.url) == 1
        code, shown = await command("status", "--run-dir", node.run_dir)
        assert code == 0
        assert f"{gateway.url} (knows {node.target})" in shown
        assert f"{other.url} (nobody answers there)" in shown
        await other.start()
        await other.until(lambda: known(other))
        await node.until(lambda: f"{other.url} knows this node" in node.output)
        # Changes are told at once, to both.
        models.scale(repository / "second.onnx", 2.0)
        for each in (gateway, other):
            await each.until(lambda each=each: each.addresses("second"))  # type: ignore[misc]
        url = f"http://127.0.0.1:{node.admin_port}/v2/repository/models/second/unload"
        assert (await asyncio.to_thread(fetch, url, b"{}"))[0] == 200
        for each in (gateway, other):
            await each.until(lambda each=each: not each.addresses("second"))  # type: ignore[misc]
        assert known(gateway)
        assert await node.stop() == 0
        assert not known(gateway)
        assert not known(other)
    await other.stop()


async def test_a_gateway_with_faults(
    repository: Path, gateway: GatewayStandIn, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("wrong\n")
    gateway.token = "right"
    options = ("--join", gateway.url, "--join-token-file", str(tmp_path / "token"))
    async with ServedNode(repository, *options) as node:
        # It refuses, and says why; the right token is taken without a restart.
        await node.until(lambda: "the token is not that of this gateway" in node.output)
        assert await infer(node) == 200
        (tmp_path / "token").write_text("right\n")
        await gateway.until(lambda: known(gateway))
        # It fails.
        gateway.fault = 500
        await node.until(lambda: "HTTP 500: a fault" in node.output)
        gateway.fault = None
        await node.until(lambda: f"{gateway.url} knows this node again" in node.output)
        # It answers what is none.
        gateway.fault = 200
        await node.until(lambda: "is this the admin port of a gateway?" in node.output)
        gateway.fault = None
        await node.until(lambda: node.output.count("knows this node again") == 2)
        # It hangs.
        gateway.answering.clear()
        await node.until(lambda: "no answer within 3 s" in node.output)
        assert await infer(node) == 200
        gateway.answering.set()
        await node.until(lambda: node.output.count("knows this node again") == 3)
        # It dies, and comes back knowing nobody.
        await gateway.stop()
        await node.until(lambda: "nobody answers there" in node.output)
        gateway.forget()
        await gateway.start()
        await gateway.until(lambda: known(gateway))
        assert await infer(node) == 200


async def test_a_node_leaves_before_it_drains(repository: Path, gateway: GatewayStandIn) -> None:
    async with ServedNode(repository, "--join", gateway.url) as node:
        await gateway.until(lambda: known(gateway))
        gateway.applied.clear()
        stopping = asyncio.create_task(node.stop())
        await gateway.until(lambda: not known(gateway))
        # The gateway has not told its edge yet: whatever comes is answered.
        assert (await node.get("/v2/health/ready"))[0] == 200
        assert await infer(node) == 200
        assert not stopping.done()
        gateway.applied.set()
        assert await stopping == 0
        assert gateway.calls[-1].startswith("DELETE /nodes/127.0.0.1:")
        assert calls(gateway, "DELETE") == 1


async def test_a_gateway_that_hangs_does_not_keep_a_node_from_its_end(
    repository: Path, gateway: GatewayStandIn
) -> None:
    async with ServedNode(repository, "--join", gateway.url) as node:
        await gateway.until(lambda: known(gateway))
        gateway.answering.clear()
        assert await node.stop() == 0
        assert "was not told of the end" in node.output
    gateway.answering.set()
    # Nor does a person who is in a hurry have to wait.
    async with ServedNode(repository, "--join", gateway.url) as node:
        await gateway.until(lambda: calls(gateway, "PUT") and known(gateway))
        gateway.answering.clear()
        before = calls(gateway, "DELETE")
        assert node.process is not None
        node.process.send_signal(signal.SIGTERM)
        await gateway.until(lambda: calls(gateway, "DELETE") > before)
        await asyncio.sleep(0.6)  # a second signal sooner is the same one
        node.process.send_signal(signal.SIGTERM)
        await node.process.wait()
        assert "was not told of the end" not in node.output


async def test_over_tls_with_authorities_of_ones_own(repository: Path, tmp_path: Path) -> None:
    ca = trustme.CA()
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    issued = ca.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    for blob in issued.cert_chain_pems:
        blob.write_to_path(tmp_path / "chain.pem", append=True)
    async with GatewayStandIn(1.0, tls=(tmp_path / "chain.pem", tmp_path / "key.pem")) as gateway:
        options = ("--join", gateway.url, "--join-ca", str(tmp_path / "ca.pem"))
        async with ServedNode(repository, *options):
            await gateway.until(lambda: known(gateway))
        # Whom nobody vouches for is not told anything.
        heard = calls(gateway, "PUT")
        async with ServedNode(repository, "--join", gateway.url) as node:
            await node.until(lambda: "CERTIFICATE_VERIFY_FAILED" in node.output)
            assert calls(gateway, "PUT") == heard


async def test_another_controller_of_the_node_takes_its_place(
    repository: Path, gateway: GatewayStandIn
) -> None:
    async with ServedNode(repository, "--join", gateway.url) as node:
        await gateway.until(lambda: known(gateway))
        node.kill_controller()
        assert node.process is not None
        await node.process.wait()
        await gateway.until(
            lambda: gateway.registry.describe(gateway.now())[0]["state"] == "silent"
        )
        assert known(gateway)
        await node.serve()
        await gateway.until(
            lambda: gateway.registry.describe(gateway.now())[0]["state"] == "registered"
        )
        assert len(gateway.addresses("scale")) == 1


async def test_what_cannot_be_joined_ends_the_start(repository: Path) -> None:
    for options, words in (
        (("--join", "http://gateway:8002"), "--host 0.0.0.0 --advertise HOST:"),
        (("--join", "gateway"), "join"),
        (("--join", "http://127.0.0.1:1", "--join-ca", "/nowhere"), "join_ca"),
        (("--join", "http://127.0.0.1:1", "--join-token-file", "/nowhere"), "join_token_file"),
    ):
        with pytest.raises(RuntimeError, match="tidegate serve ended") as caught:
            async with ServedNode(repository, *options):
                pass
        assert words in str(caught.value)
