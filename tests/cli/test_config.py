from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests import models
from tidegate.cli.main import run
from tidegate.cli.options import exact_size
from tidegate.config.gateway import GatewayConfig
from tidegate.config.loading import keys_of
from tidegate.config.model import ModelConfig
from tidegate.config.node import NodeConfig

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("TIDEGATE_") or name == "COLUMNS":
            monkeypatch.delenv(name)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "models"
    models.tiny_mlp(root / "mlp/1/model.onnx")
    models.tiny_mlp(root / "bare.onnx")
    return root


def _rows(shown: str) -> dict[str, list[str]]:
    return {line.split()[0]: line.split()[1:] for line in shown.splitlines()}


def test_every_setting_of_a_node_and_its_origin(
    repository: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repository / "tidegate.yaml").write_text("host: 0.0.0.0\nport: 1\nadmin_port: 2\n")
    monkeypatch.setenv("TIDEGATE_PORT", "11")
    monkeypatch.setenv("TIDEGATE_ADMIN_PORT", "12")
    arguments = ["config", str(repository), "--admin-port=22", "--max-message-size", "100000"]
    assert run([*arguments, "--show-origin"]) == 0
    rows = _rows(capsys.readouterr().out)
    assert list(rows) == ["setting", *keys_of(NodeConfig)]
    assert rows["host"] == ["0.0.0.0", f"{repository}/tidegate.yaml:1"]
    assert rows["port"] == ["11", "TIDEGATE_PORT"]
    assert rows["admin_port"] == ["22", "command", "line", "(--admin-port)"]
    assert rows["max_message_size"] == ["100000B", "command", "line", "(--max-message-size)"]
    assert rows["start_timeout"] == ["300s", "default"]
    assert run(arguments) == 0
    assert _rows(capsys.readouterr().out)["port"] == ["11"]
    assert run([*arguments, "--json"]) == 0
    told = {row["setting"]: row for row in json.loads(capsys.readouterr().out)}
    assert told["host"] == {
        "setting": "host",
        "value": "0.0.0.0",
        "source": "file",
        "name": f"{repository}/tidegate.yaml",
        "line": 1,
    }
    assert (told["envoy"]["value"], told["envoy"]["source"]) == (None, "default")


def test_every_setting_of_a_gateway_and_its_origin(
    tmp_path: Path, repository: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text("admin_host: 10.0.0.1\nmodels:\n  m: {endpoints: ['10.0.0.7:8000']}\n")
    monkeypatch.setenv("TIDEGATE_PORT", "11")
    arguments = ["config", str(file), "--endpoints-ttl", "2s"]
    assert run([*arguments, "--show-origin"]) == 0
    rows = _rows(capsys.readouterr().out)
    named = ["models.m" if key == "models" else key for key in keys_of(GatewayConfig)]
    assert list(rows) == ["setting", *named]
    assert rows["models.m"] == ['{"endpoints":[{"address":"10.0.0.7:8000"}]}', f"{file}:2"]
    assert rows["admin_host"] == ["10.0.0.1", f"{file}:1"]
    assert rows["port"] == ["11", "TIDEGATE_PORT"]
    assert rows["endpoints_ttl"] == ["2s", "command", "line", "(--endpoints-ttl)"]
    assert run([*arguments, "--json"]) == 0
    told = {row["setting"]: row for row in json.loads(capsys.readouterr().out)}
    assert told["models"]["value"]["m"]["endpoints"][0]["address"] == "10.0.0.7:8000"
    for wrong, words in (
        ([str(file), "--model=m"], "--model is for"),
        ([str(file), "--start-timeout=1s"], "a gateway has no --start-timeout"),
        ([str(repository), "--endpoints-ttl=2s"], "a node has no --endpoints-ttl"),
        ([str(tmp_path / "none")], "no folder and no file"),
    ):
        assert run(["config", *wrong]) == 78
        assert words in capsys.readouterr().err


def test_the_settings_of_a_model(repository: Path, capsys: Captured) -> None:
    file = repository / "mlp/model.yaml"
    file.write_text("replicas: 2\nresources:\n  memory: 2GiB\nversions: [1]\n")
    assert run(["config", "--model", "mlp", str(repository), "--show-origin"]) == 0
    rows = _rows(capsys.readouterr().out)
    assert list(rows) == ["setting", *keys_of(ModelConfig)]
    assert rows["replicas"] == ["2", f"{file}:1"]
    assert rows["resources.memory"] == ["2GiB", f"{file}:3"]
    assert rows["versions.only"] == ["[1]", f"{file}:4"]
    assert rows["batching.enabled"] == ["auto", "default"]
    file.write_text("signature:\n  inputs: [{name: x, shape: [n, 4]}]\n  outputs: [y]\n")
    assert run(["config", "--model", "mlp", str(repository), "--show-origin"]) == 0
    shown = _rows(capsys.readouterr().out)["signature.inputs"]
    assert shown == ['[{"name":"x","shape":["n",4]}]', f"{file}:2"]
    assert run(["config", "--model", "mlp", str(repository), "--json"]) == 0
    told = {row["setting"]: row["value"] for row in json.loads(capsys.readouterr().out)}
    assert told["signature.outputs"] == [{"name": "y", "dtype": None, "shape": None}]
    assert run(["config", "--model", "bare", str(repository), "--json"]) == 0
    assert {row["source"] for row in json.loads(capsys.readouterr().out)} == {"default"}


def test_what_is_wrong_is_told_as_elsewhere(
    repository: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(["config", str(repository / "mpl")]) == 78
    assert "mpl is no folder and no file; give the path of a repository" in capsys.readouterr().err
    assert run(["config", "--model", "mpl", str(repository)]) == 66
    assert "has no model 'mpl'; did you mean 'mlp'?" in capsys.readouterr().err
    assert run(["config", "--model", "mlp", str(repository), "--port=1"]) == 2
    assert run(["config", str(repository), "--port=many"]) == 78
    (repository / "mlp/model.yaml").write_text("replica: 2\n")
    assert run(["config", "--model", "mlp", str(repository)]) == 78
    assert "did you mean 'replicas'?" in capsys.readouterr().err
    monkeypatch.setenv("TIDEGATE_PROT", "1")
    assert run(["config", str(repository)]) == 78
    assert "TIDEGATE_PROT is unknown" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0B"),
        (1000, "1000B"),
        (1024, "1KiB"),
        (64 * 2**20, "64MiB"),
        (2**30 + 1, "1073741825B"),
    ],
)
def test_exact_sizes(size: int, text: str) -> None:
    assert exact_size(size) == text
