"""What the cases measured, as the documentation shows it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from bench import figures, gateway_figures, hardware


def one(rate: float) -> dict[str, float]:
    return {"rate": rate, "p50": 1.0, "p99": 2.0, "cpu": 30.0}


def test_overhead() -> None:
    table = {
        "grpc.aio, uvloop": [one(100), one(300), one(200)],
        "tidegate serve": [one(400), one(900), one(800)],
    }
    text = figures.overhead({"rounds": {"8 x 32": table}})
    assert "| 8 x 32: tidegate serve | 800 | 1.00 | 2.00 | 30 |  |\n" in text
    # The median of the rounds' ratios, not the ratio of the medians' rounds.
    assert "| 8 x 32: grpc.aio, uvloop | 200 | 1.00 | 2.00 | 30 | 4.0 |\n" in text
    assert text.index("tidegate serve") < text.index("grpc.aio")


def test_saturation() -> None:
    rounds = {
        "bare": [100.0, 50.0, 80.0], "bare_single": [10.0], "tidegate": [90.0, 50.0, 76.0],
        "tidegate_single": [11.0], "tidegate_paced": [12.0], "grpc_aio": [],
    }  # fmt: skip
    text = figures.saturation({"resnet50": {"best batch": 8, "rounds": rounds}})
    assert "**Tidegate**, single rows | 76.0 | 0.95 | 11.00 | 12.00 |" in text
    assert "batches of 8 | 80.0 | 1.00 | 10.00 |  |" in text
    assert "grpc.aio" not in text


def test_frameworks() -> None:
    def at(rate: float, share: float) -> dict[str, float]:
        return {"rate": rate, "p50": 1.0, "p99": 2.0, "off by": rate * 1e-6, "others": share}

    table = {"tensorflow": [at(40, 0.1), at(60, 0.5)], "openvino-bf16": [at(100, 0.0)]}
    machine = {"tensorflow-cpu": "2.0", "openvino": "3.0"}
    told = {"model": "resnet50", "machine": machine, "rounds": {"16": table}}
    text = figures.frameworks(told)
    assert "TensorFlow 2.0, OpenVINO 3.0. Others took 10% of the CPU" in text
    assert "and 50% in the worst" in text
    assert "| 16: TensorFlow | 50.0 | 1.00 | 1.0 | 2.0 | 6e-05 |\n" in text
    assert "| 16: OpenVINO, BF16 | 100.0 | 2.00 | 1.0 | 2.0 | 1e-04 |\n" in text


def test_a_page_keeps_what_is_around_the_figures(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(figures, "FOLDER", tmp_path)
    page = "before\n<!-- figures -->\nold\n<!-- end of figures -->\nafter\n"
    new = figures.renewed(page)
    assert new.startswith("before\n<!-- figures -->\n")
    assert new.endswith("<!-- end of figures -->\nafter\n")
    assert "old" not in new
    assert figures.renewed(new) == new


def test_what_others_use() -> None:
    others = hardware.Others(time.process_time)
    end = time.process_time() + 0.2
    while time.process_time() < end:
        pass
    assert 0 <= others.share() <= 1
    # All that was used was our own, and more than that.
    others = hardware.Others(lambda: time.monotonic() * 1e3)
    while time.process_time() < end + 0.1:
        pass
    assert others.share() == 0


def test_gateway() -> None:
    rounds = {
        "tidegate gateway": [one(90), one(45)],
        "bare Envoy": [one(100), one(50)],
    }
    several = {"tidegate gateway, 3 models": [one(70)], "bare Envoy": [one(100)]}
    size = {"proxy": "tidegate gateway", "at once": 2, "codes": {"OK": 2}, "seconds": 1.0,
            "MiB before": 60.0, "MiB at most": 900.4}  # fmt: skip
    told = {"load": "8 x 16", "rounds": rounds, "several": several, "large": [size]}
    text = gateway_figures.gateway(told)
    assert "| **tidegate gateway** | 68 | 1.00 | 2.00 | 30.0 | 0% |  |\n" in text
    assert "| bare Envoy | 75 | 1.00 | 2.00 | 30.0 | 0% | 0.90 |\n" in text
    assert "| **tidegate gateway, 3 models** | 70 | 1.00 | 2.00 | 30.0 | 0% |  |\n" in text
    assert "| bare Envoy | 100 | 1.00 | 2.00 | 30.0 | 0% | 0.70 |\n" in text
    assert "| tidegate gateway | 2 | 2 OK | 1.0 | 60 | 900 |\n" in text


def test_shares() -> None:
    round_ = {
        "slow": 250.0,
        "fast": 750.0,
        "together": {"gateway": 980.0, "round robin": 500.0},
        "ratios": {"gateway": 3.01, "round robin": 1.0},
        "p99": {"gateway": 70.0, "round robin": 200.0},
    }
    text = gateway_figures.shares({"callers": 64, "rounds": [round_]})
    assert "answer 250 and 750 calls" in text
    assert "| the gateway | 980 | 98.0% | 1 : 3.01 | 70 |\n" in text


def test_faults() -> None:
    flap = {
        "failed": 1, "in flight": 7, "p99 before ms": 21.0, "p99 worst ms": 44.0, "normal": 3.0,
        "returned": None, "swings": 4, "cycles": 8, "holds": {"failed": True, "swings": False},
    }  # fmt: skip
    told = {"rate": 1000.0, "deadline": 2.0, "per try": 0.5, "service ms": 20.0,
            "namespaces": True, "faults": {"flap": flap}}  # fmt: skip
    text = gateway_figures.faults(told)
    assert "1000 calls per second" in text
    assert "| **flap** | 1 | 7 | 21.0 | 44.0 | 3.0 |  | never | 4 of 8 (!) |\n" in text


def test_reload() -> None:
    told = {
        "models": 200, "endpoints": 100, "rate": 500.0, "deadline": 2.0, "ready after": 4.0,
        "reloads": [{"seconds": 0.5, "cpu": 0.4}, {"seconds": 1.5, "cpu": 0.6}],
        "controller at rest": 0.05, "controller in reloads": 0.5, "calls": 10_000,
        "failed before": {}, "failed in reloads": {"UNAVAILABLE": 2},
        "p99 ms before": 2.0, "p99 ms in reloads": 9.0, "MiB controller": 100, "MiB edge": 400,
    }  # fmt: skip
    text = gateway_figures.reload(told)
    assert "| reload, s (median) | 1.00 |\n" in text
    assert "| failed calls, while reloading | 2 |\n" in text
