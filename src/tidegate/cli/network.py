"""Ports, proxies and sockets: for ``tidegate doctor``."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

from tidegate.cli.findings import Finding, fail, ok, warn
from tidegate.config.gateway import GatewayConfig
from tidegate.config.node import NodeConfig
from tidegate.controller.run_directory import LONGEST_SOCKET, base_directory, find_nodes
from tidegate.edge.topology import MAX_SOCKET_PATH

_PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "grpc_proxy")


def ports(config: NodeConfig | GatewayConfig) -> Iterator[Finding]:
    """Examine whether the ports can be listened on, and who holds them if not."""
    served = {}
    admin_host = config.admin_host if isinstance(config, GatewayConfig) else "127.0.0.1"
    for node in find_nodes(base_directory(config.run_dir)):
        record = node.load()
        if record is not None:
            served[node.port] = served[record.config.admin_port] = str(record.serves)
    for host, port, option in (
        (config.host, config.port, "--port"),
        (admin_host, config.admin_port, "--admin-port"),
    ):
        what = f"port {port}"
        refused = _refused(host, port)
        if refused is None:
            yield ok(what, f"{host}:{port} is free")
        elif port in served:
            yield ok(what, f"{host}:{port} is Tidegate's own, serving {served[port]}")
        else:
            by = _holder(port)
            hint = f"choose another with {option}" + (", or end that process" if by else "")
            yield fail(what, f"{host}:{port} cannot be used: {refused}{by}", hint)


def proxies(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Tell which proxy variables are set: a client's library may send loopback through one."""
    names = sorted(name for name in environ if name.lower() in _PROXY_VARIABLES)
    if not names:
        yield ok("proxies", "no proxy variables are set")
        return
    yield ok("proxies", f"{', '.join(names)} set; Tidegate never applies them to loopback")
    exempt = [
        part.strip()
        for name in ("no_proxy", "NO_PROXY")
        if name in environ
        for part in environ[name].split(",")
    ]
    proxy = [name for name in names if name.lower() != "no_proxy"]
    if proxy and not {"*", "127.0.0.1", "localhost"} & set(exempt):
        yield warn(
            "proxies",
            "other clients (curl, tritonclient) may send calls to 127.0.0.1 to the proxy",
            "export no_proxy=localhost,127.0.0.1",
        )


def run_directory(configured: Path | None) -> Iterator[Finding]:
    """Examine where sockets and state will lie."""
    base = base_directory(configured)
    length = len(os.fsencode(base)) + LONGEST_SOCKET
    hint = "give another one with --run-dir"
    nearest = next(folder for folder in (base, *base.parents) if folder.exists())
    if length > MAX_SOCKET_PATH:
        spare = MAX_SOCKET_PATH - LONGEST_SOCKET
        reason = f"its path is too long for Unix sockets: more than {spare} bytes"
        yield fail("run directory", f"{base}: {reason}", hint)
    elif not nearest.is_dir():
        yield fail("run directory", f"{base}: {nearest} is a file", hint)
    elif not os.access(nearest, os.W_OK | os.X_OK):
        yield fail("run directory", f"{base}: {nearest} cannot be written to", hint)
    elif base.exists() and base.stat().st_uid != os.getuid():
        yield fail("run directory", f"{base} belongs to another user", hint)
    else:
        yield ok("run directory", str(base))


def _refused(host: str, port: int) -> str | None:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except OSError as error:
        return error.strerror or str(error)
    return None


def _holder(port: int) -> str:
    try:
        from tidegate.controller.machine import holder_of
    except ImportError:  # A bare install has no psutil.
        return ""
    holder = holder_of(port)
    return "" if holder is None else f" (held by {holder})"
