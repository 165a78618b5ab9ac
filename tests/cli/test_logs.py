from __future__ import annotations

import json
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.cli.conftest import ENVIRONMENT, RunningNode, command, tidegate
from tidegate.cli.logs import Tail, start_of_last_lines
from tidegate.config.node import NodeConfig
from tidegate.controller.run_directory import NodeRecord, ReplicaLog, RunDirectory


def _read(tail: Tail) -> list[bytes]:
    return list(tail.read())


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 9])
@pytest.mark.parametrize("end", [b"", b"\n"])
@pytest.mark.parametrize("width", [1, 40_000, 200_000])
def test_the_last_lines(tmp_path: Path, count: int, end: bytes, width: int) -> None:
    lines = [bytes([letter]) * width for letter in b"abcd"]
    file = tmp_path / "a.log"
    file.write_bytes(b"\n".join(lines) + end)
    with file.open("rb") as opened:
        opened.seek(start_of_last_lines(opened, count))
        assert opened.read().splitlines() == lines[len(lines) - min(count, 4) :]


def test_a_tail_goes_on_through_rotation_and_truncation(tmp_path: Path) -> None:
    file = tmp_path / "a.log"
    tail = Tail(file, 2)
    assert _read(tail) == []
    file.write_bytes(b"1\n2\n3\npar")
    assert _read(tail) == [b"3"]
    assert tail.rest() == b"par"
    with file.open("ab") as writing:
        writing.write(b"t\n4\n")
        writing.flush()
        assert _read(tail) == [b"part", b"4"]
        writing.write(b"the last of the old file\n")
    file.rename(tmp_path / "a.log.1")
    file.write_bytes(b"the first of the new\n")
    assert _read(tail) == [b"the last of the old file", b"the first of the new"]
    file.rename(tmp_path / "a.log.2")
    assert _read(tail) == []
    file.write_bytes(b"x\n")
    assert _read(tail) == [b"x"]
    with file.open("r+b") as writing:
        writing.truncate(0)
        writing.write(b"y")
    assert _read(tail) == []
    assert tail.rest() == b"y"
    tail.close()


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, []),
        (1, [b"4"]),
        (2, [b"3", b"4"]),
        (3, [b"2", b"3", b"4"]),
        (9, [b"1", b"2", b"3", b"4"]),
    ],
)
def test_what_was_written_before_the_log_was_rotated(
    tmp_path: Path, count: int, expected: list[bytes]
) -> None:
    (tmp_path / "a.log.1").write_bytes(b"1\n2\n")
    (tmp_path / "a.log").write_bytes(b"3\n4\n")
    with closing(Tail(tmp_path / "a.log", count)) as tail:
        assert _read(tail) == expected


def test_a_line_without_an_end_takes_bounded_memory(tmp_path: Path) -> None:
    file = tmp_path / "a.log"
    file.write_bytes(b"x" * (5 * 2**20))
    with closing(Tail(file, None)) as tail:
        assert max(map(len, _read(tail))) <= 2**20 + 2**16
        assert len(tail.rest()) <= 2**20


def test_the_names_of_replicas_logs(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path, 1)
    directory.logs.mkdir(parents=True)
    paths = {}
    for model, version, replica in (("a-1", 10, 2), ("a", 1, 0), ("b.1", 2, 0)):
        path = directory.replica_log(model, version, replica)
        path.write_text("")
        paths[model] = ReplicaLog(model, version, replica, path)
    (directory.logs / "access.log").write_text("")
    (directory.logs / "a-1.0.log.1").write_text("")
    assert directory.replica_logs() == [paths["a"], paths["a-1"], paths["b.1"]]


def test_logs_of_a_model(node: RunningNode) -> None:
    done = tidegate("logs", "scale", *node.options)
    assert done.returncode == 0, done.stderr
    marks = {line.partition(b" | ")[0] for line in done.stdout.splitlines()}
    assert marks == {b"scale/1/0", b"scale/1/1", b"scale/2/0", b"scale/2/1"}
    one = tidegate("logs", "scale", "--version=2", "--replica=1", "--lines=1", *node.options)
    (line,) = one.stdout.splitlines()
    assert b"ready: batches" in line
    assert b" | " not in line
    told = tidegate("logs", "words", "--json", *node.options).stdout.splitlines()
    assert {json.loads(line)["log"] for line in told} == {"words/1/0"}
    assert "loading words" in json.loads(told[0])["line"]


def test_logs_of_the_edge(node: RunningNode) -> None:
    done = tidegate("logs", "edge", "-n", "3", *node.options)
    assert (done.returncode, done.stderr) == (0, b"")


def test_logs_of_the_controller(node: RunningNode) -> None:
    done = tidegate("logs", "controller", *node.options)
    assert done.returncode == 0, done.stderr
    assert b"INFO serving " in done.stdout
    assert b"INFO words:1#0 ready in " in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sclae"], "no replica of a model 'sclae' has run"),
        (["sclae"], "did you mean 'scale'?"),
        (["scale", "--version=7"], "'scale' has no replica of version 7; there are (version"),
        (["scale", "--replica=7"], "with number 7"),
    ],
)
def test_what_has_no_log(node: RunningNode, arguments: list[str], words: str) -> None:
    done = tidegate("logs", *arguments, *node.options)
    assert done.returncode == 66
    assert words in done.stderr.decode()


def test_logs_without_a_node(tmp_path: Path) -> None:
    done = tidegate("logs", "scale", f"--run-dir={tmp_path}")
    assert done.returncode == 66
    assert b"no node of yours runs" in done.stderr


@contextmanager
def _following(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        command("logs", *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
    )
    timer = threading.Timer(60, process.kill)
    timer.start()
    try:
        with process:
            yield process
    finally:
        timer.cancel()


def _until(process: subprocess.Popen[bytes], words: bytes) -> list[bytes]:
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if words in line:
            return seen
    assert process.stderr is not None
    raise AssertionError((seen, process.stderr.read()))


def test_follow_ends_when_the_node_stops() -> None:
    # A Unix socket's path has 107 bytes: pytest's temporary folders are too deep.
    with tempfile.TemporaryDirectory(prefix="tg", dir="/tmp") as base:
        directory = RunDirectory(Path(base), 8000)
        directory.create()
        directory.save(NodeRecord(repository=Path("models"), config=NodeConfig()))
        directory.replica_log("m", 1, 0).write_text("one\n")
        with _following("m", "-f", f"--run-dir={base}") as process:
            _until(process, b"one")
            with directory.replica_log("m", 1, 0).open("a") as log:
                log.write("the last words\n")
            (directory.path / "node.json").unlink()
            out, err = process.communicate()
    assert (process.returncode, out) == (0, b"m/1/0 | the last words\n")
    assert b"the node on port 8000 has stopped" in err


def test_follow_survives_rotation_and_ctrl_c_ends_it_quietly(node: RunningNode) -> None:
    log = RunDirectory(node.run_dir, node.port).replica_log("picture", 1, 0)
    with _following("picture", "--follow", "--lines=1", *node.options) as process:
        assert _until(process, b"ready: batches")[0].startswith(b"picture/1/0 | ")
        with log.open("ab") as file:
            file.write(b"written later\n")
        _until(process, b"written later")
        log.rename(log.with_name(log.name + ".1"))
        log.write_bytes(b"in the new file\n")
        _until(process, b"in the new file")
        log.write_bytes(b"short\n")
        assert _until(process, b"short") == [b"picture/1/0 | short\n"]
        log.with_name("picture-1.1.log").write_bytes(b"of another replica\n")
        assert _until(process, b"another")[0] == b"picture/1/1 | of another replica\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
        assert (process.returncode, out, err.strip()) == (130, b"", b"")
