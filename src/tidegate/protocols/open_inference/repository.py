"""The model repository extension: which models there are, and loading and unloading them.

Source: ``extension_model_repository.md`` of Triton's protocol documents.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from tidegate.errors import InvalidInput, Unsupported
from tidegate.protocols.descriptors import parsed
from tidegate.protocols.grpc_frames import Buffer
from tidegate.protocols.open_inference import messages
from tidegate.protocols.open_inference.documents import read_bool, read_object
from tidegate.protocols.open_inference.tensors import shown
from tidegate.protocols.routing import check_model


class State(enum.Enum):
    """Where a version stands, in Triton's words."""

    READY = "READY"
    LOADING = "LOADING"
    UNLOADING = "UNLOADING"
    UNAVAILABLE = "UNAVAILABLE"


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One version of a model; ``version`` is empty where none could be read."""

    name: str
    version: str
    state: State
    reason: str = ""


def decode_index_body(body: bytes) -> bool:
    """Return whether only those that are ready are asked for.

    Raises:
        InvalidInput: the body is not the JSON of such a request.
    """
    return read_bool(read_object(body, ("ready",)), "ready")


def decode_index(message: Buffer) -> bool:
    """Return whether only those that are ready are asked for.

    Raises:
        InvalidInput: the message is malformed.
        Unsupported: it names a repository.
    """
    request = parsed(messages.RepositoryIndexRequest, message)
    _refuse_repository(request.repository_name)
    return bool(request.ready)


def encode_index_body(entries: Iterable[IndexEntry]) -> bytes:
    """Return the JSON of an index."""
    return orjson.dumps([_written(entry) for entry in entries])


def encode_index(entries: Iterable[IndexEntry]) -> bytes:
    """Return a ``RepositoryIndexResponse``."""
    message = messages.RepositoryIndexResponse(models=[_written(entry) for entry in entries])
    return bytes(message.SerializeToString())


def decode_load_body(body: bytes) -> None:
    """Check the body of a call of ``load``: there is nothing in it that may be said.

    Raises:
        InvalidInput: it is malformed, or has a parameter that is not known.
        Unsupported: it brings a configuration or files of its own.
    """
    _check_load(_parameters(read_object(body, ("parameters",))))


def decode_load(message: Buffer) -> str:
    """Return the model's name in a ``RepositoryModelLoadRequest``.

    Raises:
        InvalidInput: the message is malformed, the name is none, or a parameter is not known.
        Unsupported: it brings a configuration or files of its own, or names a repository.
    """
    request = parsed(messages.RepositoryModelLoadRequest, message)
    _refuse_repository(request.repository_name)
    _check_load(request.parameters)
    check_model(request.model_name)
    return str(request.model_name)


def decode_unload_body(body: bytes) -> None:
    """Check the body of a call of ``unload``.

    Raises:
        InvalidInput: it is malformed, or has a parameter that is not known.
    """
    parameters = _parameters(read_object(body, ("parameters",)))
    _check_unload(parameters)
    read_bool(dict(parameters), "unload_dependents")


def decode_unload(message: Buffer) -> str:
    """Return the model's name in a ``RepositoryModelUnloadRequest``.

    Raises:
        InvalidInput: the message is malformed, the name is none, or a parameter is not known.
        Unsupported: it names a repository.
    """
    request = parsed(messages.RepositoryModelUnloadRequest, message)
    _refuse_repository(request.repository_name)
    _check_unload(request.parameters)
    check_model(request.model_name)
    return str(request.model_name)


def _written(entry: IndexEntry) -> dict[str, str]:
    return {
        "name": entry.name,
        "version": entry.version,
        "state": entry.state.value,
        "reason": entry.reason,
    }


def _parameters(document: dict[str, Any]) -> Mapping[str, Any]:
    found = document.get("parameters", {})
    if not isinstance(found, dict):
        raise InvalidInput(f"'parameters' is {shown(found)}; send an object")
    return found


def _check_load(parameters: Mapping[str, Any]) -> None:
    for key in parameters:
        if key == "config" or key.startswith("file:"):
            raise Unsupported(
                f"the parameter {shown(key)} brings a part of the model with the call, which "
                "Tidegate does not take: put the files into the repository and load then"
            )
        raise InvalidInput(f"the parameter {shown(key)} is not known: loading takes none")


def _check_unload(parameters: Mapping[str, Any]) -> None:
    for key in parameters:
        if key != "unload_dependents":
            raise InvalidInput(
                f"the parameter {shown(key)} is not known: unloading takes 'unload_dependents'"
            )


def _refuse_repository(name: str) -> None:
    if name:
        raise Unsupported(
            f"the repository {shown(name)} is named, but a node has one without a name: "
            "leave repository_name empty"
        )
