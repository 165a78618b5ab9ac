"""The cases of the bench, each run briefly: that they measure what they say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from bench import minilm, resnet50
from bench.__main__ import CASES


def run(*arguments: str) -> str:
    """Run a case; what it printed."""
    command = [sys.executable, "-m", "bench", *arguments]
    done = subprocess.run(
        command,
        capture_output=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "COLUMNS": "200"},
        timeout=400,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def case(name: str, *options: str, file: Path) -> tuple[str, Any]:
    """Run a case; what it printed, and the JSON that it wrote."""
    out = run(name, *options, "--json", str(file))
    return out, json.loads(file.read_text())


def test_saturation(tmp_path: Path) -> None:
    options = ["mlp", "--rounds", "2", "--seconds", "0.4", "--in-flight", "16"]
    out, told = case("saturation", *options, file=tmp_path / "f.json")
    assert "bare loop" in out
    assert set(told["mlp"]["bare rates"]) == {"1", "2", "4", "8", "16", "32"}
    assert str(told["mlp"]["best batch"]) in told["mlp"]["bare rates"]
    rounds = told["mlp"]["rounds"]
    assert all(len(found) == 2 for found in rounds.values())
    # Others may have taken nothing.
    assert all(min(found) > 0 for name, found in rounds.items() if name != "others")


def test_frameworks(tmp_path: Path) -> None:
    options = ["mlp", "--rounds", "1", "--seconds", "0.2", "--clients", "1", "3", "--quiet", "1"]
    out, told = case("frameworks", *options, file=tmp_path / "f.json")
    assert set(told["rounds"]) == {"1", "3"}
    assert {"tensorflow", "onnx", "openvino"} <= set(told["rounds"]["3"])
    for table in told["rounds"].values():
        assert all(one["rate"] > 0 and name in out for name, (one,) in table.items())
        assert max(table[name][0]["off by"] for name in ("tensorflow", "openvino")) < 1e-4


def test_payload(tmp_path: Path) -> None:
    out, told = case("payload", "--rounds", "1", "--seconds", "0.1", file=tmp_path / "f.json")
    assert "4.8 MB of FP32" in out
    encodings = ("raw", "typed", "json", "binary")
    assert set(told["rounds"]) == {f"{m} {e}" for m in ("mean", "echo") for e in encodings}


def test_neighbours(tmp_path: Path) -> None:
    options = ["--rounds", "1", "--seconds", "0.5", "--rate", "50"]
    _, told = case("neighbours", *options, file=tmp_path / "f.json")
    ((resting,), (saturated,)) = told["rounds"]["resting"], told["rounds"]["saturated"]
    assert resting["large"] == 0 < saturated["large"]


def test_many(tmp_path: Path) -> None:
    options = ["--models", "2", "--idle", "0.2"]
    _, told = case("many", *options, file=tmp_path / "f.json")
    assert told["processes"] == {"replica": 2, "edge": 1, "controller": 1}
    assert told["ready_seconds"] > 0
    assert all(uss > 0 for sizes in told["uss_mib"].values() for uss in sizes)


def test_latency(tmp_path: Path) -> None:
    plot = tmp_path / "p.svg"
    options = ["--rates", "50,100", "--seconds", "0.3", "--plot", str(plot)]
    _, told = case("latency", *options, file=tmp_path / "f.json")
    assert [point["offered_rate"] for point in told["points"]] == [50, 100]
    assert plot.exists()


def test_the_cases_are_listed() -> None:
    listed = run()
    assert all(f"  {name} " in listed for name in CASES)


def test_resnet50_is_one(tmp_path: Path) -> None:
    path = tmp_path / "m" / "model.onnx"
    resnet50.save(path)
    # 25.5 million weights of 4 bytes, as published.
    assert path.stat().st_size == pytest.approx(25.5e6 * 4, rel=0.01)
    session = onnxruntime.InferenceSession(path)
    images = np.random.default_rng(0).random((2, *resnet50.SHAPE), np.float32)
    (scores,) = session.run(None, {resnet50.INPUT: images})
    assert scores.shape == (2, resnet50.CLASSES)
    assert 0.1 < scores.std() < 10
    (alone,) = session.run(None, {resnet50.INPUT: images[:1]})
    np.testing.assert_allclose(alone[0], scores[0], rtol=1e-3, atol=1e-4)


def test_words_are_cut_into_the_longest_pieces() -> None:
    vocabulary = ["[UNK]", "[CLS]", "[SEP]", "un", "##aff", "##able", "cafe", "!", "##a", "a"]
    tokenizer = minilm.Tokenizer(vocabulary)
    assert tokenizer.encode("Unaffable") == [1, 3, 4, 5, 2]
    assert tokenizer.encode("a  Café!") == [1, 9, 6, 7, 2]
    assert tokenizer.encode("zzz a") == [1, 0, 9, 2]
    assert tokenizer.encode("") == [1, 2]


def test_safetensors() -> None:
    header = {
        "__metadata__": {"format": "pt"},
        "w": {"dtype": "F32", "shape": [1, 2], "data_offsets": [8, 16]},
        "ids": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]},
    }
    text = json.dumps(header).encode()
    data = len(text).to_bytes(8, "little") + text + bytes(8) + np.array([1, 2], "<f4").tobytes()
    (found,) = minilm.read_safetensors(data).items()
    assert found[0] == "w"
    assert found[1].tolist() == [[1, 2]]


def test_faults(tmp_path: Path) -> None:
    plot = tmp_path / "p.svg"
    options = ["--front", "envoy", "--faults", "kill", "--scale", "0.1", "--plot", str(plot)]
    _, told = case("faults", *options, "--rate", "200", file=tmp_path / "f.json")
    kill = told["faults"]["kill"]
    assert kill["failed"] == 0
    assert set(kill["holds"]) == {"failed", "normal", "left", "returned"}
    assert set(kill["timeline"]["shares"]) == {"a", "b", "c"}
    assert plot.exists()


def test_shares(tmp_path: Path) -> None:
    options = ["--rounds", "1", "--seconds", "0.5", "--settle", "0.5", "--callers", "16"]
    _, told = case("shares", *options, file=tmp_path / "f.json")
    (measured,) = told["rounds"]
    assert set(measured["together"]) == {"gateway", "round robin"}
    assert measured["slow"] < measured["fast"]


def test_gateway(tmp_path: Path) -> None:
    options = ["--rounds", "1", "--seconds", "0.2", "--against", "envoy", "--large", "1"]
    _, told = case("gateway", *options, file=tmp_path / "f.json")
    assert set(told["rounds"]) == {"tidegate gateway", "bare Envoy"}
    assert set(told["several"]) == {"tidegate gateway, 3 models", "bare Envoy"}
    for size, proxy in zip(told["large"], (*told["rounds"], *told["several"])[::2], strict=True):
        assert (size["proxy"], size["codes"]) == (proxy, {"OK": 1})
        assert size["MiB at most"] >= size["MiB before"] > 0


def test_reload(tmp_path: Path) -> None:
    options = ["--models", "3", "--endpoints", "4", "--rate", "50", "--rest", "1"]
    _, told = case("reload", *options, "--edits", "1", file=tmp_path / "f.json")
    (edit,) = told["reloads"]
    assert edit["seconds"] > 0
    assert told["calls"] > 0
