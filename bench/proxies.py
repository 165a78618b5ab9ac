"""The proxies under comparison, each a process with one worker thread before the same backends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from bench.servers import Server, mentions, process_with_port, ready
from tidegate.edge.admin import AdminClient
from tidegate.edge.binary import find_envoy

_START_TIMEOUT = 30.0
_STOP_TIMEOUT = 20.0
_WINDOW = 2**26 + 2**22
"""Bytes: a message of 64 MiB in one window."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """A running proxy."""

    server: Server
    admin: AdminClient | None = None
    """Of its Envoy, if it is one."""
    controller: psutil.Process | None = None
    """The gateway's."""
    own: Mapping[str, Any] = field(default_factory=dict)
    """What ``gateway.yaml`` says of the gateway itself: where it listens and lives."""

    @property
    def target(self) -> str:
        """``host:port``."""
        return self.server.target

    async def counted(self) -> dict[str, dict[str, int]]:
        """Return Envoy's counters of each endpoint, by its address, over all clusters."""
        assert self.admin is not None
        found: dict[str, dict[str, int]] = {}
        for hosts in (await self.admin.clusters()).values():
            for host in hosts:
                where = host["address"].get("socket_address")
                if where is None:
                    continue
                counts = found.setdefault(f"{where['address']}:{where['port_value']}", {})
                for stat in host.get("stats", ()):
                    name, value = stat["name"], int(stat.get("value", 0))
                    counts[name] = counts.get(name, 0) + value
        return found

    def rss(self) -> int:
        """Return the resident bytes of the proxy itself, without a controller."""
        return sum(
            process.memory_info().rss
            for process in self.server.processes
            if process != self.controller
        )


@contextlib.asynccontextmanager
async def envoy(
    addresses: Sequence[str], folder: Path, *, protected: bool = False
) -> AsyncIterator[Proxy]:
    """Run Envoy with a static round robin cluster and one thread.

    ``protected`` adds what one would write by hand against faults: a retry on another endpoint,
    keepalive pings, outlier detection, active health checks.
    """
    _make(folder)
    port = free_port()
    config = envoy_config(addresses, port, str(folder / "admin.sock"), protected=protected)
    (folder / "envoy.json").write_text(json.dumps(config))
    command = [str(find_envoy(None)), "-c", str(folder / "envoy.json"), "--concurrency", "1"]
    command += ["--use-dynamic-base-id", "--log-level", "error"]
    async with _run("bare Envoy", command, port) as server:
        yield Proxy(server, AdminClient(folder / "admin.sock"))


def envoy_config(
    addresses: Sequence[str], port: int, admin: str, *, protected: bool
) -> dict[str, Any]:
    """Return the bootstrap of :func:`envoy`."""
    http2: dict[str, Any] = {
        "initial_stream_window_size": _WINDOW,
        "initial_connection_window_size": 2 * _WINDOW,
        "max_concurrent_streams": 2**20,
    }
    route: dict[str, Any] = {"cluster": "backends", "timeout": "0s"}
    cluster: dict[str, Any] = {
        "name": "backends",
        "type": "STATIC",
        "connect_timeout": "1s",
        "lb_policy": "ROUND_ROBIN",
        "circuit_breakers": {"thresholds": [_no_limits()]},
        "load_assignment": {
            "cluster_name": "backends",
            "endpoints": [{"lb_endpoints": [_endpoint(address) for address in addresses]}],
        },
    }
    upstream = {**http2, "max_concurrent_streams": 2**16}
    if protected:
        upstream["connection_keepalive"] = {"interval": "0.5s", "timeout": "0.5s"}
        cluster.update(_protection())
        route["retry_policy"] = {
            "retry_on": "connect-failure,refused-stream,reset",
            "num_retries": 1,
            "retry_host_predicate": [_typed(
                "envoy.retry_host_predicates.previous_hosts",
                "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate",
            )],
        }  # fmt: skip
    cluster["typed_extension_protocol_options"] = {
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": _TYPE + "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": upstream},
        }
    }
    return {
        "admin": {"address": {"pipe": {"path": admin}}},
        "static_resources": {
            "listeners": [_listener(port, http2, route)],
            "clusters": [cluster],
        },
    }


_TYPE = "type.googleapis.com/"


def _typed(name: str, kind: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "typed_config": {"@type": _TYPE + kind, **fields}}


def _listener(port: int, http2: dict[str, Any], route: dict[str, Any]) -> dict[str, Any]:
    router = _typed("envoy.filters.http.router", "envoy.extensions.filters.http.router.v3.Router")
    host = {
        "name": "all",
        "domains": ["*"],
        "routes": [{"match": {"prefix": "/"}, "route": route}],
    }
    manager = _typed(
        "envoy.filters.network.http_connection_manager",
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="clients",
        codec_type="AUTO",
        http2_protocol_options=http2,
        route_config={"virtual_hosts": [host]},
        http_filters=[router],
    )
    return {
        "name": "clients",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [{"filters": [manager]}],
    }


def _endpoint(address: str) -> dict[str, Any]:
    host, _, port = address.rpartition(":")
    where = {"address": host, "port_value": int(port)}
    return {"endpoint": {"address": {"socket_address": where}}}


def _no_limits() -> dict[str, int]:
    names = ("max_connections", "max_pending_requests", "max_requests", "max_retries")
    return dict.fromkeys(names, 1_000_000)


def _protection() -> dict[str, Any]:
    return {
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
        "outlier_detection": {
            "interval": "0.25s",
            "base_ejection_time": "1s",
            "max_ejection_percent": 90,
            "split_external_local_origin_errors": True,
            "consecutive_local_origin_failure": 2,
            "enforcing_consecutive_local_origin_failure": 100,
        },
        "health_checks": [
            {
                "timeout": "0.5s",
                "interval": "0.5s",
                "no_traffic_interval": "0.5s",
                "unhealthy_threshold": 2,
                "healthy_threshold": 1,
                "http_health_check": {"path": "/v2/health/ready", "codec_client_type": "HTTP2"},
            }
        ],
    }


@contextlib.asynccontextmanager
async def nginx(addresses: Sequence[str], folder: Path) -> AsyncIterator[Proxy]:
    """Run nginx with ``grpc_pass`` and one worker."""
    _make(folder)
    port = free_port()
    servers = " ".join(f"server {address};" for address in addresses)
    config = f"""
        worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log;
        events {{ worker_connections 8192; }}
        http {{
          access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
          fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
          client_max_body_size 0; client_body_buffer_size 1m;
          keepalive_requests 100000000; http2_max_concurrent_streams 1024;
          upstream backends {{ {servers} keepalive 1024; keepalive_requests 100000000; }}
          server {{ listen 127.0.0.1:{port} http2; location / {{
            grpc_pass grpc://backends; grpc_socket_keepalive on; grpc_buffer_size 64k; }} }}
        }}"""
    (folder / "nginx.conf").write_text(config)
    binary = _binary("nginx")
    command = [
        binary,
        "-e",
        f"{folder}/error.log",
        "-p",
        str(folder),
        "-c",
        f"{folder}/nginx.conf",
    ]
    async with _run("nginx grpc_pass", command, port) as server:
        yield Proxy(server)


@contextlib.asynccontextmanager
async def haproxy(addresses: Sequence[str], folder: Path) -> AsyncIterator[Proxy]:
    """Run HAProxy with HTTP/2 on both sides and one thread."""
    _make(folder)
    port = free_port()
    lines = "\n".join(f"  server s{i} {a} proto h2" for i, a in enumerate(addresses))
    config = f"""
global
  nbthread 1
  maxconn 8192
  tune.h2.max-concurrent-streams 1024
  tune.h2.initial-window-size 1048576
defaults
  mode http
  timeout client 60s
  timeout server 60s
  timeout connect 1s
frontend clients
  bind 127.0.0.1:{port} proto h2
  default_backend backends
backend backends
  balance roundrobin
  http-reuse always
{lines}
"""
    (folder / "haproxy.cfg").write_text(config)
    command = [_binary("haproxy"), "-db", "-q", "-f", f"{folder}/haproxy.cfg"]
    async with _run("HAProxy", command, port) as server:
        yield Proxy(server)


@contextlib.asynccontextmanager
async def grpc_aio(addresses: Sequence[str], folder: Path) -> AsyncIterator[Proxy]:
    """Run :mod:`bench.reference_grpc_proxy`: a gateway in Python."""
    del folder
    command = [sys.executable, "-m", "bench.reference_grpc_proxy", *addresses]
    async with process_with_port(command, r"listening on (\d+)") as (process, port):
        yield Proxy(Server("grpc.aio pass-through", f"127.0.0.1:{port}", (process,)))


@contextlib.asynccontextmanager
async def gateway(
    config: Mapping[str, Any],
    folder: Path,
    *,
    wait_for: Sequence[str] = (),
    threads: int = 1,
    name: str = "tidegate gateway",
) -> AsyncIterator[Proxy]:
    """Run ``tidegate gateway`` and wait until the models ``wait_for`` are ready.

    ``config`` is ``gateway.yaml``, which lies in ``folder``.
    """
    _make(folder)
    path = folder / "gateway.yaml"
    admin_port = free_port()
    run_dir = folder / "run"
    own = {"port": 0, "admin_port": admin_port, "run_dir": str(run_dir), "envoy_threads": threads}
    write_config({**config, **own}, path)
    script = Path(sys.executable).with_name("tidegate")
    command = [str(script), "gateway", str(path)]
    async with process_with_port(command, r"on 127\.0\.0\.1:(\d+)") as (_, port):
        for model in wait_for:
            await ready(f"http://127.0.0.1:{port}/v2/models/{model}/ready")
        parts = tuple(p for p in psutil.process_iter() if mentions(p, str(folder)))
        edges = [p for p in parts if "envoy" in p.name()]
        (controller,) = [p for p in parts if p not in edges]
        admin = AdminClient(next(iter(run_dir.rglob("*admin*.sock"))))
        server = Server(name, f"127.0.0.1:{port}", parts)
        yield Proxy(server, admin, controller, own)


def write_config(config: Mapping[str, Any], path: Path) -> None:
    """Write ``gateway.yaml`` in one step, as editors do."""
    replace(path, yaml_of(config))


def yaml_of(config: Mapping[str, Any]) -> str:
    """Return the text of a ``gateway.yaml``."""
    dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    return str(yaml.dump(dict(config), Dumper=dumper))


def replace(path: Path, text: str) -> None:
    """Put ``text`` in the place of a file's content, all of it at once."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


STATIC: Mapping[str, Callable[..., contextlib.AbstractAsyncContextManager[Proxy]]] = {
    "envoy": envoy,
    "nginx": nginx,
    "haproxy": haproxy,
    "grpc.aio": grpc_aio,
}
"""Those that take addresses and a folder."""


def installed(name: str) -> bool:
    """Whether a proxy of :data:`STATIC` is there."""
    return name not in ("nginx", "haproxy") or shutil.which(name, path=_PATH) is not None


_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def _binary(name: str) -> str:
    found = shutil.which(name, path=_PATH)
    if found is None:
        raise FileNotFoundError(f"{name} is not installed")
    return found


def _make(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)


def free_port() -> int:
    """Return a port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.asynccontextmanager
async def _run(name: str, command: Sequence[str], port: int) -> AsyncIterator[Server]:
    """Run a proxy that listens on ``port``."""
    process = await asyncio.create_subprocess_exec(*command)
    try:
        await _listens(port, process, name)
        top = psutil.Process(process.pid)
        yield Server(name, f"127.0.0.1:{port}", (top, *top.children(recursive=True)))
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), _STOP_TIMEOUT)
            except TimeoutError:
                process.kill()
                await process.wait()


async def _listens(port: int, process: asyncio.subprocess.Process, name: str) -> None:
    deadline = time.monotonic() + _START_TIMEOUT
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            if process.returncode is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{name} does not listen on port {port}") from None
            await asyncio.sleep(0.05)
        else:
            writer.close()
            return
