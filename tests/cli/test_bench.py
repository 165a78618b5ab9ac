"""``tidegate bench``: what it refuses, and a short run against a real node."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.cli.conftest import RunningNode, tidegate
from tests.load import grpc_server
from tests.ports import free_port
from tidegate.cli.main import run


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rate", "nan"], "'nan' is not a number above 0"),
        (["--rate", "100,inf"], "'inf' is not a number above 0"),
        (["--rate", "-1"], "'-1' is not a number above 0"),
        (["--rate", "x"], "'x' is not a number above 0"),
        (["--rate", ""], "'' is not a number above 0"),
        (["-c", "1,0"], "'0' is not a whole number above 0"),
        (["-c", "2.5"], "'2.5' is not a whole number above 0"),
        (["-d", "nan"], "'nan' is not a time from 0.01s"),
        (["-d", "soon"], "'soon' is not a time from 0.01s"),
        (["--warm-up", "-1"], "'-1' is not a time from 0s"),
        (["--timeout", "0"], "'0' is not a time from 0.001s"),
        (["--shape", "x"], "'x' is not of the form NAME=N,N"),
        (["--shape", "x=1,-2"], "is not of the form NAME=N,N"),
        (["--batch", "0"], "0 is not in the range"),
        (["--input", "/nonexistent.npz"], "does not exist"),
        (["--encoding", "json"], "--encoding json does not go with --protocol grpc"),
        (["--protocol", "rest", "--connections", "2"], "--connections is for grpc"),
        (["--connections", "3"], "cannot share 8 calls in flight equally"),
        (["--rate", "5", "-c", "1,2"], "give one --concurrency"),
    ],
)
def test_command_lines_that_cannot_be(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", "127.0.0.1:1", "-m", "m", *arguments]) == 2
    assert words in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["http://127.0.0.1:1"], os.EX_CONFIG, "is not of the form HOST:PORT"),
        (["127.0.0.1:{free}"], os.EX_UNAVAILABLE, "nobody answers at 127.0.0.1:"),
        (["127.0.0.1:{free}", "--protocol", "rest"], os.EX_UNAVAILABLE, "nobody answers at"),
        (["127.0.0.1:{free}", "--plot", "x.gif"], os.EX_CONFIG, "must end in one of .png"),
    ],
)
def test_targets_that_do_not_answer(
    arguments: list[str], status: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    filled = [argument.format(free=free_port()) for argument in arguments]
    assert run(["bench", *filled, "-m", "m"]) == status
    err = capsys.readouterr().err
    assert words in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("missing", "options"), [("hpack", []), ("matplotlib", ["--plot", "x.png"])]
)
def test_an_install_without_the_parts(missing: str, options: list[str]) -> None:
    arguments = ["bench", "127.0.0.1:1", "-m", "m", *options]
    code = (
        f"import sys; sys.modules[{missing!r}] = None; from tidegate.cli.main import run; "
        f"sys.exit(run({arguments!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=240)
    assert done.returncode == os.EX_UNAVAILABLE, done.stderr
    assert missing.encode() in done.stderr
    assert b"pip install 'tidegate[bench]'" in done.stderr


async def test_a_server_of_another_protocol(capsys: pytest.CaptureFixture[str]) -> None:
    async with grpc_server.running() as target:
        status = await asyncio.to_thread(run, ["bench", target, "-m", "m"])
    assert status == os.EX_USAGE
    assert "does it speak the Open Inference Protocol" in capsys.readouterr().err


@pytest.mark.parametrize("protocol", ["grpc", "rest"])
def test_a_model_that_is_not_there(protocol: str, node: RunningNode) -> None:
    done = tidegate("bench", f"127.0.0.1:{node.port}", "-m", "nope", "--protocol", protocol)
    assert done.returncode == os.EX_NOINPUT
    assert b"says of the model 'nope': " in done.stderr


def test_open_loop_with_files(node: RunningNode, tmp_path: Path) -> None:
    json_file, picture = tmp_path / "f.json", tmp_path / "f.svg"
    done = tidegate(
        "bench", f"127.0.0.1:{node.port}", "-m", "picture", "--rate", "50,100", "-d", "500ms",
        "--warm-up", "0.2", "--batch", "2", "--output", str(json_file), "--plot", str(picture),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert b"x FP32 [2, 3, 4, 6]" in done.stdout
    told = json.loads(json_file.read_text())
    assert (told["model"], told["encoding"], told["arrivals"]) == ("picture", "raw", "poisson")
    assert told["request"]["rows"] == 2
    assert [p["offered_rate"] for p in told["points"]] == [50, 100]
    assert [p["codes"] for p in told["points"]] == [{"OK": 25}, {"OK": 50}]
    for point in told["points"]:
        latency = point["latency_ms"]
        assert 0 < latency["p50"] <= latency["p90"] <= latency["p99.9"] <= latency["max"]
    assert picture.read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("options", "encoding"),
    [([], "raw"), (["--encoding", "typed"], "typed"), (["--protocol", "rest"], "json"),
     (["--protocol", "rest", "--encoding", "binary"], "binary")],
)  # fmt: skip
def test_closed_loops_of_every_encoding(
    options: list[str], encoding: str, node: RunningNode, tmp_path: Path
) -> None:
    np.savez(tmp_path / "x.npz", x=np.ones((1, 4), np.float32))
    done = tidegate(
        "bench", f"127.0.0.1:{node.port}", "-m", "scale", "--version", "2", "-c", "1,6",
        "-d", "0.2", "--warm-up", "0", "--input", str(tmp_path / "x.npz"), "--json", *options,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["encoding"], told["arrivals"], told["version"]) == (encoding, None, "2")
    assert [p["concurrency"] for p in told["points"]] == [1, 6]
    assert all(p["failed"] == 0 < p["ok"] for p in told["points"])


def test_calls_that_fail(node: RunningNode) -> None:
    done = tidegate(
        "bench", f"127.0.0.1:{node.port}", "-m", "scale", "--shape", "x=3,4", "-d", "0.2",
        "--timeout", "0.001", "--protocol", "rest", "-c", "50",
    )  # fmt: skip
    assert done.returncode in (0, 1)
    assert (b"not all calls succeeded" in done.stdout) == (done.returncode == 1)
