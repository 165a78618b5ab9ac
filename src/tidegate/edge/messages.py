"""Small pieces of Envoy's configuration that every other piece is made of."""

from __future__ import annotations

import json

from envoy.config.core.v3 import address_pb2, config_source_pb2
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message

from tidegate.edge.names import CLUSTER_HEADER, METADATA

_OPERATORS = ("UPSTREAM_CLUSTER", {"command": "REQ", "param": CLUSTER_HEADER})
TARGET = f"%COALESCE({json.dumps({'operators': _OPERATORS})})%"
"""In a text of Envoy's: the cluster that a request went to, or that it asked for in vain."""

PAGE_HEADERS = (
    # The script for origins says which site may read it. Without that it is left out.
    ("access-control-allow-origin", f"%DYNAMIC_METADATA({METADATA}:origin)%"),
    ("access-control-expose-headers", "*"),
    ("vary", "origin"),
)
"""Let a browser show an answer to a page of another site, if that may call."""


def seconds(value: float) -> duration_pb2.Duration:
    """Return ``value`` seconds; 0 means "no limit" wherever Envoy takes a time."""
    whole = int(value)
    return duration_pb2.Duration(seconds=whole, nanos=round((value - whole) * 1e9))


def packed(message: Message) -> any_pb2.Any:
    """Wrap ``message``; equal messages give equal bytes."""
    wrapped = any_pb2.Any()
    wrapped.Pack(message, deterministic=True)
    return wrapped


def unix_socket(path: str) -> address_pb2.Address:
    """Return the address of a Unix socket."""
    return address_pb2.Address(pipe=address_pb2.Pipe(path=path))


def from_controller(initial_fetch_timeout: float) -> config_source_pb2.ConfigSource:
    """Return "ask over the one ADS stream"; after so many seconds Envoy goes on without."""
    return config_source_pb2.ConfigSource(
        ads=config_source_pb2.AggregatedConfigSource(),
        resource_api_version=config_source_pb2.ApiVersion.V3,
        initial_fetch_timeout=seconds(initial_fetch_timeout),
    )
