"""``tidegate status`` and ``tidegate stop``: the nodes and gateways of this user."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable
from typing import Any

import click
import orjson
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tidegate.cli.exits import NOT_READY
from tidegate.cli.gateways import print_models
from tidegate.cli.options import size_text
from tidegate.cli.running import chosen_nodes, only, state_of
from tidegate.cli.serving import announce, check_serving_parts
from tidegate.cli.terminal import new_console, waiting
from tidegate.controller.run_directory import GatewayRecord, RunDirectory
from tidegate.errors import NodeError

_STOP_MARGIN = 30.0
_LOOK_EVERY = 0.05


def status(
    port: str | None, run_dir: str | None, *, as_json: bool, endpoints: bool = False
) -> int:
    """Print the state of the chosen nodes and gateways; return 0 when all are ready, else 69.

    ``endpoints`` shows each endpoint of a gateway, and what is decided about it.

    Raises:
        NodeNotFound: there is none.
    """
    states = [state_of(directory) for directory in chosen_nodes(port, run_dir)]
    if as_json:
        click.echo(orjson.dumps(states, option=orjson.OPT_INDENT_2))
    else:
        console = new_console()
        for state in states:
            _print(console, state, endpoints=endpoints)
    return 0 if all(state.get("ready") for state in states) else NOT_READY


def stop(port: str | None, run_dir: str | None, *, every: bool) -> int:
    """Stop one node, or every node; return when nothing of it runs.

    Raises:
        NodeNotFound: there is none.
        ConfigurationError: there are several, and none was named.
    """
    nodes = chosen_nodes(port, run_dir)
    if not every:
        only(nodes, " or use --all")
    for node in nodes:
        kind = "gateway" if isinstance(node.load(), GatewayRecord) else "node"
        _stop(node)
        announce(f"the {kind} on port {node.port} has stopped")
    return 0


def _print(console: Console, state: dict[str, Any], *, endpoints: bool) -> None:
    address = state.get("address", f"port {state['port']}")
    ready = "[green]ready[/green]" if state["ready"] else "[yellow]not ready[/yellow]"
    console.print(f"[bold]{escape(str(address))}[/bold]  {ready}", highlight=False)
    controller = state["controller"] or "none"
    pid = state.get("edge", {}).get("pid")
    edge = f", edge {pid}" if pid else ""
    for label, value in (
        ("gateway of" if state.get("kind") == "gateway" else "repository", state["repository"]),
        ("processes", f"controller {controller}{edge}"),
        ("gateways", _joined(state.get("gateways", ()))),
        ("files", state["run_dir"]),
        ("error", state.get("error")),
    ):
        if value is not None:
            text = f"  {label:<11} {escape(str(value))}"
            console.print(text, highlight=False, soft_wrap=True)
    if state.get("kind") == "gateway":
        print_models(console, state, endpoints=endpoints)
        return
    if state.get("models"):
        console.print(_table(state["models"]))
    for model in state.get("models", []):
        for environment in _environments(model):
            text = f"[dim]{escape(model['name'])}  {escape(environment)}[/dim]"
            console.print(text, highlight=False, soft_wrap=True)
        for reason in _reasons(model):
            text = f"[yellow]{escape(model['name'])}[/yellow]  {escape(reason)}"
            console.print(text, highlight=False, soft_wrap=True)
    for problem in state.get("problems", []):
        console.print(f"[yellow]{escape(problem)}[/yellow]", highlight=False, soft_wrap=True)


def _joined(gateways: Iterable[dict[str, Any]]) -> str | None:
    """Say to which gateways a node has announced itself, and why not to others."""
    return (
        "; ".join(
            f"{each['gateway']} ({each['reason'] or 'knows ' + each['advertised']})"
            for each in gateways
        )
        or None
    )


def _table(models: list[dict[str, Any]]) -> Table:
    table = Table(box=None, padding=(0, 2), header_style="dim")
    for column in ("model", "version", "state", "replicas", "device", "memory", "restarts"):
        right = column in ("version", "memory", "restarts")
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    for model in models:
        if not model["versions"]:
            table.add_row(escape(model["name"]), "", model["state"])
        for version in model["versions"]:
            replicas = version["replicas"]
            ready = sum(replica["state"] == "ready" for replica in replicas)
            memory = sum(replica["memory_bytes"] or 0 for replica in replicas)
            devices = sorted({replica["device"] for replica in replicas if replica["device"]})
            table.add_row(
                escape(model["name"]),
                str(version["version"]) + ("*" if _is_default(model, version) else ""),
                version["state"],
                f"{ready} of {len(replicas)}",
                ", ".join(devices),
                size_text(memory) if memory else "",
                str(sum(replica["restarts"] for replica in replicas)),
            )
    return table


def _environments(model: dict[str, Any]) -> list[str]:
    """Return the interpreters of its versions that are not the node's own."""
    found: dict[str, None] = {}
    for version in model["versions"]:
        environment = version.get("environment")
        if environment is not None:
            pythons = {r["python"] for r in version["replicas"] if r.get("python")}
            said = f" ({', '.join(sorted(pythons))})" if pythons else ""
            found[f"runs in {environment}{said}"] = None
    return list(found)


def _reasons(model: dict[str, Any]) -> list[str]:
    """Return why a model is not served, without what is said by its problems already."""
    problems: list[str] = model["problems"]
    reason: str | None = model["reason"]
    if reason is None or any(reason in problem for problem in problems):
        return problems
    return [reason, *problems]


def _is_default(model: dict[str, Any], version: dict[str, Any]) -> bool:
    return len(model["versions"]) > 1 and version["version"] == model["default_version"]


def _stop(node: RunDirectory) -> None:
    record = node.load()
    pid = node.controller_pid()
    if pid is None:
        if record is not None:
            _stop_without_controller(node)
        return
    check_serving_parts()
    from psutil import NoSuchProcess

    from tidegate.edge.exit import ExitWatch

    drain = 30.0 if record is None else record.config.drain_timeout
    deadline = time.monotonic() + drain + _STOP_MARGIN
    with (
        contextlib.suppress(NoSuchProcess),
        waiting(f"the node on port {node.port} answers what it has, and ends"),
    ):
        controller = ExitWatch(pid)
        controller.terminate()
        while controller.running:
            if time.monotonic() > deadline:
                raise NodeError(
                    f"the node on port {node.port} (pid {pid}) has not stopped within "
                    f"{drain + _STOP_MARGIN:g} s; look into {node.logs}, or end it with "
                    f"kill -9 {pid}"
                )
            time.sleep(_LOOK_EVERY)
    if node.controller_pid() is None and node.load() is not None:
        _stop_without_controller(node)  # it was killed meanwhile


def _stop_without_controller(node: RunDirectory) -> None:
    """End what a killed controller left, in order."""
    check_serving_parts()
    from tidegate.node.remains import end_remains

    asyncio.run(end_remains(node, announce))
