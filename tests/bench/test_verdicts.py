"""What is judged of a fault, on timelines made by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bench.timeline import Attempts, Calls, to_attempts
from bench.verdicts import Seen, rows, timeline, verdict

RATE = 200
FAULT, HEAL, END = 4.0, 8.0, 12.0


def calls(slow: tuple[float, float] = (0, 0), failing: tuple[float, float] = (0, 0)) -> Calls:
    """Calls of 10 ms, of which those due in ``slow`` took 500, and those in ``failing`` failed."""
    due = np.arange(0, END, 1 / RATE)
    took = np.where((due >= slow[0]) & (due < slow[1]), 500.0, 10.0)
    failed = (due >= failing[0]) & (due < failing[1])
    codes = ["UNAVAILABLE" if each else "OK" for each in failed]
    return Calls(due, took, codes, ["" if each else "a" for each in failed])


def attempts(away: list[tuple[float, float]]) -> Attempts:
    """Two backends with the same share, but that ``b`` gets nothing while it is ``away``."""
    times = np.arange(0, END + 0.05, 0.1)
    counts = {"a": [0.0], "b": [0.0]}
    for at in times[1:]:
        gone = any(start < at - 0.05 < end for start, end in away)
        counts["a"].append(counts["a"][-1] + (20 if gone else 10))
        counts["b"].append(counts["b"][-1] + (0 if gone else 10))
    return Attempts(times, {name: np.array(seen) for name, seen in counts.items()})


def seen(fault: str, found: Calls, sent: Attempts, in_flight: int = 3) -> Seen:
    return Seen(fault, found, sent, in_flight, FAULT, HEAL, HEAL, END)


def test_percentiles_are_of_the_calls_due_in_a_window() -> None:
    found = calls(slow=(4.0, 5.0))
    assert found.percentile(99, 3.0, 4.0) == 10
    assert found.percentile(99, 4.9, 5.9) == 500
    assert found.percentile(99, 20.0, 21.0) == 0


def test_normal_again_is_the_end_of_the_last_bad_window() -> None:
    assert calls().normal_again(FAULT, HEAL, 20) == 0
    assert calls(slow=(4.0, 5.0)).normal_again(FAULT, HEAL, 20) == pytest.approx(1.9, abs=0.11)
    # Bad, good, and bad again: not before the second.
    found = calls(slow=(6.0, 6.2)).normal_again(FAULT, HEAL, 20)
    assert found == pytest.approx(3.1, abs=0.11)
    assert calls(slow=(4.0, 9.0)).normal_again(FAULT, HEAL, 20) == math.inf


def test_a_share_is_of_attempts_and_is_left_when_it_stays_away() -> None:
    sent = attempts([(4.3, 8.5)])
    assert sent.share("b", 1, 2) == pytest.approx(0.5)
    assert sent.share("b", 5, 6) == 0
    assert sent.left("b", FAULT, HEAL) == pytest.approx(0.8, abs=0.11)
    assert sent.returned("b", HEAL, END, 0.45) == pytest.approx(1.0, abs=0.11)
    assert attempts([(4.3, 7.0)]).left("b", FAULT, HEAL) == math.inf
    assert attempts([(4.3, 12.0)]).returned("b", HEAL, END, 0.45) == math.inf


def test_swings_are_counted_once_each() -> None:
    sent = attempts([(1, 2), (3, 4), (5, 6)])
    assert sent.swings("b", 0, END, 0.025, 0.25) == 3
    assert sent.swings("b", 2.5, END, 0.025, 0.25) == 2
    assert attempts([]).swings("b", 0, END, 0.025, 0.25) == 0


def test_attempts_that_found_no_connection_count() -> None:
    """``rq_total`` has those only that reached one."""
    looks = [
        {"a": {"rq_total": 5, "rq_success": 5}},
        {"a": {"rq_total": 15, "rq_success": 12, "rq_active": 3}, "b": {"rq_total": 4}},
        {"a": {"rq_total": 15, "rq_success": 15, "rq_error": 5}, "b": {"rq_total": 3}},
    ]
    sent = to_attempts([0.0, 1.0, 2.0], looks)
    assert sent.counts["a"].tolist() == [0, 10, 15]
    assert sent.counts["b"].tolist() == [0, 4, 4]


def test_a_fault_that_was_handled_well() -> None:
    found = verdict(seen("blackhole", calls(slow=(4.0, 4.5)), attempts([(4.5, 8.4)])), 1.0)
    assert found["failed"] == 0
    assert found["holds"] == dict.fromkeys(("failed", "normal", "left", "returned"), True)


def test_more_failures_than_calls_in_flight_do_not_hold() -> None:
    found = calls(failing=(4.0, 4.02))
    assert sum(found.failures(0, END).values()) == 4
    told = verdict(seen("blackhole", found, attempts([(4.0, 8.4)]), in_flight=4), 1.0)
    assert told["holds"]["failed"]
    assert told["codes"] == {"UNAVAILABLE": 4}
    assert not verdict(seen("blackhole", found, attempts([]), in_flight=3), 1.0)["holds"]["failed"]
    # Of a kill none may fail: all can be asked of another.
    assert not verdict(seen("kill", found, attempts([]), in_flight=9), 1.0)["holds"]["failed"]
    # What was answered cannot be asked again.
    assert "failed" not in verdict(seen("error", found, attempts([])), 1.0)["holds"]


def test_a_call_that_was_under_way_at_the_fault_belongs_to_it() -> None:
    found = calls(failing=(3.5, 3.51))
    assert verdict(seen("blackhole", found, attempts([])), 1.0)["failed"] == 2
    assert verdict(seen("blackhole", found, attempts([])), 0.1)["failed"] == 0


def test_a_flapping_backend_may_come_back_twice() -> None:
    away = [(4.0, 4.8), (5.4, 6.2), (6.8, 7.6)]
    told = verdict(seen("flap", calls(), attempts(away[:2])), 1.0)
    assert (told["swings"], told["cycles"]) == (2, 2)
    assert told["holds"] == {"failed": True, "swings": True}
    times = np.arange(0, END + 0.05, 0.1)
    assert times.size == attempts(away).times.size
    far = Seen("flap", calls(), attempts([*away, (8.2, 9.0)]), 3, FAULT, 11.0, 11.0, END)
    assert not verdict(far, 1.0)["holds"]["swings"]


def test_a_share_that_never_goes_is_marked() -> None:
    told = verdict(seen("slow", calls(slow=(4.0, 8.0)), attempts([])), 1.0)
    assert (told["normal"], told["left"]) == (None, None)
    ((name, *cells),) = rows({"slow": told})
    assert name == "slow"
    assert cells.count("never *") == 2


def test_a_timeline_has_a_point_for_every_tenth_of_a_second() -> None:
    line = timeline(seen("kill", calls(failing=(4.0, 4.02)), attempts([(4.0, 8.0)])))
    assert len(line["seconds"]) == len(line["p99 ms"]) == len(line["shares"]["b"]) == 120
    assert sum(line["failed"]) == 4
    assert line["failed"][40] == 4
    assert line["shares"]["b"][60] == 0
