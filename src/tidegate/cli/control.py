"""``tidegate load`` and ``tidegate unload``: which models a running node serves."""

from __future__ import annotations

import queue
import threading
import urllib.parse
from collections.abc import Callable
from typing import Any, Literal

import click
import orjson
from rich.markup import escape

from tidegate.cli.running import call_admin, chosen_nodes, only, state_of
from tidegate.cli.terminal import new_console
from tidegate.controller.run_directory import GatewayRecord, RunDirectory
from tidegate.errors import ConfigurationError, ModelNotFound

_LOOK_EVERY = 0.25


def control(
    action: Literal["load", "unload"],
    model: str,
    port: str | None,
    run_dir: str | None,
    *,
    as_json: bool,
) -> int:
    """Load or unload ``model`` on a node; return when it is done.

    Raises:
        NodeNotFound: no node of this user runs.
        ConfigurationError: it is a gateway.
        ModelNotFound: the node's repository has no such model.
        LoadFailed: it cannot be loaded.
    """
    node = only(chosen_nodes(port, run_dir))
    if isinstance(node.load(), GatewayRecord):
        raise ConfigurationError(
            f"a gateway runs on port {node.port}: {action} models on the nodes, or edit its file"
        )
    path = f"/v2/repository/models/{urllib.parse.quote(model, safe='')}/{action}"
    console = new_console()
    if console.is_terminal and not as_json:
        with console.status(f"{action}ing {escape(model)}") as shown:
            _call_and_look(node, path, model, lambda text: shown.update(escape(text)))
    else:
        call_admin(node, path)
    state = _model(node, model)
    if as_json:
        click.echo(orjson.dumps(state, option=orjson.OPT_INDENT_2))
    else:
        console.print(f"{escape(model)}  {state['state']}{_versions(state)}", highlight=False)
    return 0


def _call_and_look(node: RunDirectory, path: str, model: str, show: Callable[[str], None]) -> None:
    """Call, and meanwhile show how far the model is."""
    done: queue.Queue[Exception | None] = queue.Queue()

    def call() -> None:
        try:
            call_admin(node, path)
        except Exception as error:
            done.put(error)
        else:
            done.put(None)

    # A daemon, so that Ctrl-C ends this command; the node goes on with what it was told.
    threading.Thread(target=call, daemon=True).start()
    while True:
        try:
            failed = done.get(timeout=_LOOK_EVERY)
        except queue.Empty:
            models = state_of(node).get("models", ())
            for state in (each for each in models if each["name"] == model):
                show(f"{model}  {state['state']}{_versions(state)}")
            continue
        if failed is not None:
            raise failed
        return


def _model(node: RunDirectory, model: str) -> dict[str, Any]:
    for state in state_of(node).get("models", ()):
        if state["name"] == model:
            found: dict[str, Any] = state
            return found
    raise ModelNotFound(f"the node on port {node.port} has no model {model!r} any more")


def _versions(state: dict[str, Any]) -> str:
    """Say which versions there are, and how far each is."""
    told = []
    for version in state["versions"]:
        replicas = version["replicas"]
        ready = sum(replica["state"] == "ready" for replica in replicas)
        told.append(
            f"version {version['version']} {version['state']}, {ready} of {len(replicas)} replicas"
        )
    return f"  ({'; '.join(told)})" if told else ""
