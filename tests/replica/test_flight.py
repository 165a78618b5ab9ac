from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tidegate.replica.engine import RequestSlot
from tidegate.replica.flight import FlightRecorder, Suspect, read_suspects, tag

DIGEST = bytes(range(16))

DYING = """
import os, signal, sys
from pathlib import Path
from tidegate.replica.flight import FlightRecorder, tag
from tidegate.scheduling.slot import Slot

def slot(tag):
    return Slot("work", print, arrived=0.0, tag=tag)

recorder = FlightRecorder(Path(sys.argv[1]))
recorder.started([slot(tag(b"before", None))])
recorder.ended()
recorder.started([slot(tag(b"first", None)), slot(None), slot(tag(b"second", bytes(range(16))))])
if sys.argv[2] == "idle":
    recorder.ended()
os.kill(os.getpid(), signal.SIGKILL)
"""


def slot(tag: bytes | None) -> RequestSlot:
    return RequestSlot(None, lambda _: None, arrived=0.0, tag=tag)  # type: ignore[arg-type]


@pytest.mark.parametrize("state", ["running", "idle"])
def test_what_was_being_run_survives_a_kill(tmp_path: Path, state: str) -> None:
    path = tmp_path / "flight"
    died = subprocess.run([sys.executable, "-c", DYING, str(path), state], timeout=60)
    assert died.returncode == -signal.SIGKILL
    expected = [Suspect(b"first", None), Suspect(b"second", DIGEST)]
    assert read_suspects(path) == (expected if state == "running" else [])


def test_a_longer_note_leaves_nothing_of_itself_in_a_shorter_one(tmp_path: Path) -> None:
    recorder = FlightRecorder(tmp_path / "flight")
    recorder.started([slot(tag(b"one" * 20, DIGEST)), slot(tag(b"two", None))])
    recorder.ended()
    recorder.started([slot(tag(b"x", None))])
    assert read_suspects(tmp_path / "flight") == [Suspect(b"x", None)]


def test_a_new_process_starts_with_a_clean_record(tmp_path: Path) -> None:
    FlightRecorder(tmp_path / "flight").started([slot(tag(b"old", None))])
    FlightRecorder(tmp_path / "flight")
    assert read_suspects(tmp_path / "flight") == []


def test_requests_without_an_id_are_not_named(tmp_path: Path) -> None:
    FlightRecorder(tmp_path / "flight").started([slot(None), slot(tag(b"", None)), slot(None)])
    assert read_suspects(tmp_path / "flight") == []


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        (b"a" * 200, b"a" * 64),
        (b"two words " + b"g" * 32, b"twowords" + b"g" * 32),
        (b"\xff", b"\xff"),
    ],
)
def test_strange_ids_do_no_harm(tmp_path: Path, sent: bytes, kept: bytes) -> None:
    recorder = FlightRecorder(tmp_path / "flight")
    for digest in (None, DIGEST, bytes(16)):
        recorder.started([slot(tag(sent, digest)), slot(tag(b"next", None))])
        found = read_suspects(tmp_path / "flight")
        assert found == [Suspect(kept[:64], digest), Suspect(b"next", None)]


def test_more_than_fits_is_cut_off(tmp_path: Path) -> None:
    recorder = FlightRecorder(tmp_path / "flight")
    recorder.started([slot(tag(b"%064d" % i, DIGEST)) for i in range(5000)])
    found = read_suspects(tmp_path / "flight")
    assert len(found) >= 512
    assert found[:100] == [Suspect(b"%064d" % i, DIGEST) for i in range(100)]


def test_no_file_names_nobody(tmp_path: Path) -> None:
    assert read_suspects(tmp_path / "none") == []
    (tmp_path / "empty").touch()
    assert read_suspects(tmp_path / "empty") == []


def test_what_was_torn_by_the_death_is_no_digest(tmp_path: Path) -> None:
    path = tmp_path / "f"
    for torn in (b"id zz" + b"0" * 30, b"id \xff\xfe", b"id 00"):
        path.write_bytes(len(torn).to_bytes(4, "little") + torn)
        assert read_suspects(path) == [Suspect(b"id", None)]
