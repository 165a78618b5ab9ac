from __future__ import annotations

import json
import os
import platform
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

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
