"""The system shared memory extension: tensors that lie in memory instead of in the message.

Source: ``extension_shared_memory.md`` of Triton's protocol documents.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import orjson

from tidegate.errors import InvalidInput
from tidegate.protocols.descriptors import parsed
from tidegate.protocols.grpc_frames import Buffer
from tidegate.protocols.open_inference import messages
from tidegate.protocols.open_inference.documents import read_object, read_size, read_text
from tidegate.protocols.open_inference.tensors import shown

_NAME = re.compile(r"[ -~]{1,256}")
_KEY = re.compile(r"[A-Za-z0-9._-]{1,255}")


@dataclass(frozen=True, slots=True)
class Region:
    """Memory that a client has registered.

    ``key`` is the name of the memory object, without a slash; ``offset`` and ``byte_size`` say
    which part of it.
    """

    name: str
    key: str
    offset: int
    byte_size: int


def decode_register_body(name: str, body: bytes) -> Region:
    """Return the region in the body of a call of ``register``.

    Raises:
        InvalidInput: the body is malformed, or says what can be no region.
    """
    document = read_object(body, ("key", "offset", "byte_size"))
    offset = read_size(document, "offset", 0)
    return _checked(name, read_text(document, "key"), offset, read_size(document, "byte_size"))


def decode_register(message: Buffer) -> Region:
    """Return the region in a ``SystemSharedMemoryRegisterRequest``.

    Raises:
        InvalidInput: the message is malformed, or says what can be no region.
    """
    request = parsed(messages.SystemSharedMemoryRegisterRequest, message)
    return _checked(request.name, request.key, request.offset, request.byte_size)


def decode_region(message: Buffer) -> str:
    """Return the name in a request for the status of a region, or to unregister it.

    Raises:
        InvalidInput: the message is malformed.
    """
    return str(parsed(messages.SystemSharedMemoryStatusRequest, message).name)


def encode_status_body(regions: Iterable[Region]) -> bytes:
    """Return the JSON that describes ``regions``."""
    return orjson.dumps([asdict(region) for region in regions])


def encode_status(regions: Iterable[Region]) -> bytes:
    """Return a ``SystemSharedMemoryStatusResponse``."""
    message = messages.SystemSharedMemoryStatusResponse()
    for region in regions:
        entry = message.regions[region.name]
        entry.name, entry.key = region.name, region.key
        entry.offset, entry.byte_size = region.offset, region.byte_size
    return bytes(message.SerializeToString())


def _checked(name: str, key: str, offset: int, byte_size: int) -> Region:
    if not _NAME.fullmatch(name):
        raise InvalidInput(
            f"{shown(name)} cannot be the name of a region: use 1 to 256 printable characters"
        )
    # As in shm_open: a slash before the name means nothing, one in it is not possible.
    bare = key.removeprefix("/")
    if not _KEY.fullmatch(bare) or bare in (".", ".."):
        raise InvalidInput(
            f"the key {shown(key)} cannot be the name of shared memory here: use letters, digits, "
            "'.', '_' and '-', at most 255 of them"
        )
    if not byte_size:
        raise InvalidInput(f"the region {shown(name)} has no bytes: give its byte_size")
    if offset + byte_size >= 2**63:
        raise InvalidInput(f"the region {shown(name)} ends beyond any memory")
    return Region(name, bare, offset, byte_size)
