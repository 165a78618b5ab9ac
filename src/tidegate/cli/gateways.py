"""What ``tidegate status`` tells of a gateway."""

from __future__ import annotations

from collections import Counter
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

_WELL = ("healthy", "unknown")


def print_models(console: Console, state: dict[str, Any], *, endpoints: bool) -> None:
    """Print the models of a gateway, each of their endpoints if so wished, and what is wrong."""
    if state.get("problem"):
        _say(
            console, f"[yellow]{escape(state['problem'])}; earlier settings are in effect[/yellow]"
        )
    for source in state.get("sources", ()):
        if source["problem"]:
            _say(
                console,
                f"[yellow]{escape(source['source'])}: {escape(source['problem'])}[/yellow]",
            )
    for node in state.get("nodes", ()):
        if node.get("reason"):
            _say(
                console, f"[yellow]node {escape(node['name'])}: {escape(node['reason'])}[/yellow]"
            )
    console.print(_endpoints(state) if endpoints else _models(state))
    found = (e for m in state.get("models", ()) for p in m["pools"] for e in p["endpoints"])
    if "unhealthy" in {each["health"] for each in found} and state.get("file"):
        _say(
            console, f"'tidegate doctor {escape(state['file'])}' asks those that are not well why"
        )


def _say(console: Console, text: str) -> None:
    console.print(f"  {text}", highlight=False, soft_wrap=True)


def _models(state: dict[str, Any]) -> Table:
    table = _table("model", "pool", "endpoints", "serving", "not well")
    for model in state.get("models", ()):
        for pool in model["pools"]:
            serving = sum(_serves(e) for e in pool["endpoints"])
            wrong = Counter(_state(e) for e in pool["endpoints"] if not _serves(e))
            table.add_row(
                escape(model["name"]),
                escape(_part(model, pool)),
                str(len(pool["endpoints"])),
                str(serving),
                ", ".join(f"{count} {what}" for what, count in wrong.items()),
            )
    return table


def _endpoints(state: dict[str, Any]) -> Table:
    table = _table(
        "model", "endpoint", "protocol", "state", "share", "in flight", "ok", "failed",
        "cancelled", "why",
    )  # fmt: skip
    for model in state.get("models", ()):
        for pool in model["pools"]:
            part = _part(model, pool)
            name = f"{model['name']} {part}" if part else model["name"]
            for each in pool["endpoints"]:
                colour = "green" if _serves(each) else "yellow"
                table.add_row(
                    escape(name),
                    each["address"],
                    each["protocol"],
                    f"[{colour}]{_state(each)}[/{colour}]",
                    f"{each['share']:.1%}"
                    + (f" of overflow {each['priority']}" if each["priority"] else ""),
                    str(each["in_flight"]),
                    str(each["succeeded"]),
                    str(each["failed"]),
                    str(each["cancelled"]),
                    escape(each["reason"]),
                )
    return table


def _part(model: dict[str, Any], pool: dict[str, Any]) -> str:
    """Say which of a model's pools it is: ``canary``, ``mirror``; the usual one has no name."""
    name: str = pool["name"]
    return name.removeprefix(model["name"]).lstrip("/")


def _serves(endpoint: dict[str, Any]) -> bool:
    return endpoint["state"] != "ejected" and endpoint["health"] in _WELL


def _state(endpoint: dict[str, Any]) -> str:
    """Say in a word or two how an endpoint is: what is decided goes before what is checked."""
    state: str = endpoint["state"]
    health: str = endpoint["health"]
    return state if state == "ejected" or health in _WELL else health


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2), header_style="dim")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
