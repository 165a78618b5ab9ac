"""The protobuf messages of a protocol, in a descriptor pool of their own.

Other packages (``tritonclient``, ``grpcio-health-checking``) register messages of the same names
in protobuf's default pool, and a pool refuses a second file with the same names; ours cannot
collide with theirs.
"""

from __future__ import annotations

from importlib import resources
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory


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
