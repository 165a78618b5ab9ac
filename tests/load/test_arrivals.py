"""When calls of an open loop are due, and that their latency counts from then."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

import numpy as np
import pytest

from tests.load import grpc_server
from tidegate.errors import ConfigurationError
from tidegate.load import paced
from tidegate.load.arrivals import Schedule, after_warm_up, poisson, uniform
from tidegate.load.driver import Call, Lane
from tidegate.load.generator import grpc_load, rest_load, split_target
from tidegate.load.paced import PacedDriver


def test_uniform_times() -> None:
    assert uniform(4, 1).tolist() == [0, 0.25, 0.5, 0.75]
    assert len(uniform(1000, 2.5)) == 2500


def test_poisson_times() -> None:
    times = poisson(1000, 20)
    assert len(times) == 20_000
    assert times.tolist() == poisson(1000, 20).tolist()
    gaps = np.diff(times)
    assert gaps.min() >= 0
    assert gaps.mean() == pytest.approx(1e-3, rel=0.01)
    # Exponential: as spread as they are long.
    assert gaps.std() == pytest.approx(1e-3, rel=0.05)


@pytest.mark.parametrize("pattern", ["poisson", "uniform"])
def test_the_measured_part_has_the_rate_that_was_asked_for(pattern: str) -> None:
    times = after_warm_up(pattern, 50, 2, 4)
    assert (np.diff(times) >= 0).all()
    assert ((times < 2).sum(), (times >= 2).sum()) == (100, 200)
    assert len(after_warm_up(pattern, 0.25, 2, 4)) == 1


@pytest.mark.parametrize(("rate", "seconds"), [(0.1, 1), (1e6, 1e3), (float("nan"), 1)])
def test_too_few_and_too_many(rate: float, seconds: float) -> None:
    with pytest.raises(ConfigurationError, match="give a rate and a duration"):
        uniform(rate, seconds)


def test_a_schedule_gives_what_is_due() -> None:
    schedule = Schedule(np.array([0.0, 1.0, 1.5, 4.0]))
    assert [schedule.take(0.0), schedule.take(0.5)] == [0.0, None]
    assert schedule.next_due == 1.0
    assert [schedule.count_due(t) for t in (0.5, 1.5, 9.0)] == [0, 2, 3]
    # However late somebody asks: the calls keep the times at which they were due.
    assert [schedule.take(3.0), schedule.take(3.0), schedule.take(3.0)] == [1.0, 1.5, None]
    assert schedule.take_rest() == [4.0]
    assert [schedule.take(9.0), schedule.next_due] == [None, None]


class Clock:
    """The time of the module under test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(paced, "now", lambda: self.now)


class Silent(paced.Metronome):
    """Wakes nobody: the test does."""

    def wake_at(self, at: float) -> None:
        pass


async def test_a_late_answer_makes_those_behind_it_late(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    driver = PacedDriver(uniform(10, 2), 1, None, warm_up=0.15)
    monkeypatch.setattr(driver, "_metronome", Silent(lambda: None), raising=False)
    for timer in driver._start(None):
        timer.cancel()
    caller = Call(Lane(driver, None, 0))  # type: ignore[arg-type]

    def answer_at(now: float) -> None:
        clock.now = now
        driver.succeed(caller, "OK", now, b"")

    assert driver.issue(caller, 0.0)  # due at 0, and quick: but in the warm-up
    answer_at(0.01)
    assert not driver.issue(caller, 0.01)
    for number in (1, 2):  # at 0.1, in the warm-up; at 0.2
        assert driver.issue(caller, number * 0.1)
        answer_at(number * 0.1 + 0.01)
    assert driver.issue(caller, 0.3)
    answer_at(1.0)  # the server stood still
    for number in range(4, 11):
        # Their answers are quick, and late all the same: they were due long ago.
        assert driver.issue(caller, clock.now)
        assert caller.started == pytest.approx(number * 0.1)
        answer_at(clock.now + 0.001)
    expected = [0.01, 0.7, *(1.0 + 0.001 * n - 0.3 - 0.1 * n for n in range(1, 8))]
    assert list(driver.latencies) == pytest.approx(expected)
    assert driver.result.codes == Counter(OK=9)
    # Nobody sends the rest any more, and it is not forgotten.
    clock.now = 1.55
    driver.stop()
    assert driver.result.codes == Counter(OK=9, NOT_SENT=5)
    assert list(driver.latencies)[9:] == pytest.approx([0.45, 0.35, 0.25, 0.15, 0.05])


async def test_a_server_that_is_too_slow() -> None:
    async with grpc_server.running() as target:
        result = await grpc_load(
            target, "/t.S/Slow", b"0.05", connections=1, in_flight=1, seconds=1.0,
            times=uniform(100, 1.0), timeout=30,
        )  # fmt: skip
    # One caller, 50 ms a call: no more than 21 of 100 can have been sent.
    assert result.calls == 100
    assert result.codes["NOT_SENT"] >= 79
    assert result.codes["OK"] + result.codes["NOT_SENT"] == 100
    # A closed loop would have said 50 ms of each.
    assert result.latency(100) >= 780
    assert result.latency(50) >= 300
    assert len(result.late_ms) == result.codes["OK"]


async def test_a_server_that_keeps_up() -> None:
    async with grpc_server.running() as target:
        result = await grpc_load(
            target, "/t.S/Echo", b"abc", connections=2, in_flight=50, seconds=0.5, warm_up=0.2,
            times=after_warm_up("poisson", 400, 0.2, 0.5), check=lambda m: m == b"abc",
        )  # fmt: skip
    assert result.codes == Counter(OK=200)
    assert result.seconds > 0
    assert result.latencies_ms.min() > 0


async def test_nobody_there() -> None:
    server = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    result = await rest_load(
        f"127.0.0.1:{port}", "/x", b"", connections=2, seconds=0.3, times=uniform(50, 0.3)
    )
    assert result.calls == 15
    assert result.ok == 0
    assert set(result.codes) <= {"UNAVAILABLE", "NOT_SENT"}


async def test_a_closed_loop_forgets_its_warm_up() -> None:
    calls = 0

    def check(message: bytes) -> bool:
        nonlocal calls
        calls += 1
        return True

    async with grpc_server.running() as target:
        began = time.monotonic()
        result = await grpc_load(
            target, "/t.S/Echo", b"abc", connections=1, in_flight=2, seconds=0.2, warm_up=0.2,
            check=check,
        )  # fmt: skip
        whole = time.monotonic() - began
    assert 0 < result.calls < calls
    assert len(result.latencies_ms) == result.calls
    # Without the warm-up, which may have ended late.
    assert 0 < result.seconds < whole - 0.19


@pytest.mark.parametrize("target", ["x", "host:", ":80", "host:port", "http://host:80", "h:70000"])
def test_targets_that_are_none(target: str) -> None:
    with pytest.raises(ConfigurationError, match="HOST:PORT"):
        split_target(target)


def test_targets() -> None:
    assert split_target("[::1]:8000") == ("::1", 8000)
    assert split_target("localhost:80") == ("localhost", 80)
