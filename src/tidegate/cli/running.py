"""The nodes of this user: which there are, and what their controllers say."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from tidegate.config.loading import load_node_config
from tidegate.config.origins import DEFAULT
from tidegate.controller.local_address import tls_of
from tidegate.controller.run_directory import (
    GatewayRecord,
    NodeRecord,
    RunDirectory,
    base_directory,
    find_nodes,
)
from tidegate.errors import (
    ConfigurationError,
    LoadFailed,
    ModelNotFound,
    NodeError,
    NodeNotFound,
    PermissionDenied,
    TidegateError,
)

_REFUSALS: dict[int, type[TidegateError]] = {
    400: LoadFailed,
    403: PermissionDenied,
    404: ModelNotFound,
}
"""What the admin port's refusals to load and to unload are called here."""
LOOPBACK, ANY = "127.0.0.1", "0.0.0.0"  # noqa: S104 - nothing listens there by this
# Proxy variables never apply to loopback.
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def chosen_nodes(port: str | None, run_dir: str | None) -> list[RunDirectory]:
    """Return the node on ``port``, or every node of this user when no port is given.

    Raises:
        NodeNotFound: there is none.
        ConfigurationError: an option or a variable is wrong.
    """
    config, origins = load_node_config(Path(), _relevant(), {"port": port, "run_dir": run_dir})
    base = base_directory(config.run_dir)
    nodes = list(find_nodes(base))
    if origins["port"] == DEFAULT:
        if not nodes:
            raise NodeNotFound(
                f"no node of yours runs (none is recorded in {base}); start one with "
                "'tidegate serve REPOSITORY'"
            )
        return nodes
    chosen = [node for node in nodes if node.port == config.port]
    if not chosen:
        others = ", ".join(str(node.port) for node in nodes)
        hint = f"there are nodes on the ports {others}" if nodes else "none of yours runs"
        raise NodeNotFound(f"no node of yours runs on port {config.port} ({base}); {hint}")
    return chosen


def refuse_tls(target: str) -> None:
    """Make sure that no server of this user speaks TLS at ``target``, which is ``HOST:PORT``.

    Raises:
        ConfigurationError: one does.
    """
    host, _, port = target.rpartition(":")
    if host not in ("127.0.0.1", "[::1]", "localhost"):
        return
    config, _ = load_node_config(Path(), _relevant(), {})
    for node in find_nodes(base_directory(config.run_dir)):
        record = node.load() if str(node.port) == port else None
        if record is not None and tls_of(record.config) is not None:
            raise ConfigurationError(
                f"the server at {target} speaks TLS, and the load generator does not: measure one "
                "that is started without"
            )


def _relevant() -> dict[str, str]:
    names = ("TIDEGATE_PORT", "TIDEGATE_RUN_DIR")
    return {name: os.environ[name] for name in names if name in os.environ}


def only(nodes: list[RunDirectory], otherwise: str = "") -> RunDirectory:
    """Return the only one of ``nodes``.

    Raises:
        ConfigurationError: there are several.
    """
    if len(nodes) > 1:
        ports = ", ".join(str(node.port) for node in nodes)
        raise ConfigurationError(
            f"several nodes run, on the ports {ports}; name one with --port{otherwise}"
        )
    return nodes[0]


def state_of(node: RunDirectory, timeout: float = 5.0) -> dict[str, Any]:
    """Ask the controller; when it is away, tell what its record says."""
    record = node.load()
    away: dict[str, Any] = {
        "kind": "gateway" if isinstance(record, GatewayRecord) else "node",
        "port": node.port,
        "ready": False,
        "controller": node.controller_pid(),
        "run_dir": str(node.path),
        "repository": None if record is None else str(record.serves),
    }
    if record is None or away["controller"] is None:
        return away | {"error": f"its controller is not running; {_starts(record)} brings it back"}
    url = f"{admin_url(record)}/status"
    try:
        with _direct.open(url, timeout=timeout) as answer:
            told: dict[str, Any] = json.load(answer)
    except (OSError, ValueError, urllib.error.URLError) as error:
        return away | {"error": f"its controller does not answer at {url}: {error}"}
    return away | told


def admin_url(record: NodeRecord | GatewayRecord) -> str:
    """Return where the admin API of a node or a gateway is called on this machine."""
    host = record.config.admin_host if isinstance(record, GatewayRecord) else LOOPBACK
    # Who listens on all addresses is called at the nearest.
    host = {ANY: LOOPBACK, "::": "::1"}.get(host, host)
    return f"http://{f'[{host}]' if ':' in host else host}:{record.config.admin_port}"


def _starts(record: NodeRecord | GatewayRecord | None) -> str:
    return "'tidegate gateway'" if isinstance(record, GatewayRecord) else "'tidegate serve'"


def call_admin(node: RunDirectory, path: str, timeout: float | None = None) -> bytes:
    """``POST`` to the admin port of a node; return the body of the answer.

    Raises:
        NodeNotFound: its controller does not run, or does not answer.
        TidegateError: what the node answered, of the kind that it has there.
    """
    record = node.load()
    if record is None or node.controller_pid() is None:
        raise NodeNotFound(
            f"the controller of the node on port {node.port} is not running; {_starts(record)} "
            "brings it back"
        )
    url = f"{admin_url(record)}{path}"
    request = urllib.request.Request(url, data=b"", method="POST")  # noqa: S310 - ours
    try:
        with _direct.open(request, timeout=timeout) as answer:
            body: bytes = answer.read()
            return body
    except urllib.error.HTTPError as error:
        with error:
            raise _refusal(error.code, error.read()) from None
    except OSError as error:
        reason = f"the controller does not answer at {url}: {error}"
        raise NodeNotFound(f"{reason}; 'tidegate status' shows whether it runs") from error


def _refusal(status: int, body: bytes) -> TidegateError:
    try:
        message = str(json.loads(body)["error"])
    except (ValueError, TypeError, LookupError):
        message = f"the node answered {status}: {body[:200].decode('utf-8', 'replace')}"
    return _REFUSALS.get(status, NodeError)(message)
