"""Replicas that die, refuse, lie and change under load."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from tests.edge.harness import Edge, Load, message, until
from tidegate.edge.names import MODEL_PREFIX
from tidegate.edge.topology import Endpoint
from tidegate.protocols.statuses import GrpcCode


async def ejected(edge: Edge, model: str = "m") -> int:
    stats = await edge.envoy.admin.stats(f"cluster.{MODEL_PREFIX}{model}.outlier_detection")
    return stats[f"cluster.{MODEL_PREFIX}{model}.outlier_detection.ejections_enforced_total"]


async def real_replica(socket: Path) -> asyncio.subprocess.Process:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.edge.fake_replica", str(socket),
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    await process.stdout.readline()
    return process


async def test_a_killed_replica_fails_no_call(edge: Edge) -> None:
    sockets = [edge.run_dir / "x.sock", edge.run_dir / "y.sock"]
    processes = [await real_replica(socket) for socket in sockets]
    try:
        edge.clusters = {"m": tuple(Endpoint(str(socket)) for socket in sockets)}
        await edge.publish()
        async with Load(edge, width=64) as load:
            for victim in (0, 1, 0):
                processes[victim].kill()
                await processes[victim].wait()
                await load.more(500)
                sockets[victim].unlink()
                processes[victim] = await real_replica(sockets[victim])
                # It is drawn again once its ejection is over.
                await until(lambda: answers_from(edge, "xy"[victim]))  # noqa: B023
        assert load.errors == []
    finally:
        for process in processes:
            process.kill()
            await process.wait()


async def answers_from(edge: Edge, name: str) -> bool:
    return bool((await edge.call())["replica"] == f"{name}.sock")


async def test_a_replica_that_dies_is_left_alone_and_comes_back(edge: Edge) -> None:
    await edge.serve(m="a b")
    edge.replicas["a"].kill()
    for _ in range(50):
        assert (await edge.call())["replica"] == "b"
    assert await ejected(edge) >= 1
    await edge.replica("a")
    await until(lambda: came_back(edge))


async def came_back(edge: Edge) -> bool:
    return bool((await edge.call())["replica"] == "a")


async def test_an_ejection_counts_at_once(edge: Edge) -> None:
    """Also right after the end of another: or the two together would leave nobody."""
    await edge.serve(m="a b")
    edge.replicas["a"].kill()
    for _ in range(20):
        await edge.call()
    await edge.replica("a")
    await until(lambda: came_back(edge))
    before = await ejected(edge)
    edge.replicas["b"].kill()
    await until(lambda: once_more(edge, before))
    attempts: list[str] = []
    while len(attempts) < 20:
        left_alone = await left_alone_since(edge)
        attempt = (await edge.call())["headers"]["x-envoy-attempt-count"]
        # Whether it still was: it is for half a second only.
        if left_alone and await left_alone_since(edge) == left_alone:
            attempts.append(attempt)
    assert set(attempts) == {"1"}


async def once_more(edge: Edge, before: int) -> bool:
    await edge.call()
    return await ejected(edge) == before + 1


async def left_alone_since(edge: Edge) -> int | None:
    """The number of the ejection that lasts."""
    name = f"cluster.{MODEL_PREFIX}m.outlier_detection.ejections_active"
    number = await ejected(edge)
    return number if await edge.envoy.admin.gauge(name) else None


async def test_a_large_request_is_retried_too(edge: Edge) -> None:
    await edge.serve(m="a b")
    edge.replicas["a"].kill()
    for _ in range(4):
        answer = await edge.call(message(payload=40 * 2**20))
        assert answer["replica"] == "b"
        reply = await edge.rest("POST", "/v2/models/m/infer", bytes(20 * 2**20))
        assert (reply.status, reply.json["replica"]) == (200, "b")


async def test_a_large_request_whose_replica_dies_with_it_is_sent_again(edge: Edge) -> None:
    await edge.serve(m="a b")
    code, _ = await edge.failure(message(payload=30 * 2**20), x_do="close")
    assert code == "UNAVAILABLE"
    assert [edge.replicas[name].requests for name in "ab"] == [1, 1]
    reply = await edge.rest("POST", "/v2/models/m/infer", bytes(30 * 2**20), x_do="close")
    assert reply.status == 503
    assert [edge.replicas[name].requests for name in "ab"] == [2, 2]


async def test_the_replica_is_told_that_it_is_the_second(edge: Edge) -> None:
    await edge.serve(m="a b")
    edge.replicas["a"].kill()
    attempts = {(await edge.call())["headers"]["x-envoy-attempt-count"] for _ in range(20)}
    assert attempts == {"1", "2"}


async def test_a_full_queue_ejects_nobody(edge: Edge) -> None:
    await edge.serve(m="a b")
    for _ in range(10):
        assert (await edge.failure(x_do="grpc 8 full"))[0] == "RESOURCE_EXHAUSTED"
        assert (
            await edge.rest("POST", "/v2/models/m/infer", b"{}", x_do="http 429")
        ).status == 429
    assert await ejected(edge) == 0


async def test_errors_of_the_application_eject_nobody(edge: Edge) -> None:
    await edge.serve(m="a b")
    for _ in range(10):
        assert (await edge.failure(x_do="grpc 13 bug"))[0] == "INTERNAL"
        assert (
            await edge.rest("POST", "/v2/models/m/infer", b"{}", x_do="http 500")
        ).status == 500
    assert await ejected(edge) == 0
    assert sum(r.requests for r in edge.replicas.values()) == 20  # none was tried again


async def test_callers_that_give_up_eject_nobody(edge: Edge) -> None:
    await edge.serve(m="a b")
    codes = await asyncio.gather(
        *(edge.failure(x_do="sleep 30", timeout=0.2) for _ in range(10)),
    )
    assert {code for code, _ in codes} == {"DEADLINE_EXCEEDED"}
    replies = await asyncio.gather(
        *(
            edge.rest("GET", "/v2/models/m", x_do="sleep 30", grpc_timeout="100m")
            for _ in range(10)
        )
    )
    assert {reply.status for reply in replies} == {504}
    assert await ejected(edge) == 0


@pytest.mark.parametrize(("grpc", "http"), [(4, 504), (14, 503)])
async def test_what_a_replica_says_ejects_nobody(edge: Edge, grpc: int, http: int) -> None:
    """A caller whose deadlines are too short must not take a replica from the others."""
    await edge.serve(m="a b")
    for _ in range(10):
        assert (await edge.failure(x_do=f"grpc {grpc} late"))[0] == GrpcCode(grpc).name
        answer = await edge.rest("POST", "/v2/models/m/infer", b"{}", x_do=f"http {http}")
        assert answer.status == http
    assert await ejected(edge) == 0


async def test_one_replica_is_never_ejected(edge: Edge) -> None:
    await edge.serve(m="a")
    for _ in range(10):
        await edge.failure(x_do="close")
    assert (await edge.call())["replica"] == "a"


async def test_weights_share_out_the_calls(edge: Edge) -> None:
    await edge.serve(m="a=100 b=300")
    got = [(await edge.call())["replica"] for _ in range(400)]
    assert 280 <= got.count("b") <= 320
    await edge.serve(m="a=300 b=100")
    got = [(await edge.call())["replica"] for _ in range(400)]
    assert 280 <= got.count("a") <= 320


async def test_a_busy_replica_gets_less(edge: Edge) -> None:
    await edge.serve(m="a")
    slow = [asyncio.create_task(edge.call(x_do="hold")) for _ in range(8)]
    await until(lambda: eight(edge))
    await edge.serve(m="a b")
    got = [(await edge.call())["replica"] for _ in range(200)]
    assert got.count("a") < 40  # 6 % on average
    edge.replicas["a"].release.set()
    await asyncio.gather(*slow)


async def eight(edge: Edge) -> bool:
    return sum(r.requests for r in edge.replicas.values()) == 8


async def test_a_thousand_calls_at_once(edge: Edge) -> None:
    """Envoy's own limits do not refuse a burst: queues of replicas do that."""
    await edge.serve(m="a")
    answers = await asyncio.gather(*(edge.call(x_do="sleep 0.5") for _ in range(1500)))
    assert len(answers) == 1500
