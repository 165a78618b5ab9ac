"""How busy a replica says that it is, and to whom."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.replica.edge_client import GRPC, EdgeClient, frame
from tests.replica.test_counting import FakeClock
from tests.replica.test_http2 import GRPC as FIELDS
from tests.replica.test_http2 import LIMIT, REST, Desk, Edge, call, framed
from tidegate.errors import InvalidInput, QueueFull
from tidegate.protocols.load_reports import ASK_HEADER, ASK_VALUE, REPORT_HEADER
from tidegate.protocols.routing import ONLY_HEADER
from tidegate.replica.batch import Run
from tidegate.replica.counting import Counters
from tidegate.replica.exchange import OpenConnections
from tidegate.replica.http import Server
from tidegate.replica.load_meter import WINDOW, LoadMeter, occupied_seconds

ASKING = (ASK_HEADER, ASK_VALUE)


class Meter:
    """A meter whose time, runs and event loop are the test's."""

    def __init__(self, batch: int = 1, threads: int = 0) -> None:
        self.clock = FakeClock()
        self.counters = Counters(self.clock)
        self.occupied = 7.0
        self.meter = LoadMeter(self.counters, self.clock, batch, threads, lambda: self.occupied)

    def ran(self, seconds: float, waited: float = 0.0) -> None:
        """A run of one request that has just ended."""
        ended = self.clock.now()
        began = ended - seconds
        run = Run(1, 1, seconds, 0.0, 0.0)
        self.counters.delivered([run], [began - waited], began, ended, 0.0)

    def said(self) -> float:
        return float(self.meter.report().partition(b"=")[2])


def test_an_idle_replica_says_nothing_else() -> None:
    meter = Meter()
    assert meter.meter.report() == b"TEXT application_utilization=0.000"
    meter.clock.time += 3600
    assert meter.said() == 0.0


def test_the_share_of_the_time_in_which_the_model_runs() -> None:
    meter = Meter()
    meter.said()
    meter.clock.time += 1.0
    meter.ran(0.25)
    meter.ran(0.125)
    assert meter.said() == pytest.approx(0.375)
    meter.clock.time += 1.0
    assert meter.said() == 0.0


def test_what_waits_comes_on_top_in_whole_batches() -> None:
    meter = Meter(batch=2)
    meter.clock.time += 1.0
    # Three wait all the time while one is run: one batch and a half.
    for _ in range(10):
        meter.ran(0.1, waited=0.3)
    assert meter.said() == pytest.approx(1.0 + 3 / 2)


def test_the_busiest_of_model_loop_and_hooks_counts() -> None:
    meter = Meter(threads=4)
    meter.clock.time += 1.0
    meter.ran(0.1)
    meter.occupied += 0.4
    assert meter.said() == pytest.approx(0.4)
    meter.clock.time += 1.0
    meter.counters.hooked(1.0, 0.0, 1.6, 0.8)
    assert meter.said() == pytest.approx(0.6)


def test_it_is_measured_once_in_a_window() -> None:
    meter = Meter()
    first = meter.meter.report()
    meter.clock.time += WINDOW / 2
    meter.ran(WINDOW / 2)
    assert meter.meter.report() is first
    meter.clock.time += WINDOW / 2
    assert meter.said() == pytest.approx(0.5)


def test_a_run_longer_than_the_window_is_no_more_than_busy() -> None:
    meter = Meter()
    meter.clock.time += 10.0
    meter.said()
    meter.clock.time += WINDOW
    meter.ran(10.0)
    assert meter.said() == 1.0


def test_a_thread_that_computes_is_occupied() -> None:
    before, began = occupied_seconds(), time.perf_counter()
    while time.perf_counter() - began < 0.05:
        pass
    assert occupied_seconds() - before > 0.03
    # One that sleeps is not, but for its wait for a core when it wakes up.
    found: list[float] = []

    def sleep() -> None:
        for _ in range(20):
            before = occupied_seconds()
            threading.Event().wait(0.05)
            found.append(occupied_seconds() - before)

    thread = threading.Thread(target=sleep)
    thread.start()
    thread.join()
    assert min(found) < 0.05


@contextlib.asynccontextmanager
async def reporting(folder: Path, *reports: bytes) -> AsyncIterator[Desk]:
    """A server whose load is the next of ``reports`` each time, and then the last."""
    said = list(reports)
    connections = OpenConnections()
    connections.load = lambda: said.pop(0) if len(said) > 1 else said[0]
    desk = Desk(folder / "s")
    async with Server(desk.path, desk.handle, LIMIT, connections=connections):
        yield desk


async def test_over_http2_who_asks_is_told(folder: Path) -> None:
    async with reporting(folder, b"TEXT a=1", b"TEXT a=1", b"TEXT a=2") as desk:
        edge = Edge()
        await edge.connect(desk.path)
        for stream, report in ((1, "TEXT a=1"), (3, "TEXT a=1"), (5, "TEXT a=2")):
            edge.send(call(stream, framed(b"hello"), [*FIELDS, ASKING]))
            (await desk.next()).reply_grpc((b"wor", b"ld"))
            answer = await edge.answer(stream)
            assert answer.blocks == [
                {":status": "200", "content-type": "application/grpc", REPORT_HEADER: report},
                {"grpc-status": "0"},
            ]
            assert answer.body == framed(b"world")
        # One too large for a frame.
        edge.send(call(7, b"", [*FIELDS, ASKING]))
        (await desk.next()).reply_grpc((bytes(2**15),))
        answer = await edge.answer(7)
        assert answer.blocks[0][REPORT_HEADER] == "TEXT a=2"
        assert answer.body == framed(bytes(2**15))
        # Errors and REST, too: a queue that is full is what a gateway most needs to know.
        edge.send(call(9, b"", [*FIELDS, ASKING]))
        (await desk.next()).fail(QueueFull("full"))
        assert (await edge.answer(9)).blocks[0][REPORT_HEADER] == "TEXT a=2"
        edge.send(call(11, b"{}", [*REST, ASKING]))
        (await desk.next()).reply([b"{}"])
        assert (await edge.answer(11)).blocks[0][REPORT_HEADER] == "TEXT a=2"
        # A gateway that has not read the message asks by naming the only model.
        edge.send(call(19, b"", [*FIELDS, (ONLY_HEADER, "m")]))
        (await desk.next()).reply_grpc((b"",))
        assert (await edge.answer(19)).blocks[0][REPORT_HEADER] == "TEXT a=2"
        # Nobody else.
        for stream, fields in ((21, FIELDS), (23, [*FIELDS, (ASK_HEADER, "yes")]), (25, REST)):
            edge.send(call(stream, b"{}", fields))
            (await desk.next()).fail(InvalidInput("no"))
            assert REPORT_HEADER not in (await edge.answer(stream)).blocks[0]
        edge.close()


async def test_over_http1_who_asks_is_told(folder: Path) -> None:
    async with reporting(folder, b"TEXT a=1") as desk, EdgeClient(folder / "s") as edge:
        for asked in (True, False):
            extra = dict([ASKING]) if asked else {}
            await edge.send("POST", "/a.B/C", {**GRPC, **extra}, frame(b"hello"))
            (await desk.next()).reply_grpc((b"world",))
            reply = await edge.receive()
            assert (reply.message, reply.trailers) == (b"world", {"grpc-status": "0"})
            assert reply.headers.get(REPORT_HEADER) == ("TEXT a=1" if asked else None)
            await edge.send("POST", "/v2/x", extra, b"{}")
            (await desk.next()).fail(InvalidInput("no"))
            reply = await edge.receive()
            assert reply.headers.get(REPORT_HEADER) == ("TEXT a=1" if asked else None)


async def test_where_nothing_is_measured_nothing_is_told(folder: Path) -> None:
    desk = Desk(folder / "s")
    async with Server(desk.path, desk.handle, LIMIT):
        edge = Edge()
        await edge.connect(desk.path)
        edge.send(call(1, b"", [*FIELDS, ASKING]))
        (await desk.next()).reply_grpc((b"",))
        assert REPORT_HEADER not in (await edge.answer(1)).blocks[0]
        edge.close()
