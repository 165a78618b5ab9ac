from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests import models
from tests.cli.conftest import RunningNode, in_terminal, tidegate
from tidegate.config.gateway import GatewayConfig
from tidegate.controller.run_directory import GatewayRecord, RunDirectory


@pytest.fixture
def extra(node: RunningNode) -> str:
    """A model that no other test uses."""
    return "gather"


def _state(node: RunningNode, model: str) -> str:
    (told,) = json.loads(tidegate("status", "--json", *node.options).stdout)
    (state,) = (m["state"] for m in told["models"] if m["name"] == model)
    return str(state)


def test_unload_and_load(node: RunningNode, extra: str) -> None:
    done = tidegate("unload", extra, *node.options)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"gather  unloaded\n", b"")
    assert _state(node, extra) == "unloaded"
    done = tidegate("load", extra, *node.options)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == b"gather  ready  (version 1 ready, 1 of 1 replicas)\n"
    again = tidegate("load", extra, "--json", *node.options)
    told = json.loads(again.stdout)
    assert (told["name"], told["state"]) == (extra, "ready")


def test_where_a_person_looks(node: RunningNode, extra: str) -> None:
    status, shown = in_terminal("load", extra, *node.options)
    assert status == 0
    assert b"loading gather" in shown
    assert b"gather  ready" in shown


def test_a_gateway_loads_nothing(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path, 8000)
    directory.create()
    directory.save(GatewayRecord(file=Path("/g.yaml"), config=GatewayConfig()))
    done = tidegate("load", "m", f"--run-dir={tmp_path}")
    assert (done.returncode, done.stdout) == (78, b"")
    assert b"a gateway runs on port 8000: load models on the nodes" in done.stderr


def test_what_cannot_be_loaded(node: RunningNode, tmp_path: Path) -> None:
    done = tidegate("load", "none", *node.options)
    assert done.returncode == 66
    assert b"'none'" in done.stderr
    broken = node.repository / "broken"
    models.gather(broken / "1/model.onnx")
    (broken / "model.yaml").write_text("replica: 2\n")
    try:
        done = tidegate("load", "broken", *node.options)
        assert done.returncode == 65
        assert b"did you mean 'replicas'?" in done.stderr
    finally:
        shutil.rmtree(broken)
    assert tidegate("unload", "scale", f"--run-dir={tmp_path}").returncode == 66
