"""The gRPC load generator against gRPC's own server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.load import grpc_server
from tests.load.grpc_server import WORDS
from tidegate.load.driver import Result
from tidegate.load.generator import grpc_load

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:grpc.*")


async def load(target: str, method: str, message: bytes = b"abc", calls: int = 50) -> Result:
    return await grpc_load(
        target, f"/t.S/{method}", message, connections=2, in_flight=4, calls=calls
    )


class Answered:
    """Counts the answers of a load, as its ``check``."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, message: bytes) -> bool:
        self.count += 1
        return True

    async def more(self, count: int) -> None:
        """Wait until there were so many more."""
        goal = self.count + count
        async with asyncio.timeout(60):
            while self.count < goal:  # noqa: ASYNC110 - it is called for every answer
                await asyncio.sleep(0.005)


async def test_successes() -> None:
    async with grpc_server.running() as target:
        result = await grpc_load(
            target, "/t.S/Echo", [b"one", b"two"], connections=3, in_flight=5, calls=1000,
            check=lambda message: message in (b"one", b"two"),
        )  # fmt: skip
    assert result.codes == Counter(OK=1000)
    assert (result.calls, result.ok, result.failed, result.refused) == (1000, 1000, 0, 0)
    assert result.connections == 3
    assert len(result.latencies_ms) == 1000
    assert 0 < result.latency(50) <= result.latency(99) <= result.latency(100)
    assert result.rate == pytest.approx(1000 / result.seconds)


@pytest.mark.parametrize(
    ("method", "code", "words"),
    [
        ("Refuse", "INVALID_ARGUMENT", WORDS),
        ("LateError", "DATA_LOSS", "after the headers"),
        ("Missing", "UNIMPLEMENTED", "Method not found!"),
    ],
)
async def test_errors_and_their_words(method: str, code: str, words: str) -> None:
    async with grpc_server.running() as target:
        result = await load(target, method)
    assert result.codes == Counter({code: 50})
    assert len(result.failures) == 20
    assert {(f.code, f.message) for f in result.failures} == {(code, words)}
    assert result.latencies_ms.size == 0


async def test_the_deadline_is_a_header() -> None:
    left: list[float] = []

    def check(message: bytes) -> bool:
        left.append(float(message))
        return True

    async with grpc_server.running() as target:
        await grpc_load(
            target, "/t.S/TimeLeft", b"", connections=1, in_flight=1, calls=3,
            headers={"grpc-timeout": "7000m"}, check=check,
        )  # fmt: skip
        assert all(3 < seconds <= 7 for seconds in left)
        result = await grpc_load(
            target, "/t.S/Slow", b"5", connections=1, in_flight=2, calls=4,
            headers={"grpc-timeout": "100m"},
        )  # fmt: skip
    # The server's gRPC resets the stream of a call whose deadline has passed.
    assert result.ok == 0
    assert set(result.codes) <= {"CANCELLED", "DEADLINE_EXCEEDED"}


async def test_our_own_deadline() -> None:
    async with grpc_server.running() as target:
        result = await grpc_load(
            target, "/t.S/Slow", [b"0", b"60"], connections=1, in_flight=2, calls=6, timeout=1.0
        )
    assert result.codes == Counter(OK=3, DEADLINE_EXCEEDED=3)
    assert result.seconds < 50


@pytest.mark.parametrize("size", [0, 16379, 16380, 70_000, 3_000_000])
async def test_large_messages_both_ways(size: int) -> None:
    message = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    async with grpc_server.running() as target:
        result = await grpc_load(
            target, "/t.S/Grow", message, connections=2, in_flight=3, calls=18,
            check=lambda answer: answer == message * 3,
        )  # fmt: skip
    assert result.codes == Counter(OK=18)


async def test_ends_by_time_and_by_event() -> None:
    async with grpc_server.running() as target:
        result = await grpc_load(target, "/t.S/Echo", b"", connections=1, in_flight=2, seconds=0.2)
        assert result.failed == 0
        assert 0.2 <= result.seconds < 20
        until, seen = asyncio.Event(), 0

        def check(_: bytes) -> bool:
            nonlocal seen
            seen += 1
            if seen == 100:
                until.set()
            return True

        result = await grpc_load(
            target, "/t.S/Echo", b"", connections=2, in_flight=2, until=until, check=check
        )
        assert 100 <= result.ok == result.calls < 200


async def test_nobody_listens() -> None:
    async with grpc_server.running() as target:
        pass
    result = await grpc_load(target, "/t.S/Echo", b"", connections=2, in_flight=2, seconds=0.2)
    assert set(result.codes) == {"UNAVAILABLE"}
    # An attempt to connect and a pause, not a busy loop.
    assert 4 <= result.calls < 100
    assert "cannot connect" in result.failures[0].message


async def test_a_server_that_stops_gracefully() -> None:
    """One server ends as gRPC ends gracefully while another takes its port over, ten times."""
    server, port = await grpc_server.start()
    until, answered = asyncio.Event(), Answered()
    running = asyncio.ensure_future(
        grpc_load(
            f"127.0.0.1:{port}",
            "/t.S/Echo",
            b"abc",
            connections=4,
            in_flight=8,
            until=until,
            check=answered,
        )
    )
    try:
        for _ in range(10):
            await answered.more(50)
            successor, _ = await grpc_server.start(port)
            await server.stop(5)
            server = successor
    finally:
        until.set()
        result = await running
        await server.stop(0)
    # gRPC's server answers CANCELLED to what comes while it stops, to its own client as well;
    # and a connection that it had not accepted yet is lost with its socket.
    words = {f.message for f in result.failures}
    assert all(w == "CANCELLED" or w.startswith("cannot connect") for w in words), words
    assert result.codes["OK"] > 100
    assert result.connections >= 4 + 10


async def test_a_killed_server_fails_what_was_under_way() -> None:
    until, answered = asyncio.Event(), Answered()
    async with contextlib.AsyncExitStack() as stack:
        child, port = await stack.enter_async_context(grpc_server.process())
        running = asyncio.ensure_future(
            grpc_load(
                f"127.0.0.1:{port}",
                "/t.S/Echo",
                b"abc",
                connections=2,
                in_flight=8,
                until=until,
                check=answered,
            )
        )
        await answered.more(300)
        child.kill()
        await child.wait()
        await stack.enter_async_context(grpc_server.process(port))
        await answered.more(300)
        until.set()
        result = await running
    assert set(result.codes) == {"OK", "UNAVAILABLE"}
    lost = [f for f in result.failures if f.message.startswith("connection lost")]
    assert 0 < len(lost) <= 16
    assert result.connections in (3, 4)  # one of the two may not be back yet
    assert result.codes["OK"] > 100


async def test_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "body").write_bytes(b"abc")
    command = [sys.executable, "-m", "bench.load"]
    options = ["--body", str(tmp_path / "body"), "-c", "2", "-m", "2", "-n", "10", "--json"]
    async with grpc_server.running() as target:
        for path, status in (("/t.S/Echo", 0), ("/t.S/Refuse", 1)):
            child = await asyncio.create_subprocess_exec(
                *command, target, path, *options,
                stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
                cwd=Path(__file__).parents[2],
            )  # fmt: skip
            out, err = await child.communicate()
            assert child.returncode == status
            figures = json.loads(out)
            code = "INVALID_ARGUMENT" if status else "OK"
            assert figures["codes"] == {code: 10}
            assert (code in err.decode()) == bool(status)
