"""The protobuf messages of a protocol, in a descriptor pool of their own.

Other packages (``tritonclient``, ``grpcio-health-checking``) register messages of the same names
in protobuf's default pool, and a pool refuses a second file with the same names; ours cannot
collide with theirs.
"""

from __future__ import annotations

from importlib import resources
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from tidegate.errors import InvalidInput
from tidegate.protocols.grpc_frames import Buffer


def read_files(package: str, name: str) -> list[Any]:
    """Return the file descriptors in ``NAME.binpb``, which lies in ``package``."""
    data = resources.files(package).joinpath(f"{name}.binpb").read_bytes()
    return list(descriptor_pb2.FileDescriptorSet.FromString(data).file)


def message_classes(files: list[Any]) -> dict[str, Any]:
    """Return the classes of all messages in ``files``, by full name."""
    pool = descriptor_pool.DescriptorPool()
    for file in files:
        pool.Add(file)  # type: ignore[no-untyped-call, unused-ignore]
    return dict(message_factory.GetMessageClassesForFiles([f.name for f in files], pool))


def parsed(kind: Any, message: Buffer) -> Any:
    """Return the message of this kind that lies in ``message``.

    Raises:
        InvalidInput: it is none.
    """
    try:
        return kind.FromString(bytes(message))
    except DecodeError as error:
        raise InvalidInput(
            f"the message of {len(message)} bytes is not a valid {kind.DESCRIPTOR.full_name}: "
            f"{error}; encode it with the protocol's own .proto file"
        ) from error
