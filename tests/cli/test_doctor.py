from __future__ import annotations

import json
import os
import platform
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import RunningNode
from tests.edge.certificates import leaf, write
from tests.ports import free_port
from tidegate.cli import doctor, machine, network
from tidegate.cli.findings import Finding
from tidegate.cli.main import run
from tidegate.config.node import NodeConfig


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def only(findings: Iterator[Finding]) -> Finding:
    (finding,) = findings
    return finding


def test_everything_is_looked_at(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--port=0", "--admin-port=0"]) == 0
    shown = capsys.readouterr().out
    for what in ("Python", "Envoy", "runtime onnx", "GPU", "run directory", "memory", "cores"):
        assert what in shown
    assert "0 to put right" in shown


def test_a_port_that_is_held_names_its_holder(
    taken: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["doctor", "--json", f"--port={taken}", "--admin-port=0"]) == 1
    (held,) = (f for f in json.loads(capsys.readouterr().out) if f["state"] == "fail")
    assert held["what"] == f"port {taken}"
    assert f"(pid {os.getpid()})" in held["detail"]
    assert "--port" in held["hint"]


def test_an_address_of_another_machine() -> None:
    found = list(network.ports(NodeConfig(host="192.0.2.1", port=0, admin_port=0)))
    assert [f.state for f in found] == ["fail", "ok"]


def test_settings_that_are_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TIDEGATE_POTR", "1")
    assert run(["doctor"]) == 1
    assert "did you mean 'TIDEGATE_PORT'?" in capsys.readouterr().out


def test_an_envoy_that_does_not_run(tmp_path: Path) -> None:
    fake = tmp_path / "envoy"
    fake.write_text("#!/bin/sh\necho no\nexit 1\n")
    fake.chmod(0o755)
    found = {f.what: f for f in doctor.examine(NodeConfig(envoy=fake, port=0, admin_port=0))}
    assert found["Envoy"].state == "fail"
    assert "does not run" in found["Envoy"].detail


def test_proxies_never_apply_to_loopback_but_other_clients_may_use_them() -> None:
    assert only(network.proxies({})).state == "ok"
    told, warned = network.proxies({"HTTPS_PROXY": "http://proxy:3128"})
    assert "never applies them to loopback" in told.detail
    assert warned.state == "warn"
    exempt = {"http_proxy": "http://proxy:3128", "no_proxy": "example.org, 127.0.0.1"}
    assert only(network.proxies(exempt)).state == "ok"


def test_the_run_directory(tmp_path: Path) -> None:
    assert only(network.run_directory(tmp_path / "new")).state == "ok"
    long = only(network.run_directory(tmp_path / ("x" * 100)))
    assert (long.state, "too long for Unix sockets" in long.detail) == ("fail", True)
    (tmp_path / "file").write_text("")
    assert only(network.run_directory(tmp_path / "file/below")).state == "fail"


@pytest.mark.parametrize(
    ("name", "processor", "libc", "state"),
    [
        ("Linux", "x86_64", ("glibc", "2.31"), "ok"),
        ("Linux", "aarch64", ("glibc", "2.36"), "ok"),
        ("Linux", "x86_64", ("glibc", "2.28"), "fail"),
        ("Linux", "x86_64", ("", ""), "fail"),
        ("Linux", "ppc64le", ("glibc", "2.36"), "fail"),
        ("Windows", "AMD64", ("", ""), "fail"),
        ("Darwin", "arm64", ("", ""), "ok"),
        ("Darwin", "x86_64", ("", ""), "fail"),
    ],
)
def test_platforms(
    monkeypatch: pytest.MonkeyPatch, name: str, processor: str, libc: tuple[str, str], state: str
) -> None:
    monkeypatch.setattr(platform, "system", lambda: name)
    monkeypatch.setattr(platform, "machine", lambda: processor)
    monkeypatch.setattr(platform, "libc_ver", lambda: libc)
    found = only(machine.system())
    assert found.state == state
    assert state == "ok" or "WSL2" in found.hint


def test_few_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1024, 524288))
    found = only(machine.open_files())
    assert (found.state, found.hint.endswith("ulimit -n 65536")) == ("warn", True)
    monkeypatch.setattr(resource, "getrlimit", lambda which: (resource.RLIM_INFINITY,) * 2)
    assert only(machine.open_files()).state == "ok"


def test_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "run", lambda command: "0, NVIDIA L4, 23034 MiB")
    assert [f.state for f in machine.gpus(["onnx"])] == ["ok"]
    assert [f.state for f in machine.gpus([])] == ["ok", "warn"]
    monkeypatch.setattr(machine, "run", lambda command: None)
    assert "none is visible" in only(machine.gpus([])).detail


def test_the_containers_share_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text(f"{2**30}\n")
    (tmp_path / "memory.current").write_text(f"{2**30 - 2**20}\n")
    found = only(machine.memory())
    assert (found.state, found.detail) == ("warn", "1MiB left in this container")
    (tmp_path / "memory.max").write_text("max\n")
    assert "on the machine" in only(machine.memory()).detail
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert only(machine.cores()).detail.startswith("0.5 of ")
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert only(machine.cores()).state == "ok"


def test_a_look_that_fails_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Iterator[Finding]:
        raise OSError("no /proc here")

    monkeypatch.setattr(machine, "memory", broken)
    found = {f.what: f for f in doctor.examine(NodeConfig(port=0, admin_port=0))}
    assert (found["memory"].state, "no /proc here" in found["memory"].detail) == ("warn", True)


def of_gateway(
    file: Path, document: str, capsys: pytest.CaptureFixture[str], *options: str
) -> tuple[int, dict[str, list[Finding]]]:
    """Run the command for a gateway; return its status and what it found, by what it looked at."""
    file.write_text(document)
    ports = ("--port=0", "--admin-port=0")
    status = run(["doctor", str(file), "--json", *ports, *options])
    found: dict[str, list[Finding]] = {}
    for each in json.loads(capsys.readouterr().out):
        found.setdefault(each["what"], []).append(Finding(**each))
    return status, found


def test_a_gateway(node: RunningNode, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = f"""
models:
  scale: {{endpoints: ["127.0.0.1:{node.port}"]}}
  words: {{endpoints: ["127.0.0.1:{node.port}", "127.0.0.1:{free_port()}"]}}
"""
    status, found = of_gateway(tmp_path / "gateway.yaml", document, capsys)
    assert status == 0, found
    assert found["model scale"] == [Finding("model scale", "ok", "1 of 1 endpoint ready", "")]
    summary, refused = found["model words"]
    assert (summary.state, summary.detail) == ("warn", "1 of 2 endpoints ready")
    assert "Connection refused" in refused.detail
    assert "runtimes" not in found, "a gateway loads no model"
    document = f"models: {{other: {{endpoints: ['127.0.0.1:{node.port}']}}, empty: {{}}}}"
    status, found = of_gateway(tmp_path / "gateway.yaml", document, capsys)
    assert status == 1
    assert "it has no model 'other'" in found["model other"][1].detail
    assert found["model empty"][0].state == "warn"


def test_many_endpoints_that_fail_are_not_told_one_by_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    places = ", ".join(f"'127.0.1.{n}:{port}'" for n in range(1, 201))
    document = f"models: {{m: {{endpoints: [{places}]}}}}"
    monkeypatch.setattr(resource, "getrlimit", lambda which: (128, 399))
    status, found = of_gateway(tmp_path / "gateway.yaml", document, capsys)
    assert status == 1
    assert found["model m"][0].detail == "0 of 200 endpoints ready"
    assert found["model m"][-1].detail == "and 195 endpoints more"
    assert len(found["model m"]) == 7
    (files,) = found["open files"]
    assert (files.state, "200 endpoints take 400" in files.detail) == ("fail", True)
    assert "LimitNOFILE" in files.hint


def test_files_of_a_gateway(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, leaf(valid=3.0))
    (tmp_path / "server.key").chmod(0o644)
    (tmp_path / "keys").write_text("team-a " + "0" * 32 + "\n")
    (tmp_path / "keys").chmod(0o640)
    document = """
tls: {certificate: server.crt, key: server.key}
endpoint_tls: {ca: gone.crt}
api_keys: {file: keys}
registration: {token_file: token}
"""
    status, found = of_gateway(tmp_path / "gateway.yaml", document, capsys)
    assert status == 1
    expiring, readable = found["tls"]
    assert (expiring.state, readable.state) == ("warn", "warn")
    assert readable.hint == f"chmod 600 {tmp_path / 'server.key'}"
    assert "gone.crt cannot be read" in found["endpoint_tls"][0].detail
    assert "gone.crt cannot be read" in found["endpoints"][0].detail
    assert "run chmod 600" in found["API keys"][0].detail
    assert "token cannot be read" in found["admin API"][0].detail


def test_a_gateways_settings_that_are_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, found = of_gateway(tmp_path / "gateway.yaml", "modells: {}", capsys)
    assert (status, "did you mean 'models'?" in found["settings"][0].detail) == (1, True)
    assert run(["doctor", str(tmp_path / "gone"), "--json"]) == 1
    assert "there is no file" in capsys.readouterr().out
    assert run(["doctor", "--admin-host=::1"]) == 1
    assert "a node has no --admin-host" in capsys.readouterr().out
