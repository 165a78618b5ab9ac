"""The run directory: whose it is, how long its path may be, and who is the controller."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import re
import stat
import threading
from pathlib import Path

import pytest

from tidegate.config.gateway import GatewayConfig
from tidegate.config.node import NodeConfig
from tidegate.controller.run_directory import (
    GatewayRecord,
    NodeRecord,
    RunDirectory,
    base_directory,
    find_nodes,
    write_whole,
)
from tidegate.errors import AddressInUse, ConfigurationError


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    # Paths may be as long as pytest makes them: nothing listens here.
    made = RunDirectory(tmp_path, 8000)
    made.replicas.mkdir(parents=True)
    made.logs.mkdir()
    return made


def test_where_it_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert base_directory(None) == tmp_path / "tidegate"
    assert base_directory(Path("/run/x")) == Path("/run/x")
    monkeypatch.chdir(tmp_path)
    assert base_directory(Path("x")) == tmp_path / "x"
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "gone"))
    assert base_directory(None).name == f"tidegate-{os.getuid()}"
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert base_directory(None).name == f"tidegate-{os.getuid()}"


def test_it_is_for_this_user_alone(tmp_path: Path) -> None:
    base = Path("/tmp") / f"tg{os.getpid()}"
    try:
        RunDirectory(base, 8000).create()
        for folder in (base, base / "8000", base / "8000/r", base / "8000/logs"):
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    finally:
        for path in sorted(base.rglob("*"), reverse=True):
            path.rmdir()
        base.rmdir()


def test_a_path_that_is_too_long_for_sockets_is_refused() -> None:
    base = Path("/tmp") / ("x" * 82)
    with pytest.raises(ConfigurationError, match=re.escape("give a shorter one with --run-dir")):
        RunDirectory(base, 8000).create()
    assert not base.exists()


def test_the_longest_path_is_long_enough_for_every_socket() -> None:
    """What is let through must be usable: its longest socket's path has 107 bytes at most."""
    base = Path("/tmp") / ("x" * 80)
    made = RunDirectory(base, 65535)
    sockets = (made.ads_socket, made.api_socket, made.replicas / "99999999.sock")
    for socket in (*sockets, made.path / "admin-9999.sock"):
        assert len(os.fsencode(socket)) <= 107
    made_of_bytes = Path("/tmp") / ("ü" * 41)
    with pytest.raises(ConfigurationError, match="too long"):
        RunDirectory(made_of_bytes, 8000).create()


def test_another_users_directory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = Path("/tmp") / f"tg{os.getpid()}"
    base.mkdir()
    try:
        mine = os.getuid()
        monkeypatch.setattr(os, "getuid", lambda: mine + 1)
        with pytest.raises(ConfigurationError, match="belongs to another user"):
            RunDirectory(base, 8000).create()
        # Nothing was put into it.
        assert list(base.iterdir()) == []
    finally:
        monkeypatch.undo()
        for path in sorted(base.rglob("*"), reverse=True):
            path.rmdir()
        base.rmdir()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make what is another user's")
def test_another_users_link_is_refused(tmp_path: Path) -> None:
    """/tmp is everybody's: the name may be taken by a link to somewhere else."""
    base = Path("/tmp") / f"tg{os.getpid()}l"
    base.symlink_to(tmp_path)
    try:
        os.lchown(base, 12345, 12345)
        with pytest.raises(ConfigurationError, match="belongs to another user"):
            RunDirectory(base, 8000).create()
        assert list(tmp_path.iterdir()) == []
    finally:
        base.unlink()


def test_what_cannot_be_made_says_why() -> None:
    with pytest.raises(ConfigurationError, match="cannot be made: Not a directory"):
        RunDirectory(Path("/dev/null/x"), 8000).create()


def test_the_second_controller_is_told_of_the_first(directory: RunDirectory) -> None:
    directory.lock()
    directory.lock()  # it is the controller already
    directory.save(NodeRecord(repository=Path("/models"), config=NodeConfig()))
    other = RunDirectory(directory.base, 8000)
    with pytest.raises(AddressInUse) as caught:
        other.lock()
    assert f"pid {os.getpid()}" in str(caught.value)
    assert "/models" in str(caught.value)
    assert "tidegate stop --port 8000" in str(caught.value)
    assert other.controller_pid() == os.getpid()
    directory.unlock()
    directory.unlock()
    assert other.controller_pid() is None
    other.lock()
    other.unlock()


def _hold(directory: RunDirectory, ready: threading.Event, go: threading.Event) -> None:
    directory.lock()
    ready.set()
    go.wait(30)


def test_a_dead_controller_holds_nothing(directory: RunDirectory) -> None:
    context = multiprocessing.get_context("spawn")
    ready, go = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(directory, ready, go))
    other.start()
    try:
        assert ready.wait(30)
        assert directory.controller_pid() == other.pid
        with pytest.raises(AddressInUse, match=f"pid {other.pid} "):
            directory.lock()
    finally:
        other.kill()
        other.join()
    assert directory.controller_pid() is None
    directory.lock()
    assert directory.controller_pid() == os.getpid()
    directory.unlock()


def test_who_only_looks_is_no_controller(directory: RunDirectory) -> None:
    """``tidegate status`` takes the lock for a moment to see whether somebody has it."""
    directory.lock()
    directory.unlock()
    looking = os.open(directory.path / "controller.lock", os.O_RDWR)
    fcntl.flock(looking, fcntl.LOCK_SH)
    timer = threading.Timer(0.1, os.close, [looking])
    timer.start()
    try:
        directory.lock()
    finally:
        timer.join()
    assert directory.controller_pid() == os.getpid()
    directory.unlock()


def test_a_lock_that_was_removed_meanwhile_counts_for_nothing(directory: RunDirectory) -> None:
    """A node that stops removes its lock; who opened it before must not rely on it."""
    directory.lock()
    directory.remove()
    assert not (directory.path / "controller.lock").exists()
    second = RunDirectory(directory.base, 8000)
    second.lock()
    assert second.controller_pid() == os.getpid()
    third = RunDirectory(directory.base, 8000)
    with pytest.raises(AddressInUse):
        third.lock()
    directory.unlock()
    with pytest.raises(AddressInUse):
        third.lock()
    second.unlock()


def test_many_at_once_are_one_at_a_time(directory: RunDirectory) -> None:
    """Controllers that come and go at once, each removing what it left, never overlap."""
    inside: list[int] = []
    worst: list[int] = []
    taken: list[int] = []

    def come_and_go(number: int) -> None:
        for _ in range(60):
            mine = RunDirectory(directory.base, 8000)
            try:
                mine.lock()
            except AddressInUse:
                continue
            inside.append(number)
            worst.append(len(inside))
            taken.append(number)
            inside.remove(number)
            mine.remove()
            mine.unlock()

    threads = [threading.Thread(target=come_and_go, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(worst) == 1
    assert taken


def test_the_record_is_whole_or_not_there(directory: RunDirectory) -> None:
    assert directory.load() is None
    record = NodeRecord(repository=Path("/m"), config=NodeConfig(port=8000), edge={"pid": 1})
    directory.save(record)
    assert directory.load() == record
    file = directory.path / "node.json"
    file.write_text(file.read_text()[:20])
    assert directory.load() is None
    write_whole(file, b"{}")
    assert directory.load() is None
    assert sorted(p.name for p in directory.path.iterdir()) == ["logs", "node.json", "r"]


def test_a_stopped_node_leaves_its_logs(directory: RunDirectory) -> None:
    directory.lock()
    names = ("ads.sock", "base-id", "envoy.log", "lifeline", "node.json", "node.json.new")
    for name in (*names, "r/1.json", "r/1.flight", "logs/m-1.0.log"):
        (directory.path / name).write_text("")
    directory.remove()
    directory.unlock()
    left = sorted(str(p.relative_to(directory.path)) for p in directory.path.rglob("*.*"))
    assert left == ["envoy.log", "logs/m-1.0.log"]


def test_nodes_are_found_by_their_records(tmp_path: Path) -> None:
    assert list(find_nodes(tmp_path / "none")) == []
    for name in ("8000", "9000", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "9000/node.json").write_text("{}")
    (tmp_path / "other/node.json").write_text("{}")
    assert [node.port for node in find_nodes(tmp_path)] == [9000]


def test_what_was_killed_there_before_is_not_what_is_there(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path, 8000)
    directory.create()
    directory.save(NodeRecord(repository=Path("/m"), config=NodeConfig(port=8000)))
    directory.save(GatewayRecord(file=Path("/g.yaml"), config=GatewayConfig(port=8000)))
    assert isinstance(directory.load(), GatewayRecord)
    directory.save(NodeRecord(repository=Path("/m"), config=NodeConfig(port=8000)))
    assert isinstance(directory.load(), NodeRecord)
