"""What a server and a model say of themselves, in messages and in JSON.

Source: ``inference_grpc.md`` and ``inference_rest.md`` of
https://github.com/kserve/open-inference-protocol.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from tidegate.protocols.descriptors import parsed
from tidegate.protocols.grpc_frames import Buffer
from tidegate.protocols.open_inference import messages
from tidegate.types import ModelMetadata, TensorSpec


def decode_model(message: Buffer) -> tuple[str, str]:
    """Return name and version of a ``ModelReadyRequest`` or a ``ModelMetadataRequest``.

    Raises:
        InvalidInput: the message is malformed.
    """
    request = parsed(messages.ModelReadyRequest, message)
    return request.name, request.version


def encode_model_ready(ready: bool) -> bytes:
    """Return a ``ModelReadyResponse``."""
    return b"\x08\x01" if ready else b""


def encode_server_live(live: bool) -> bytes:
    """Return a ``ServerLiveResponse``."""
    return b"\x08\x01" if live else b""


def encode_server_ready(ready: bool) -> bytes:
    """Return a ``ServerReadyResponse``."""
    return b"\x08\x01" if ready else b""


def encode_model_metadata(metadata: ModelMetadata) -> bytes:
    """Return a ``ModelMetadataResponse``; dynamic dimensions are -1."""
    message = messages.ModelMetadataResponse(
        name=metadata.name,
        versions=metadata.versions,
        platform=metadata.platform,
        inputs=_described(metadata.signature.inputs),
        outputs=_described(metadata.signature.outputs),
    )
    return bytes(message.SerializeToString())


def encode_server_metadata(name: str, version: str, extensions: Sequence[str]) -> bytes:
    """Return a ``ServerMetadataResponse``."""
    message = messages.ServerMetadataResponse(name=name, version=version, extensions=extensions)
    return bytes(message.SerializeToString())


def encode_metadata_body(metadata: ModelMetadata) -> bytes:
    """Return the body that describes a model; dynamic dimensions are -1."""
    return orjson.dumps(
        {
            "name": metadata.name,
            "versions": metadata.versions,
            "platform": metadata.platform,
            "inputs": _described(metadata.signature.inputs),
            "outputs": _described(metadata.signature.outputs),
        }
    )


def encode_server_metadata_body(name: str, version: str, extensions: Sequence[str]) -> bytes:
    """Return the body that describes the server."""
    return orjson.dumps({"name": name, "version": version, "extensions": list(extensions)})


def encode_ready_body(name: str, ready: bool) -> bytes:
    """Return the body that says whether the model ``name`` can be called."""
    return orjson.dumps({"name": name, "ready": ready})


def _described(specs: Sequence[TensorSpec]) -> list[dict[str, Any]]:
    return [{"name": s.name, "datatype": s.dtype.value, "shape": s.wire_shape} for s in specs]
