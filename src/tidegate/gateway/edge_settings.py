"""From a gateway's settings to its edge's, with all that must be read from files for that."""

from __future__ import annotations

from pathlib import Path

from tidegate.config.gateway import GatewayConfig, Rate
from tidegate.controller.machine import usable_cores
from tidegate.controller.run_directory import RunDirectory
from tidegate.edge.certificates import read_client_tls, read_server_tls
from tidegate.edge.key_file import read_api_keys
from tidegate.edge.settings import EdgeSettings
from tidegate.edge.trust import ClientTls, RateLimit, RateLimits


def edge_settings(config: GatewayConfig, directory: RunDirectory) -> EdgeSettings:
    """Return the settings of the edge.

    Raises:
        ConfigurationError: a certificate, a key or a file of keys is of no use.
    """
    tls, keys, upstream = config.tls, config.api_keys, config.endpoint_tls
    return EdgeSettings(
        host=config.host,
        port=config.port,
        controller_socket=str(directory.api_socket),
        max_message_size=config.max_message_size,
        access_log=directory.access_log if config.access_log else None,
        drain_timeout=config.drain_timeout,
        idle_timeout=config.idle_timeout,
        threads=config.envoy_threads or max(1, int(usable_cores())),
        envoy=config.envoy,
        origins=config.allowed_origins or (),
        load_reports=True,
        tls=None if tls is None else read_server_tls(tls.certificate, tls.key, tls.client_ca),
        upstream_tls=ClientTls()
        if upstream is None
        else read_client_tls(
            upstream.ca, upstream.certificate, upstream.key, upstream.server_name
        ),
        api_keys=None if keys is None else read_api_keys(keys.file, keys.header),
        rate_limits=_limits(config),
    )


def stamps_of(config: GatewayConfig) -> tuple[object, ...]:
    """Return something that changes with the files that :func:`edge_settings` reads."""
    return tuple(_stamp(path) for path in _files(config))


def _files(config: GatewayConfig) -> tuple[Path, ...]:
    found = [config.api_keys.file] if config.api_keys is not None else []
    if config.tls is not None:
        found += [config.tls.certificate, config.tls.key]
        found += [config.tls.client_ca] if config.tls.client_ca is not None else []
    if config.endpoint_tls is not None:
        theirs = config.endpoint_tls
        found += [p for p in (theirs.ca, theirs.certificate, theirs.key) if p is not None]
    return tuple(found)


def _stamp(path: Path) -> object:
    try:
        state = path.stat()
    except OSError as error:
        return error.errno
    return state.st_mtime_ns, state.st_size, state.st_ino, state.st_mode


def _limits(config: GatewayConfig) -> RateLimits:
    said = config.rate_limits
    return RateLimits(
        per_key=_limit(said.per_key),
        per_model=_limit(said.per_model),
        models={name: _known(rate) for name, rate in said.models.items()},
    )


def _limit(rate: Rate | None) -> RateLimit | None:
    return None if rate is None else _known(rate)


def _known(rate: Rate) -> RateLimit:
    return RateLimit(rate.per_second, rate.burst or max(1, round(rate.per_second)))
