from __future__ import annotations

import errno
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest

from tests import models, torch_models
from tidegate import __version__
from tidegate.cli import serving
from tidegate.cli.main import cli, run
from tidegate.cli.options import size_text
from tidegate.config.node import NodeConfig
from tidegate.errors import RuntimeMissing
from tidegate.types import DType

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("TIDEGATE_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "120")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "models"
    models.tiny_mlp(root / "mlp/1/model.onnx")
    models.tiny_mlp(root / "mlp/2/model.onnx", external=True)
    models.identity(root / "echo.onnx", DType.BYTES, ("n", None, 3))
    return root


def test_help_names_every_setting_and_its_default(capsys: Captured) -> None:
    assert run(["serve", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for name in NodeConfig.model_fields:
        assert "--" + name.replace("_", "-") in shown
        assert f"TIDEGATE_{name.upper()}]" in shown
    assert "[default: 64MiB; TIDEGATE_MAX_MESSAGE_SIZE]" in shown
    assert "[default: 300s; TIDEGATE_START_TIMEOUT]" in shown
    assert "--access-log / --no-access-log" in shown


def test_inspect_a_repository(repository: Path, capsys: Captured) -> None:
    assert run(["inspect", str(repository)]) == 0
    shown = capsys.readouterr().out
    assert "mlp  onnx on the runtime onnx" in shown
    assert "1 (not served)" in shown
    assert "[batch, 16]" in shown
    assert "[n, ?, 3]" in shown
    assert "BYTES" in shown


def test_inspect_as_json(repository: Path, capsys: Captured) -> None:
    assert run(["inspect", str(repository / "mlp"), "--json"]) == 0
    (mlp,) = json.loads(capsys.readouterr().out)["models"]
    assert mlp["default_version"] == 2
    assert [v["version"] for v in mlp["versions"]] == [1, 2]
    assert mlp["versions"][1]["bytes"] > (repository / "mlp/2/model.onnx").stat().st_size
    assert mlp["inputs"] == [{"name": "x", "datatype": "FP32", "shape": ["batch", 16]}]
    assert mlp["config"]["replicas"] == 1


def test_inspect_one_file(repository: Path, capsys: Captured) -> None:
    assert run(["inspect", str(repository / "echo.onnx"), "--no-load", "--json"]) == 0
    (echo,) = json.loads(capsys.readouterr().out)["models"]
    assert (echo["name"], echo["inputs"]) == ("echo", None)


@pytest.mark.filterwarnings("ignore")  # of the packages that Keras imports
def test_inspect_tensorflow(tmp_path: Path, capsys: Captured) -> None:
    from tests import tensorflow_models

    folder = tensorflow_models.saved(tmp_path / "m")
    assert run(["inspect", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "savedmodel on the runtime tensorflow" in shown
    assert "signature text" in shown
    assert run(["inspect", str(folder), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["models"]
    assert found["versions"][0]["bytes"] > (folder / "saved_model.pb").stat().st_size
    assert found["inputs"] == [{"name": "x", "datatype": "FP32", "shape": ["batch", 4]}]
    assert list(found["other_signatures"]) == ["fails", "lengths", "text"]
    assert found["other_signatures"]["text"]["outputs"][1]["datatype"] == "BYTES"


def test_inspect_pytorch(tmp_path: Path, capsys: Captured) -> None:
    torch_models.state_dict(tmp_path / "weights")
    torch_models.script(tmp_path / "script.pt")
    torch_models.whole(tmp_path / "whole.pth")
    assert run(["inspect", str(tmp_path)]) == 65
    shown = " ".join(capsys.readouterr().out.split())
    assert "weights state-dict on the runtime torch" in shown
    assert "output output FP32 [batch, 4]" in shown
    assert "script.pt does not say what it takes (x): write that into model.yaml" in shown
    assert "invalid whole.pth is a PyTorch pickle of more than weights" in shown
    # Without loading, no code of the folder is run.
    (tmp_path / "weights/model.py").write_text("raise SystemExit('run')")
    assert run(["inspect", str(tmp_path / "weights"), "--no-load"]) == 0
    capsys.readouterr()
    assert run(["inspect", str(tmp_path / "weights")]) == 65
    shown = capsys.readouterr().out
    assert "weights/model.pth: model.py, line 1, raised SystemExit: run" in shown
    (tmp_path / "weights/model.py").unlink()
    assert run(["inspect", str(tmp_path / "weights")]) == 65
    assert "invalid  weights/model.pth holds weights alone" in capsys.readouterr().out


def test_inspect_tells_what_is_invalid_and_fails(repository: Path, capsys: Captured) -> None:
    (repository / "bad.onnx").write_text("words")
    models.sequence(repository / "sequence.onnx")
    assert run(["inspect", str(repository)]) == 65
    shown = " ".join(capsys.readouterr().out.split())
    assert "invalid bad.onnx is not a model: it seems to be text" in shown
    assert "zipmap=False" in shown
    assert "mlp onnx on the runtime onnx" in shown


def test_inspect_an_empty_repository(tmp_path: Path, capsys: Captured) -> None:
    assert run(["inspect", str(tmp_path)]) == 0
    assert "no models in" in capsys.readouterr().out


def test_an_error_is_one_line_without_a_traceback(tmp_path: Path, capsys: Captured) -> None:
    assert run(["serve", str(tmp_path / "none")]) == 78
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: the model repository ")
    assert err.count("\n") == 1


def test_debug_shows_the_traceback(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIDEGATE_DEBUG", "1")
    assert run(["serve", str(tmp_path / "none")]) == 78
    assert "Traceback" in capsys.readouterr().err


def test_wrong_options_and_variables(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(["serve", str(tmp_path), "--join", "gateway:8002"]) == 78
    assert "--join must be the admin port of a gateway, as http" in capsys.readouterr().err
    assert run(["serve", str(tmp_path), "--port", "many"]) == 78
    assert "--port must be a valid integer, not 'many'" in capsys.readouterr().err
    assert run(["serve", str(tmp_path), "--prot", "1"]) == 2
    assert "--port" in capsys.readouterr().err
    monkeypatch.setenv("TIDEGATE_ADMINPORT", "1")
    assert run(["serve", str(tmp_path)]) == 78
    assert "did you mean 'TIDEGATE_ADMIN_PORT'?" in capsys.readouterr().err


def test_what_is_no_error_of_ours_is_told_too(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object) -> int:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(serving, "serve", broken)
    assert run(["serve", str(tmp_path)]) == 70
    err = capsys.readouterr().err
    assert "ZeroDivisionError: division by zero (a fault of Tidegate; TIDEGATE_DEBUG=1" in err


def test_a_bare_install_says_how_to_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec

    def bare(name: str, package: str | None = None) -> object:
        return None if name == "uvloop" else real(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", bare)
    with pytest.raises(RuntimeMissing, match=r"uvloop missing.*pip install 'tidegate\[onnx\]'"):
        serving.check_serving_parts()


BARE = """
import sys
for part in ("grpc", "httptools", "psutil", "starlette", "uvicorn", "uvloop", "watchfiles",
             "onnxruntime", "envoy", "xds"):
    sys.modules[part] = None
from tidegate.cli.main import cli, run
sys.exit(run(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["version"], 0, "onnxruntime"),
        (["doctor"], 1, "pip install 'tidegate[onnx]'"),
        (["serve", "."], 69, "pip install 'tidegate[onnx]'"),
        (["status", "--run-dir", "none"], 66, "no node of yours runs"),
        (["inspect", "."], 0, "skipped"),
        (["infer", "mlp", "--data", "[1]"], 69, "pip install 'tidegate[onnx]'"),
        (["infer", "none", "--run-dir=none", "--data", "[1]"], 66, "no node of yours runs"),
        (["infer", "mlp", "--data", "[1]", "--url=http://127.0.0.1:1"], 69, "nobody answers"),
        (["config"], 0, "drain_timeout"),
        (["logs", "mlp", "--run-dir=none"], 66, "no node of yours runs"),
        (["load", "mlp", "--run-dir=none"], 66, "no node of yours runs"),
        (["completion", "zsh"], 0, "compdef"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_every_command_works_in_a_bare_install(
    repository: Path, arguments: list[str], status: int, words: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BARE, *arguments],
        cwd=repository,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert (done.returncode, done.stderr.count("Traceback")) == (status, 0), done.stderr
    assert words in done.stdout + done.stderr


def test_version_is_quick_and_imports_no_framework(capsys: Captured) -> None:
    assert run(["version"]) == 0
    assert ["tidegate", __version__] == capsys.readouterr().out.splitlines()[0].split()
    assert run(["version", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["python"].startswith("3.")


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0B"), (1023, "1023B"), (2**20, "1MiB"), (64 * 2**20, "64MiB"), (3 * 2**29, "1.5GiB")],
)
def test_sizes_as_people_write_them(size: int, text: str) -> None:
    assert size_text(size) == text


def _tidegate(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "tidegate.cli", *arguments]


def test_serve_status_stop(repository: Path, tmp_path: Path) -> None:
    (repository / "bad.onnx").write_text("words")
    run_dir = f"--run-dir={tmp_path / 'run'}"
    log = tmp_path / "serve.log"
    with log.open("w") as written:
        node = subprocess.Popen(
            _tidegate("serve", str(repository), "--port=0", "--admin-port=0", run_dir),
            stdout=written,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + 120
        while not log.read_text().rstrip().endswith(" ready"):
            assert node.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        lines = log.read_text()
        assert "mlp: onnx, version 2 (of 2)" in lines
        assert "bad.onnx is not a model: it seems to be text" in lines
        asked = subprocess.run(_tidegate("status", "--json", run_dir), capture_output=True)
        (state,) = json.loads(asked.stdout)
        assert asked.returncode == 0
        assert state["controller"] == node.pid
        assert {m["name"]: m["state"] for m in state["models"]} == {
            "bad": "not ready",
            "echo": "ready",
            "mlp": "ready",
        }
        shown = subprocess.run(
            _tidegate("status", run_dir), capture_output=True, text=True, check=True
        ).stdout
        assert "1 of 1" in shown
        assert "it seems to be text" in shown
        port = state["address"].rpartition(":")[2]
        doctor = subprocess.run(
            _tidegate("doctor", "--json", f"--port={port}", "--admin-port=0", run_dir),
            capture_output=True,
        )
        (own,) = (f for f in json.loads(doctor.stdout) if f["what"] == f"port {port}")
        assert own["state"] == "ok"
        assert "Tidegate's own" in own["detail"]
        stopped = subprocess.run(
            _tidegate("stop", run_dir), capture_output=True, text=True, timeout=240
        )
        assert stopped.returncode == 0, stopped.stderr
        assert f"port {port} has stopped" in stopped.stdout
        assert node.wait(60) == 0
    finally:
        if node.poll() is None:
            node.terminate()
            node.wait(60)
    again = subprocess.run(_tidegate("status", run_dir), capture_output=True, text=True)
    assert again.returncode == 66
    assert "no node of yours runs" in again.stderr


def test_json_is_a_flag_wherever_it_is() -> None:
    """It takes no value, whatever the command: a program need not know which one it calls."""
    found = {
        name: option
        for name, command in cli.commands.items()
        for option in command.params
        if "--json" in option.opts
    }
    assert set(found) == {
        "bench", "config", "doctor", "infer", "inspect", "load", "logs", "status", "unload",
        "version",
    }  # fmt: skip
    assert all(isinstance(option, click.Option) and option.is_flag for option in found.values())


def test_the_list_of_commands_says_what_each_does(capsys: Captured) -> None:
    """Whole sentences, on a terminal of the usual width."""
    assert run(["--help"]) == 0
    listed = capsys.readouterr().out.partition("Commands:\n")[2].splitlines()
    assert len(listed) == len(cli.commands)
    assert all(line.endswith(".") and not line.endswith("..") for line in listed)
    assert max(map(len, listed)) < 80


def test_a_full_disk_is_no_fault_of_ours(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: Path, options: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(serving, "gateway", full)
    assert run(["gateway", str(tmp_path / "gateway.yaml")]) == 78
    told = capsys.readouterr().err
    assert "No space left on device; make room, or give another place with --run-dir" in told
    assert "a fault of Tidegate" not in told


def test_a_folder_for_a_file_and_a_file_for_a_folder(tmp_path: Path, capsys: Captured) -> None:
    assert run(["gateway", str(tmp_path)]) == 78
    assert f"'tidegate serve {tmp_path}'" in capsys.readouterr().err
    file = tmp_path / "gateway.yaml"
    file.write_text("models: {}")
    assert run(["serve", str(file)]) == 78
    assert f"run 'tidegate gateway {file}'" in capsys.readouterr().err
