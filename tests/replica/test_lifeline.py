from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tidegate.replica import lifeline

WAIT = 30.0

WATCHER = """
import os, signal, sys
from pathlib import Path
from tidegate.replica import lifeline

class Grace:
    # In the place of a pause: says that it has come to it, goes on when it is told to.
    @staticmethod
    def sleep(seconds):
        if seconds == lifeline._GRACE:
            print("grace", flush=True)
            sys.stdin.readline()

lifeline.time = Grace
lifeline.watch(Path(sys.argv[1]), lambda: os._exit(7))
print("watching", flush=True)
signal.pause()
"""

HOLDER = """
import signal, subprocess, sys
from pathlib import Path
from tidegate.replica import lifeline

descriptor = lifeline.hold(Path(sys.argv[1]))
if len(sys.argv) > 2:
    child = subprocess.Popen(
        [sys.executable, "-c", "import signal; print('child', flush=True); signal.pause()"],
        pass_fds=[descriptor],
    )
    print(child.pid, flush=True)
else:
    print("holding", flush=True)
signal.pause()
"""


@contextmanager
def running(script: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def go_on(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def still_watches(process: subprocess.Popen[str]) -> bool:
    """It does nothing while somebody holds, so that any length of time would do."""
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.2)
    return True


def die(process: subprocess.Popen[Any]) -> None:
    process.kill()
    process.wait()


def test_it_ends_only_when_the_last_holder_has_died(tmp_path: Path) -> None:
    path = tmp_path / "lifeline"
    with running(HOLDER, path) as controller, running(HOLDER, path) as edge:
        assert line(controller) == line(edge) == "holding"
        with running(WATCHER, path) as watcher:
            assert line(watcher) == "watching"
            die(controller)
            assert still_watches(watcher)
            die(edge)
            assert line(watcher) == "grace"
            go_on(watcher)
            assert watcher.wait(WAIT) == 7


def test_a_controller_that_comes_back_at_once_keeps_it(tmp_path: Path) -> None:
    path = tmp_path / "lifeline"
    with running(HOLDER, path) as first:
        assert line(first) == "holding"
        with running(WATCHER, path) as watcher:
            assert line(watcher) == "watching"
            die(first)
            assert line(watcher) == "grace"
            with running(HOLDER, path) as second:
                assert line(second) == "holding"
                go_on(watcher)
                assert still_watches(watcher)
                die(second)
                assert line(watcher) == "grace"
                go_on(watcher)
                assert watcher.wait(WAIT) == 7


def test_a_child_that_inherits_the_lock_holds_it_on(tmp_path: Path) -> None:
    path = tmp_path / "lifeline"
    with running(HOLDER, path, "with a child") as controller:
        lines = {line(controller), line(controller)}
        child = int((lines - {"child"}).pop())
        try:
            with running(WATCHER, path) as watcher:
                assert line(watcher) == "watching"
                die(controller)
                assert still_watches(watcher)
                os.kill(child, 9)
                assert line(watcher) == "grace"
                go_on(watcher)
                assert watcher.wait(WAIT) == 7
        finally:
            if os.path.exists(f"/proc/{child}"):  # noqa: PTH110
                os.kill(child, 9)


def test_many_watchers_do_not_keep_each_other_alive(tmp_path: Path) -> None:
    path = tmp_path / "lifeline"
    with running(HOLDER, path) as holder:
        assert line(holder) == "holding"
        with (
            running(WATCHER, path) as one,
            running(WATCHER, path) as two,
            running(WATCHER, path) as three,
        ):
            watchers = (one, two, three)
            assert [line(watcher) for watcher in watchers] == ["watching"] * 3
            die(holder)
            assert [line(watcher) for watcher in watchers] == ["grace"] * 3
            for watcher in watchers:
                go_on(watcher)
            assert [watcher.wait(WAIT) for watcher in watchers] == [7, 7, 7]


def test_no_lifeline_is_nobody(tmp_path: Path) -> None:
    with running(WATCHER, tmp_path / "none") as watcher:
        assert watcher.wait(WAIT) == 7


def test_holding_makes_the_file_and_closing_lets_go(tmp_path: Path) -> None:
    path = tmp_path / "lifeline"
    descriptor = lifeline.hold(path)
    other = lifeline.hold(path)
    assert not lifeline._is_free(path)
    os.close(descriptor)
    assert not lifeline._is_free(path)
    os.close(other)
    assert lifeline._is_free(path)
    assert not os.get_inheritable(lifeline.hold(path))
