"""Files stay within bounds, whoever writes them."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tidegate.telemetry.rotation import copy_and_truncate, rename_if_larger, shift

LINE = b"x" * 99 + b"\n"


def test_older_files_move_up_and_the_oldest_goes(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    for number in range(5):
        log.write_text(str(number))
        shift(log, files=2)
        assert not log.exists()
    assert {f.name: f.read_text() for f in tmp_path.iterdir()} == {"a.log.1": "4", "a.log.2": "3"}


def test_what_is_small_or_not_there_is_left_alone(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    assert not rename_if_larger(log, 1, 1)
    assert not copy_and_truncate(log, 1, 1)
    log.write_bytes(LINE)
    assert not rename_if_larger(log, 100, 1)
    assert not copy_and_truncate(log, 100, 1)
    assert log.read_bytes() == LINE


@pytest.mark.parametrize("files", [1, 2])
def test_a_file_that_another_has_open_is_copied_from_a_lines_beginning(
    tmp_path: Path, files: int
) -> None:
    log = tmp_path / "a.log"
    with log.open("ab", buffering=0) as writing:
        for _ in range(3):
            writing.write(LINE * 10)
            assert copy_and_truncate(log, 450, files)
            assert log.read_bytes() == b""
        writing.write(b"goes on\n")
    assert log.read_bytes() == b"goes on\n"
    names = {f"a.log.{number}" for number in range(1, files + 1)}
    assert {f.name for f in tmp_path.iterdir()} == {"a.log", *names}
    for name in names:
        assert (tmp_path / name).read_bytes() == LINE * 4


def writer(log: Path, code: str) -> subprocess.Popen[bytes]:
    """A process whose output is ``log`` and which rotates it; ``code`` has it in ``own``."""
    program = f"""
import os, pathlib, sys
from tidegate.telemetry.rotation import OwnOutput
own = OwnOutput(pathlib.Path({str(log)!r}), 1000, 2)
""" + textwrap.dedent(code)
    with log.open("ab") as output:
        return subprocess.Popen([sys.executable, "-c", program], stdout=output, stderr=output)


def test_a_process_rotates_its_own_output_native_writes_included(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    code = """
    for number in range(100):
        os.write(1 + number % 2, b"%03d" % number + b"x" * 96 + b"\\n")  # as native code does
        own.check()
    """
    assert writer(log, code).wait(60) == 0
    assert {f.name for f in tmp_path.iterdir()} == {"a.log", "a.log.1", "a.log.2"}
    text = b"".join((tmp_path / f"a.log{end}").read_bytes() for end in (".2", ".1", ""))
    numbers = [int(line[:3]) for line in text.splitlines()]
    assert numbers == list(range(numbers[0], 100)), "no line is lost"
    assert all(f.stat().st_size <= 1100 for f in tmp_path.iterdir())


def test_what_was_written_between_two_looks_is_cut(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    code = """
    os.write(1, (b"y" * 99 + b"\\n") * 10_000)
    own.check()
    """
    assert writer(log, code).wait(60) == 0
    assert log.read_bytes() == b""
    assert (tmp_path / "a.log.1").read_bytes() == (b"y" * 99 + b"\n") * 9


def test_two_that_write_to_one_file_rotate_it_once(tmp_path: Path) -> None:
    """Two generations of a version do so while one replaces the other."""
    log = tmp_path / "a.log"
    code = """
    for number in range(2000):
        os.write(1, b"z" * 49 + b"\\n")
        own.check()
    """
    processes = [writer(log, code) for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert {f.name for f in tmp_path.iterdir()} <= {"a.log", "a.log.1", "a.log.2"}
    assert all(f.stat().st_size <= 2100 for f in tmp_path.iterdir())
    assert all(
        set((tmp_path / name).read_bytes()) <= set(b"z\n") for name in ("a.log.1", "a.log.2")
    )


def test_a_file_that_somebody_removed_is_made_again(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    code = """
    os.unlink(own._path)
    own.check()
    os.write(2, b"back\\n")
    """
    assert writer(log, code).wait(60) == 0
    assert log.read_bytes() == b"back\n"


def test_the_thread_rotates_what_is_written_without_end(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    code = """
    own.watch()
    while True:
        os.write(1, b"w" * 99 + b"\\n")
        if os.path.exists(str(own._path) + ".2"):
            break
    """
    assert writer(log, code).wait(60) == 0


def test_an_output_that_is_no_file_of_ours_is_left_alone(tmp_path: Path) -> None:
    program = f"""
import pathlib, threading
from tidegate.telemetry.rotation import OwnOutput
OwnOutput(pathlib.Path({str(tmp_path / "a.log")!r}), 1, 1).watch()
assert threading.active_count() == 1
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert list(tmp_path.iterdir()) == []


def test_what_native_code_cannot_be_told_to_leave_out(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    code = """
    import re, threading
    from tidegate.telemetry.rotation import errors_without
    looker = threading.Thread(target=own.check)
    with errors_without(re.compile(rb"^noise.*\\n", re.M)):
        looker.start()
        os.write(2, b"noise one\\nwords\\nnoise two\\n")
    looker.join()
    os.write(2, b"end\\n")
    """
    assert writer(log, code).wait(60) == 0
    assert log.read_bytes() == b"words\nend\n"
