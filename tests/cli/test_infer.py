from __future__ import annotations

import json
import shlex
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.table import Table

from tests import models
from tests.cli.conftest import ENVIRONMENT, command, in_terminal, tidegate
from tidegate.cli.answers import encoded
from tidegate.cli.main import run
from tidegate.protocols.open_inference.tensors import object_array
from tidegate.types import DType, InferResponse, Tensor

ROW = '{"x": [[1, 2, 3, 4]]}'


def _answers(done: subprocess.CompletedProcess[bytes]) -> list[Any]:
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def scale(repository: Path) -> str:
    return str(repository / "scale")


def test_json_on_the_command_line(repository: Path, scale: str) -> None:
    done = tidegate("infer", scale, "--data", ROW)
    assert (done.returncode, done.stderr) == (0, b"")
    assert _answers(done) == [{"outputs": {"y": [[3, 6, 9, 12]]}}]
    done = tidegate("infer", str(repository), "--model=scale", "--version=1", "--data", ROW)
    assert _answers(done) == [{"outputs": {"y": [[2, 4, 6, 8]]}}]
    done = tidegate("infer", f"{scale}/1/model.onnx", "--format=v2", "--data", ROW)
    assert _answers(done) == [
        {
            "model_name": "model",
            "model_version": "1",
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 4], "data": [2, 4, 6, 8]}],
        }
    ]


def test_files_of_every_kind(repository: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", a=np.ones((1, 4), np.float32), b=np.ones((1, 4), np.float32))
    (tmp_path / "in.json").write_text('{"a": [[1,1,1,1]], "b": [[1,1,1,1]]}')
    done = tidegate("infer", str(repository / "add_sub.onnx"), "in.npz", "in.json", cwd=tmp_path)
    assert done.returncode == 0
    expected = {"outputs": {"total": [[2.0] * 4], "difference": [[0.0] * 4]}}
    assert _answers(done) == [expected, expected]
    np.save(tmp_path / "rows.npy", np.eye(4, dtype=np.float32))
    done = tidegate("infer", str(repository / "scale"), str(tmp_path / "rows.npy"))
    assert _answers(done)[0]["outputs"]["y"][1] == [0, 3, 0, 0]
    (tmp_path / "row.raw").write_bytes(np.arange(4, dtype="<f4").tobytes())
    done = tidegate("infer", str(repository / "scale"), "--raw", str(tmp_path / "row.raw"))
    assert _answers(done) == [{"outputs": {"y": [[0, 3, 6, 9]]}}]
    Image.new("RGB", (60, 40), (255, 0, 51)).save(tmp_path / "in.png")
    picture = str(repository / "picture.onnx")
    done = tidegate("infer", picture, str(tmp_path / "in.png"))
    (answer,) = _answers(done)
    pixels = np.array(answer["outputs"]["y"], np.float32)
    np.testing.assert_allclose(pixels[0, :, 0, 0], [1, 0, 0.2], rtol=1e-6)
    done = tidegate("infer", picture, "--scale=1/51", str(tmp_path / "in.png"))
    assert _answers(done)[0]["outputs"]["y"][0][2] == [[1.0] * 6] * 4


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["scale"], 2, "give an INPUT, '-' for standard input, or --data JSON"),
        (["scale", "--scale=1/0", "-"], 2, "'1/0' is no number"),
        (["scale", "--json", ROW], 65, "a request in JSON goes with --data"),
        (["scale", "--json", "--format=v2", "--data", ROW], 2, "--json is --format json"),
        (["scale", "--data", "{"], 65, "this is not JSON"),
        (["scale", "--data", '{"x": [1]}'], 65, "must have 2 dimensions, as [batch,4]"),
        (["scale", "none.npy"], 65, "the file 'none.npy' cannot be read: No such file"),
        (["scale", "--version=9", "--data", ROW], 66, "has no version 9; there are 1, 2"),
        (["scale", "--model=other", "--data", ROW], 66, "is the model 'scale' itself"),
        ([".", "--data", ROW], 78, "holds several models (add_sub, gather,"),
        ([".", "--model=sclae", "--data", ROW], 66, "did you mean 'scale'?"),
        (["scale", "--device=gpu", "--data", ROW], 2, "must be auto, cpu, cuda or cuda:N"),
        (["scale", "--device=cuda:7", "--data", ROW], 78, "cuda:7"),
        (["scale", "--scale=1e400", "-"], 2, "'1e400' is no number"),
        (["./" + "x" * 300, "--data", ROW], 78, "does not exist"),
        (["./none", "--data", ROW], 78, "does not exist"),
        (["gather.onnx", "--data", '{"index": [[9]]}'], 70, "indices element out of data bounds"),
    ],
)
def test_what_is_wrong_with_a_single_request(
    repository: Path, arguments: list[str], status: int, words: str
) -> None:
    done = tidegate("infer", *arguments, cwd=repository)
    assert (done.returncode, done.stdout) == (status, b"")
    assert words in " ".join(done.stderr.decode().split())
    assert b"Traceback" not in done.stderr


def test_a_closed_standard_input(scale: str) -> None:
    line = shlex.join(command("infer", scale, "-"))
    done = subprocess.run(["sh", "-c", f"{line} <&-"], capture_output=True, env=ENVIRONMENT)
    assert done.returncode == 2
    assert b"which is closed" in done.stderr


def test_a_model_that_cannot_be_loaded(tmp_path: Path) -> None:
    (tmp_path / "words.onnx").write_text("words")
    done = tidegate("infer", str(tmp_path / "words.onnx"), "--data", ROW)
    assert done.returncode == 65
    assert b"is not a model: it seems to be text" in done.stderr


def test_bad_lines_of_a_pipe_do_not_stop_the_rest(scale: str, tmp_path: Path) -> None:
    np.save(tmp_path / "row.npy", np.ones((1, 4), np.float32))
    pipe = b"\n".join([
        b'{"x": [[1, 2, 3, 4]]}',
        b"",
        b'{"x": [[1, 2, 3]]}',
        b"row.npy",
        b"none.npy",
        b"\xff\xfe\x00",
        b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [0, 0, 0, 1]}],'
        b' "id": "a"}',
        b"[[",
        b"[[1, 1, 1, 1]]",
    ])  # fmt: skip
    done = tidegate("infer", scale, "-", stdin=pipe, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (1, b"")
    first, shape, array, missing, noise, protocol, broken, last = _answers(done)
    assert first == {"outputs": {"y": [[3, 6, 9, 12]]}}
    assert (shape["line"], shape["kind"]) == (3, "InvalidInput")
    assert "must be 4, not 3" in shape["error"]
    assert array == last == {"outputs": {"y": [[3, 3, 3, 3]]}}
    assert (missing["line"], "No such file" in missing["error"]) == (5, True)
    assert noise["line"] == 6
    assert protocol == {"id": "a", "outputs": {"y": [[0, 0, 0, 3]]}}
    assert (broken["line"], "not JSON" in broken["error"]) == (8, True)


def test_several_files_of_which_one_is_bad(scale: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(ROW)
    done = tidegate("infer", scale, "a.json", "b.json", "a.json", cwd=tmp_path)
    assert done.returncode == 1
    first, failed, last = _answers(done)
    assert first == last == {"outputs": {"y": [[3, 6, 9, 12]]}}
    assert (failed["input"], failed["kind"]) == ("b.json", "InvalidInput")


def test_texts_and_what_json_has_no_number_for(repository: Path, tmp_path: Path) -> None:
    words = str(repository / "words.onnx")
    np.save(tmp_path / "words.npy", np.array(["", "grün"]))
    done = tidegate("infer", words, str(tmp_path / "words.npy"))
    assert _answers(done) == [{"outputs": {"y": ["", "grün"]}}]
    np.save(tmp_path / "nan.npy", np.array([[np.nan, 1, 2, 3]], np.float32))
    np.save(tmp_path / "inf.npy", np.array([[np.inf, 1, 2, 3]], np.float32))
    scale = str(repository / "scale")
    done = tidegate("infer", scale, "nan.npy", "inf.npy", cwd=tmp_path)
    nan, infinite = _answers(done)
    assert nan == {"outputs": {"y": [[None, 3, 6, 9]]}}
    assert "JSON has no number for; --format table shows it" in infinite["error"]
    done = tidegate("infer", scale, "--format=table", "inf.npy", cwd=tmp_path)
    assert "[[inf 3. 6. 9.]]" in " ".join(done.stdout.decode().replace(" ", " ").split())


def test_bytes_that_are_no_text() -> None:
    data = object_array([b"\xff", b"x"], (1, 2))
    response = InferResponse("m", "1", outputs=[Tensor("y", DType.BYTES, data)])
    answer = encoded(response, "json")
    assert isinstance(answer, bytes)
    assert json.loads(answer) == {"outputs": {"y": [[{"b64": "/w=="}, "x"]]}}
    assert isinstance(encoded(response, "table"), Table)


@pytest.mark.parametrize(
    "dtype", [d for d in DType if d is not DType.BYTES], ids=lambda dtype: dtype.value
)
def test_every_type_goes_in_and_comes_out(
    dtype: DType, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    model = models.identity(tmp_path / "m.onnx", dtype, ("n", 2))
    value = "true" if dtype is DType.BOOL else "1"
    assert run(["infer", str(model), "--data", f"[[{value}, {value}]]"]) == 0
    told = json.loads(capsysbinary.readouterr().out)
    assert told == {"outputs": {"y": [[json.loads(value)] * 2]}}


def test_a_long_pipe(scale: str) -> None:
    pipe = b"".join(b'{"x": [[%d, 0, 0, 0]]}\n' % number for number in range(10_000))
    done = tidegate("infer", scale, "-", stdin=pipe)
    assert (done.returncode, done.stderr) == (0, b"")
    found = [answer["outputs"]["y"][0][0] for answer in _answers(done)]
    assert found == [3 * number for number in range(10_000)]


def _start(*arguments: str, **more: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command("infer", *arguments),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
        **more,
    )


def test_each_answer_is_there_before_the_next_request(scale: str) -> None:
    with _start(scale, "-") as process:
        timer = threading.Timer(60, process.kill)
        timer.start()
        assert process.stdin is not None
        assert process.stdout is not None
        for number in (1, 2, 3):
            process.stdin.write(b"[[%d, 0, 0, 0]]\n" % number)
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["outputs"]["y"][0][0] == 3 * number
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
        timer.cancel()
    assert (process.returncode, out, err.strip()) == (130, b"", b"")


def test_a_reader_that_leaves_ends_it_quietly(scale: str, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    pipe.write_bytes(b"[[1, 2, 3, 4]]\n" * 20_000)
    with pipe.open("rb") as lines:
        asking = subprocess.Popen(
            command("infer", scale, "-"),
            stdin=lines,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=ENVIRONMENT,
        )
        with asking:
            assert asking.stdout is not None
            assert asking.stderr is not None
            asking.stdout.readline()
            asking.stdout.close()
            assert asking.wait(60) == 0
            assert asking.stderr.read() == b""


def test_a_person_sees_a_table(scale: str) -> None:
    status, shown = in_terminal("infer", scale, "--data", ROW)
    assert status == 0
    assert b"loading the model" in shown
    assert b"FP32" in shown
    assert b"[[ 3.  6.  9. 12.]]" in shown


def test_a_person_sees_which_answer_is_whose(scale: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(ROW)
    done = tidegate("infer", scale, "--format=table", "a.json", "b.json", cwd=tmp_path)
    assert done.returncode == 1
    first, *_, last, why = done.stdout.decode().splitlines()
    assert (first, last) == ("a.json", "b.json")
    assert why == "  error: the file 'b.json' cannot be read: No such file or directory"
    done = tidegate("infer", scale, "--format=table", "-", stdin=b"[[1]]\n")
    assert done.stdout.startswith(b"line 1\n  error: ")


def test_json_for_a_program(scale: str) -> None:
    status, shown = in_terminal("infer", scale, "--json", "--data", ROW)
    assert status == 0
    assert b'{"outputs":{"y":[[3.0,6.0,9.0,12.0]]}}' in shown


def test_a_person_sees_how_far_a_pipe_is(scale: str, tmp_path: Path) -> None:
    requests = tmp_path / "requests"
    requests.write_bytes(b"[[1, 2, 3, 4]]\n" * 20_000)
    answers = tmp_path / "answers"
    with requests.open("rb") as lines, answers.open("wb") as written:
        status, shown = in_terminal("infer", scale, "-", stdin=lines, stdout=written)
    assert status == 0
    assert answers.read_bytes().count(b"\n") == 20_000
    assert b" requests, 0 failed, " in shown
