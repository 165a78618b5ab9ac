"""Sizes, slow senders and memory."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
from pathlib import Path

import psutil
import pytest

from tests.edge.harness import (
    INFER,
    MIB,
    Edge,
    Rest,
    call,
    channel,
    failure,
    message,
    rest,
    running_edge,
    until,
)
from tests.ports import free_port

REST = "/v2/models/m/infer"


def exactly(size: int) -> bytes:
    """A message of exactly so many bytes."""
    payload = size - len(message("m", payload=size)) + size
    return message("m", payload=payload)


async def test_messages_up_to_the_limit_pass_and_larger_ones_are_refused(edge: Edge) -> None:
    await edge.serve(m="a")
    limit = edge.settings.max_message_size
    assert (await edge.call(message(payload=63 * MIB)))["size"] > 63 * MIB
    full = exactly(limit)
    assert len(full) == limit
    assert (await edge.call(full))["size"] == limit + 5
    for size in (limit + 1, 70 * MIB):
        code, words = await edge.failure(exactly(size))
        assert code == "RESOURCE_EXHAUSTED", size
        assert str(limit) in words
    assert edge.replicas["a"].requests == 2


async def test_large_answers_pass(edge: Edge) -> None:
    await edge.serve(m="a")
    assert len(await edge.call(x_do=f"big {200 * MIB}")) == 200 * MIB
    answer = await edge.rest("POST", REST, b"{}", x_do=f"big {100 * MIB}")
    assert len(answer.body) == 100 * MIB


async def test_rest_bodies_up_to_the_limit_pass(edge: Edge) -> None:
    edge.change(max_message_size=4 * MIB)
    await edge.serve(m="a")
    answer = await edge.rest("POST", REST, bytes(4 * MIB))
    assert (answer.status, answer.json["size"]) == (200, 4 * MIB)


async def test_a_rest_body_beyond_the_limit_is_the_replicas_to_refuse(edge: Edge) -> None:
    """It counts and drops, and answers at the end: a client that only writes hears the answer."""
    edge.change(max_message_size=4 * MIB)
    await edge.serve(m="a")
    for size in (5 * MIB, 100 * MIB):
        status, body = await asyncio.to_thread(post, edge.port, REST, size, "http 413")
        assert (status, body) == (413, b'{"error":"own words"}')


@pytest.mark.parametrize("size", [10_000, 100_000, 2 * MIB, 30 * MIB, 64 * MIB])
async def test_errors_reach_a_client_that_writes_before_it_reads(edge: Edge, size: int) -> None:
    await edge.serve(m="a", n="b")
    for path, expected in (
        ("/v2/models/absent/infer", 404),
        ("/nothing", 404),
        ("/v2/models/a%20b/infer", 400),
    ):
        status, body = await asyncio.to_thread(post, edge.port, path, size)
        assert status == expected
        assert b"error" in body
    edge.replicas["a"].kill()
    status, _ = await asyncio.to_thread(post, edge.port, REST, size)
    assert status == 503


def post(port: int, path: str, size: int, do: str = "") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("POST", path, body=bytes(size), headers={"x-do": do})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


async def test_a_rest_body_without_an_announced_length_is_not_held(edge: Edge) -> None:
    """Such a body flows through to the replica, which counts; the edge's memory stays flat."""
    edge.change(max_message_size=4 * MIB)
    await edge.serve(m="a")
    before = psutil.Process(edge.envoy.pid).memory_info().rss
    client = Rest(edge.port)
    await client.send(
        f"POST {REST} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n".encode()
    )
    chunk = b"%x\r\n" % MIB + bytes(MIB) + b"\r\n"
    for _ in range(150):
        await client.send(chunk)
    await client.send(b"0\r\n\r\n")
    assert (await client.receive()).json["size"] == 150 * MIB
    await client.close()
    assert psutil.Process(edge.envoy.pid).memory_info().rss - before < 40 * MIB


async def test_many_large_messages_do_not_exhaust_the_machine(run_dir: Path) -> None:
    """Near its limit Envoy refuses or resets, stays alive, and serves again."""
    async with running_edge(run_dir, heap_size=300 * MIB) as edge:
        await edge.serve(m="a")

        async def one() -> str:
            async with channel(edge.port) as own:
                call_ = call(own, message(payload=60 * MIB), x_do="sleep 0.2")
                with contextlib.suppress(AssertionError):
                    return str((await failure(call_))[0].name)
                return "OK"

        codes = await asyncio.gather(*(one() for _ in range(10)))
        assert set(codes) <= {"OK", "UNAVAILABLE", "RESOURCE_EXHAUSTED", "INTERNAL"}, codes
        assert codes.count("OK") < 10
        assert psutil.Process(edge.envoy.pid).memory_info().rss < 700 * MIB
        async with asyncio.timeout(30):
            while True:  # until the memory has been given back
                with contextlib.suppress(AssertionError):
                    await failure(edge.call())
                    continue
                break


async def test_what_is_refused_for_want_of_memory_says_so(run_dir: Path) -> None:
    async with running_edge(run_dir, heap_size=2 * MIB) as edge:
        await edge.serve(m="a")

        async def refused() -> bool:
            return (await rest(edge.port, "POST", REST, b"{}")).status == 503

        await until(refused)
        answer = await rest(edge.port, "POST", REST, b"{}")
        assert answer.json["error"] == "the edge is short of memory; try again"
        code, words = await failure(edge.call())
        assert (code.name, words) == ("UNAVAILABLE", answer.json["error"])


async def test_a_silent_sender_is_cut_and_a_long_inference_is_not(run_dir: Path) -> None:
    async with running_edge(run_dir, idle_timeout=0.5) as edge:
        await edge.serve(m="a")
        frame = b"\0" + len(message()).to_bytes(4, "big") + message()
        client = Rest(edge.port)
        async with asyncio.timeout(30):
            await client.send(
                f"POST {INFER} HTTP/1.1\r\nhost: x\r\ncontent-type: application/grpc\r\n"
                "x-tidegate-cluster: model/m\r\n"  # must not pass for a routed request
                f"content-length: {len(frame)}\r\n\r\n".encode()
                + frame[:7]
            )
            answer = await client.receive()
            assert answer.headers["grpc-status"] == "4"
            await client.close()
            await client.send(b"POST /v2/models/m HTTP/1.1\r\nhost:")
            assert (await client.receive()).status == 408
            await client.close()
            # A sender that trickles its headers is as good as silent.
            await client.send(b"POST /v2/models/m HTTP/1.1\r\nhost: x\r\nx-slow: ")
            answered = asyncio.ensure_future(client.receive())
            while not (await asyncio.wait([answered], timeout=0.05))[0]:
                await client.send(b"x")
            assert answered.result().status == 408
        assert (await edge.call(x_do="sleep 1.5"))["replica"] == "a"
        answer = await edge.rest("POST", REST, b"{}", x_do="sleep 1.5")
        assert answer.status == 200


async def test_the_access_log_has_one_json_line_a_request(run_dir: Path) -> None:
    log = run_dir / "access.log"
    async with running_edge(run_dir) as edge:
        await edge.serve(m="a")
        await edge.call()
        assert not log.exists()
        edge.change(access_log=log)
        await edge.publish()
        async with channel(edge.port) as fresh:
            await call(fresh, message())
            await failure(call(fresh, message("absent")))
        await until(lambda: two_lines(log))
        good, bad = (json.loads(line) for line in lines_of(log))
        assert good["target"] == "model/m"
        assert good["status"] == 200
        assert good["replica"].endswith("/a.sock")
        assert bad["grpc_status"] in {"NotFound", 5}


async def two_lines(log: Path) -> bool:
    return len(lines_of(log)) >= 2


def lines_of(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


async def test_a_port_that_is_taken_is_named(run_dir: Path) -> None:
    from tidegate.errors import EdgeFailed

    port = free_port()
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", port)
    try:
        async with running_edge(run_dir, port=port) as edge:
            with pytest.raises(EdgeFailed, match=f"127.0.0.1:{port}"):
                await edge.serve(m="a")
            assert any(str(port) in words for words in edge.rejections)
    finally:
        server.close()
