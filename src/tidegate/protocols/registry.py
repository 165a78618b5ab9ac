"""The protocols that are spoken."""

from __future__ import annotations

from tidegate.protocols import (
    dl_inference,
    grpc_health,
    grpc_reflection,
    open_inference,
    plain_http,
    seldon,
)
from tidegate.protocols.dialect import Dialect
from tidegate.protocols.open_inference import messages
from tidegate.protocols.open_inference.rest import encode_error as encode_usual_error
from tidegate.protocols.routing import Routing, passing_on
from tidegate.protocols.tensorflow_serving import dialect as tensorflow_serving

DIALECTS: tuple[Dialect, ...] = (
    tensorflow_serving.DIALECT,
    seldon.DIALECT,
    dl_inference.DIALECT,
    plain_http.DIALECT,
)
"""Those that replicas speak beside the Open Inference Protocol."""

ROUTINGS: tuple[Routing, ...] = (
    open_inference.ROUTING,
    grpc_health.ROUTING,
    grpc_reflection.ROUTING,
    *(dialect.routing for dialect in DIALECTS),
)
"""What the edge of a node must know of all of them."""
GATEWAY_ROUTINGS: tuple[Routing, ...] = tuple(map(passing_on, ROUTINGS))
"""What the edge of a gateway must know of all of them."""

FILES = tuple(
    {
        file.name: file
        for files in (
            messages.FILES,
            grpc_health.FILES,
            grpc_reflection.FILES,
            *(dialect.files for dialect in DIALECTS),
        )
        for file in files
    }.values()
)
"""Descriptors of the protobuf files of all of them."""


def encode_error(path: str, status: int, message: str) -> bytes:
    """Return the JSON document that answers a call of ``path`` with an error."""
    for dialect in DIALECTS:
        if dialect.encode_error is not None and dialect.has_path(path):
            return dialect.encode_error(status, message)
    return encode_usual_error(message)
