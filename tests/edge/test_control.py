"""The control protocol against a real Envoy."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.edge.harness import (
    Edge,
    Load,
    call,
    channel,
    edge_settings,
    failure,
    message,
    running_edge,
    until,
)
from tidegate.edge.control import ControlServer
from tidegate.edge.names import MODEL_PREFIX
from tidegate.edge.topology import Endpoint, Topology
from tidegate.errors import EdgeFailed


async def restart_control(edge: Edge) -> None:
    await edge.control.__aexit__(None, None, None)
    edge.control = ControlServer(edge.run_dir / "ads.sock", edge.rejections.append)
    await edge.control.__aenter__()


async def connected(edge: Edge) -> bool:
    return edge.control.connected


async def test_models_come_and_go(edge: Edge) -> None:
    await edge.serve(m="a")
    assert (await edge.failure(message("n")))[0] == "NOT_FOUND"
    await edge.serve(m="a", n="b")
    assert (await edge.call(message("n")))["replica"] == "b"
    await edge.serve(n="b")
    assert (await edge.failure(message("m")))[0] == "NOT_FOUND"
    await edge.serve(m="a", n="b")
    assert (await edge.call(message("m")))["replica"] == "a"
    await edge.serve()
    assert (await edge.failure(message("m")))[0] == "NOT_FOUND"
    await edge.serve(m="a")
    assert (await edge.call(message("m")))["replica"] == "a"
    assert edge.rejections == []


async def test_publish_returns_when_the_model_can_be_called(edge: Edge) -> None:
    await edge.serve(m="a")
    for index in range(30):
        await edge.serve(m="a", **{f"n{index}": "b"})
        assert (await edge.call(message(f"n{index}")))["replica"] == "b"
        assert (await edge.call(message("m")))["replica"] == "a"


async def test_a_version_switch_under_load_fails_no_call(edge: Edge) -> None:
    await edge.serve(m="a", m__1="a")
    async with Load(edge) as load:
        for old, new in (("a", "b"), ("b", "c"), ("c", "a")):
            await edge.serve(m=new, m__1=old, m__2=new)
            await edge.serve(m=new, m__2=new)
            await load.more(200)
    assert load.errors == []
    assert all(edge.replicas[name].requests for name in "abc")


async def test_other_models_come_and_go_under_load_without_a_failed_call(edge: Edge) -> None:
    await edge.serve(m="a")
    async with Load(edge) as load:
        for index in range(20):
            await edge.serve(m="a b", **{f"n{index}": "c", f"k{index % 3}": "b"})
        await load.more(200)
    assert load.errors == []


async def test_a_removed_replica_ends_what_it_runs(edge: Edge) -> None:
    await edge.serve(m="a b")
    pending = [asyncio.create_task(edge.call(x_do="hold")) for _ in range(10)]
    await until(lambda: in_flight(edge, 10))
    await edge.serve(m="b")
    await edge.serve(other="b")
    assert (await edge.failure())[0] == "NOT_FOUND"
    for replica in edge.replicas.values():
        replica.release.set()
    answers = await asyncio.gather(*pending)
    assert {answer["replica"] for answer in answers} == {"a", "b"}


async def in_flight(edge: Edge, count: int) -> bool:
    return (await edge.envoy.admin.activity())[0] == count


async def test_a_restarted_controller_is_silent_until_it_publishes(edge: Edge) -> None:
    await edge.serve(m="a b")
    async with Load(edge) as load:
        await restart_control(edge)
        await until(lambda: connected(edge))
        await load.more(500)  # silence: Envoy goes on with what it has
        await edge.serve(m="a b", n="c")
        await load.more(200)
        assert (await edge.call(message("n")))["replica"] == "c"
        await edge.serve(m="b")
        await load.more(200)
    assert load.errors == []


async def test_a_controller_that_is_away_takes_no_call_with_it(edge: Edge) -> None:
    await edge.serve(m="a")
    await edge.control.__aexit__(None, None, None)
    async with Load(edge) as load:
        await load.more(500)
    assert load.errors == []
    assert (await edge.rest("GET", "/v2/health/ready")).json == {"ready": True}
    await edge.control.__aenter__()


async def test_reconnecting_takes_a_second_at_most(edge: Edge) -> None:
    await edge.serve(m="a")
    await edge.control.__aexit__(None, None, None)
    await asyncio.sleep(2)  # time for back-off to have grown
    await edge.control.__aenter__()
    await until(lambda: connected(edge), 10)


async def test_what_is_published_with_nobody_connected_is_told_to_the_next(
    run_dir: Path,
) -> None:
    async with running_edge(run_dir) as edge:
        replica = await edge.replica("a")
        await restart_control(edge)
        edge.clusters = {"m": (Endpoint(replica.socket),)}
        async with asyncio.timeout(20):
            await edge.control.publish(edge.topology(), edge.settings)
        await edge.control.wait_acknowledged(60)
        assert (await edge.call())["replica"] == "a"


async def test_waiting_ends_with_an_error(run_dir: Path) -> None:
    async with ControlServer(run_dir / "ads.sock", lambda _: None) as control:
        await control.publish(Topology({}, True, b"{}"), edge_settings(run_dir))
        with pytest.raises(EdgeFailed, match="has not connected"):
            await control.wait_acknowledged(0.05)


async def test_a_refusal_is_told_in_envoys_words(edge: Edge) -> None:
    await edge.serve(m="a")
    good = edge.settings
    edge.change(host="not an address")
    edge.clusters["n"] = edge.clusters["m"]
    with pytest.raises(EdgeFailed, match="malformed IP address: not an address"):
        await edge.publish()
    assert "malformed IP address" in edge.rejections[0]
    rejected = [edge.control.rejected]
    published = edge.control.generation
    assert (await edge.call())["replica"] == "a"  # it goes on with what it had
    edge.settings = good
    await edge.publish()
    rejected.append(edge.control.rejected)
    assert rejected == [True, False]
    assert edge.control.generation == published + 1
    assert (await edge.call(message("n")))["replica"] == "a"
    assert len(edge.rejections) == 1


async def test_an_envoy_that_starts_after_a_refusal_gets_what_was_accepted(edge: Edge) -> None:
    await edge.serve(m="a")
    edge.change(host="not an address")
    with pytest.raises(EdgeFailed):
        await edge.publish()
    await edge.envoy.kill()
    edge.envoy = await type(edge.envoy).start(edge.run_dir, edge.settings)
    await until(lambda: connected(edge))
    await until(lambda: answered(edge))


async def answered(edge: Edge) -> bool:
    try:
        return (await edge.rest("GET", "/v2/models/m")).status == 200
    except ConnectionError:
        return False


async def test_a_new_envoy_is_told_everything(edge: Edge) -> None:
    await edge.serve(m="a", n="b")
    await edge.envoy.kill()
    edge.envoy = await type(edge.envoy).start(edge.run_dir, edge.settings)
    await until(lambda: connected(edge))
    await edge.control.publish(edge.topology(), edge.settings)
    assert (await edge.call(message("n")))["replica"] == "b"


async def test_a_changed_setting_is_published_under_load(edge: Edge) -> None:
    await edge.serve(m="a")
    async with Load(edge) as load:
        for size in (2**20, 2**21):
            edge.change(max_message_size=size)
            await edge.publish()
            await load.more(200)
    assert load.errors == []
    async with channel(edge.port) as fresh:
        code, _ = await failure(call(fresh, message(payload=2**21)))
    assert code.name == "RESOURCE_EXHAUSTED"


async def test_weights_of_many_endpoints_change_fast(edge: Edge) -> None:
    """60 models with 50 endpoints each: told, and told anew, in a second or so."""
    await edge.replica("a")

    def clusters(weight: int) -> dict[str, tuple[Endpoint, ...]]:
        return {
            f"m{index}": tuple(
                Endpoint(str(edge.run_dir / f"{index}-{k}.sock"), weight) for k in range(50)
            )
            for index in range(60)
        }

    for weight in (101, 103):
        edge.clusters = clusters(weight)
        async with asyncio.timeout(30):
            await edge.publish()
        statuses = await edge.envoy.admin.clusters()
        weights = {
            host["weight"]
            for name, hosts in statuses.items()
            if name.startswith(MODEL_PREFIX)
            for host in hosts
        }
        assert weights == {weight}


def test_a_topology_cannot_leave_a_model_without_replicas() -> None:
    with pytest.raises(ValueError, match="m has no endpoint"):
        Topology({"m": ()}, True, b"{}")
    with pytest.raises(ValueError, match="not a model's name"):
        Topology({"../m": (Endpoint("/tmp/x"),)}, True, b"{}")
    with pytest.raises(ValueError, match="same socket"):
        Topology({"m": (Endpoint("/tmp/x"), Endpoint("/tmp/x"))}, True, b"{}")
    with pytest.raises(ValueError, match="107"):
        Endpoint("/tmp/" + "x" * 200)
    with pytest.raises(ValueError, match="weight"):
        Endpoint("/tmp/x", 0)
