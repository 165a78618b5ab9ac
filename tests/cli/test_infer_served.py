from __future__ import annotations

import json
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cli.conftest import ENVIRONMENT, RunningNode, command, tidegate
from tests.ports import free_port
from tidegate.cli.ordered import in_order

ROW = '{"x": [[1, 2, 3, 4]]}'


def _answers(done: subprocess.CompletedProcess[bytes]) -> list[Any]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def _places(node: RunningNode) -> list[list[str]]:
    at = f"127.0.0.1:{node.port}"
    return [node.options, [f"--url=http://{at}"], [f"--url=grpc://{at}"]]


def test_a_model_of_the_node_and_of_a_url(node: RunningNode, tmp_path: Path) -> None:
    np.save(tmp_path / "row.npy", np.ones((1, 4), np.float32))
    for place in _places(node):
        done = tidegate("infer", "scale", "--data", ROW, *place)
        assert (done.returncode, done.stderr) == (0, b"")
        assert _answers(done) == [{"outputs": {"y": [[3, 6, 9, 12]]}}]
        done = tidegate("infer", "scale", str(tmp_path / "row.npy"), "--version=1", *place)
        assert _answers(done) == [{"outputs": {"y": [[2, 2, 2, 2]]}}]
    (told,) = _answers(tidegate("infer", "scale", "--format=v2", "--data", ROW, *node.options))
    assert (told["model_name"], told["model_version"]) == ("scale", "2")


def test_a_pipe_keeps_its_order_whatever_fails(node: RunningNode) -> None:
    lines = []
    for number in range(1000):
        bad = b"[[1, 2]]" if number % 2 else b"none.npy"
        lines.append(bad if number % 10 == 3 else b"[[%d, 0, 0, 0]]" % number)
    for place in _places(node)[1:]:
        done = tidegate("infer", "scale", "-", *place, stdin=b"\n".join(lines))
        assert (done.returncode, done.stderr) == (1, b"")
        for number, answer in enumerate(_answers(done)):
            if number % 10 == 3:
                assert (answer["line"], answer["kind"]) == (number + 1, "InvalidInput")
            else:
                assert answer["outputs"]["y"][0][0] == 3 * number


def test_a_long_pipe(node: RunningNode) -> None:
    pipe = b"".join(b'{"x": [[%d, 0, 0, 0]]}\n' % number for number in range(10_000))
    done = tidegate("infer", "scale", "-", *node.options, stdin=pipe)
    assert (done.returncode, done.stderr) == (0, b"")
    found = [answer["outputs"]["y"][0][0] for answer in _answers(done)]
    assert found == [3 * number for number in range(10_000)]


def test_what_a_request_says_beside_its_inputs_goes_along(node: RunningNode) -> None:
    request = {
        "id": "seven",
        "inputs": [
            {"name": name, "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}
            for name in ("a", "b")
        ],
        "outputs": [{"name": "total"}],
    }
    done = tidegate("infer", "add_sub", "--data", json.dumps(request), *node.options)
    assert _answers(done) == [{"id": "seven", "outputs": {"total": [[2, 4, 6, 8]]}}]


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["sclae", "--data", ROW], 66, "sclae"),
        (["scale", "--version=9", "--data", ROW], 66, "9"),
        (["scale", "--data", '{"x": [[1]]}'], 65, "must be 4, not 1"),
        (["scale", "--device=cpu", "--data", ROW], 2, "are for a model that is loaded in this"),
        (["scale", "--timeout=ages", "--data", ROW], 2, "'ages' is not a duration"),
        (["scale", "--timeout=0", "--data", ROW], 2, "must be more than 0"),
        (["scale", "--url=http://x:1", "--data", ROW], 2, "--url says where the server is"),
        (["gather", "--data", '{"index": [[9]]}'], 70, "indices element out of data bounds"),
    ],
)
def test_what_is_wrong(
    node: RunningNode, arguments: list[str], status: int, words: str, tmp_path: Path
) -> None:
    done = tidegate("infer", *arguments, *node.options, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (status, b"")
    assert words in " ".join(done.stderr.decode().split())
    assert b"Traceback" not in done.stderr


def test_nobody_there(tmp_path: Path) -> None:
    done = tidegate("infer", "scale", "--data", ROW, f"--run-dir={tmp_path}", cwd=tmp_path)
    assert done.returncode == 66
    assert b"'scale' is no file or folder here, and no node of yours runs" in done.stderr
    for scheme in ("http", "grpc"):
        url = f"{scheme}://127.0.0.1:{free_port()}"
        done = tidegate("infer", "scale", "--url", url, "-", stdin=b"[[1,2,3,4]]\n")
        assert (done.returncode, done.stdout) == (69, b"")
        assert f"nobody answers at {url}" in done.stderr.decode()


@pytest.mark.parametrize("ending", ["Ctrl-C", "head"])
def test_it_ends_quietly(node: RunningNode, ending: str) -> None:
    with subprocess.Popen(
        command("infer", "scale", "-", *node.options),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
    ) as process:
        timer = threading.Timer(60, process.kill)
        timer.start()
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        for number in (1, 2, 3):
            process.stdin.write(b"[[%d, 0, 0, 0]]\n" % number)
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["outputs"]["y"][0][0] == 3 * number
        if ending == "Ctrl-C":
            process.send_signal(signal.SIGINT)
        else:
            process.stdout.close()
            process.stdin.write(b"[[1, 2, 3, 4]]\n")
            process.stdin.flush()
        # Its standard input stays open: nothing may wait for that.
        status = process.wait()
        timer.cancel()
        assert (status, process.stderr.read().strip()) == (130 if ending == "Ctrl-C" else 0, b"")


def test_calls_overlap_and_results_keep_their_order() -> None:
    width = 4
    together = threading.Barrier(width)

    def call(number: int) -> int:
        together.wait(30)
        if number == 5:
            raise ValueError("five")
        return number * 2

    found = []
    with in_order(call, range(8), width, lambda: None) as calls:
        for item, result in calls:
            try:
                found.append((item, result()))
            except ValueError as error:
                found.append((item, str(error)))  # type: ignore[arg-type]
    assert found == [(n, "five" if n == 5 else n * 2) for n in range(8)]


def test_what_items_raise_is_raised() -> None:
    def items() -> Any:
        yield 1
        raise ValueError("no more")

    def run_all() -> None:
        with in_order(str, items(), 2, lambda: cut.append(1)) as calls:
            for _, result in calls:
                assert result() == "1"

    cut: list[int] = []
    with pytest.raises(ValueError, match="no more"):
        run_all()
    assert cut == [1]
