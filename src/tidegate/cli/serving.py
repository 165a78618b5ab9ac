"""``tidegate serve``: settings, what was found, and then the node."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import click

from tidegate.config.gateway import GatewayConfig
from tidegate.config.loading import load_gateway_config, load_node_config
from tidegate.errors import RuntimeMissing
from tidegate.repository.entries import ModelEntry
from tidegate.repository.formats import REQUIREMENTS
from tidegate.repository.layout import scan
from tidegate.telemetry.logs import formatter

_SERVING_PARTS = ("grpc", "httptools", "psutil", "starlette", "uvicorn", "uvloop", "watchfiles")


def serve(repository: Path, options: Mapping[str, object]) -> int:
    """Serve ``repository`` until a signal; return the exit status."""
    config, _ = load_node_config(repository, os.environ, options)
    if os.environ.get("TIDEGATE_DEBUG"):
        config = config.model_copy(update={"log_level": "debug"})
    errors = logging.StreamHandler(sys.stderr)
    errors.setFormatter(formatter(config.log_format))
    logging.getLogger().addHandler(errors)
    tell = announce_json if config.log_format == "json" else announce
    found = scan(repository)
    check_serving_parts()
    if config.otlp_endpoint is not None:
        _check_tracing_parts()
    if not found.models:
        tell(f"no models in {repository} yet; they are served as soon as they are there")
    for entry in found.models.values():
        if entry.versions:
            tell(inferred(entry))
    from tidegate.node.serving import serve as run

    run(repository, config, tell)
    _drop_untold()
    return 0


def gateway(file: Path, options: Mapping[str, object]) -> int:
    """Serve what ``file`` says until a signal; return the exit status."""

    def read() -> GatewayConfig:
        return load_gateway_config(file, os.environ, options)[0]

    config = read()
    errors = logging.StreamHandler(sys.stderr)
    errors.setFormatter(formatter(config.log_format))
    logging.getLogger().addHandler(errors)
    check_serving_parts()
    from tidegate.gateway.serving import serve_gateway

    serve_gateway(file, read, announce_json if config.log_format == "json" else announce)
    _drop_untold()
    return 0


def check_serving_parts() -> None:
    """Make sure that this is more than a client's install.

    Raises:
        RuntimeMissing: it is not; the message names the command.
    """
    missing = [part for part in _SERVING_PARTS if importlib.util.find_spec(part) is None]
    if missing:
        command = REQUIREMENTS["onnx"].command
        raise RuntimeMissing(
            f"this is an install without the serving parts ({', '.join(missing)} missing); "
            f"install them: {command}"
        )


def _check_tracing_parts() -> None:
    for part in ("opentelemetry", "opentelemetry.sdk"):
        try:
            found = importlib.util.find_spec(part)
        except ModuleNotFoundError:
            found = None
        if found is None:
            raise RuntimeMissing(
                f"traces (otlp_endpoint) need what is not installed here ({part} is missing); "
                "install it: pip install 'tidegate[otel]'"
            )


def announce(line: str) -> None:
    """Tell what happens, with the time of day."""
    _say(f"{time.strftime('%H:%M:%S')} {line}")


def announce_json(line: str) -> None:
    """Tell what happens, as a line of the log does."""
    record = logging.LogRecord("tidegate.controller", logging.INFO, "", 0, line, (), None)
    _say(formatter("json").format(record))


def _say(line: str) -> None:
    # The terminal is closed, nobody reads the pipe, the disk is full: serving goes on.
    with contextlib.suppress(OSError):
        click.echo(line)


def _drop_untold() -> None:
    """Drop what nobody has taken: else the interpreter tries again as it ends, and fails by it."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def inferred(entry: ModelEntry) -> str:
    """Say in one line what a model was found to be."""
    served = entry.config.versions.select(list(entry.versions))
    if not served:
        return f"{entry.name}: none of its versions is selected"
    version = entry.versions[served[-1]]
    numbers = ", ".join(map(str, served))
    others = len(entry.versions) - len(served)
    replicas = entry.config.replicas
    return (
        f"{entry.name}: {version.format}, version{'s' if len(served) > 1 else ''} {numbers}"
        + (f" (of {len(entry.versions)})" if others else "")
        + (f", {replicas} replicas each" if replicas > 1 else "")
    )
