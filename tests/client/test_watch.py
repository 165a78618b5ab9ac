"""Calls of threads are looked after while they wait."""

from __future__ import annotations

import threading

from tidegate.client.watch import Watch


def test_a_call_that_waits_is_looked_after_again_and_again() -> None:
    acted: list[str] = []
    often = threading.Event()

    def act(what: str) -> None:
        acted.append(what)
        if acted.count("a") >= 3:
            often.set()

    watch = Watch(0.02, act)
    with watch.waiting("a"), watch.waiting("b"):
        assert often.wait(20)
    assert {"a", "b"} == set(acted)


def test_one_that_fails_to_act_does_not_end_the_looking() -> None:
    often = threading.Semaphore(0)

    def act(what: str) -> None:
        often.release()
        raise RuntimeError("closed")

    watch = Watch(0.02, act)
    with watch.waiting("a"):
        assert all(often.acquire(timeout=60) for _ in range(3))
