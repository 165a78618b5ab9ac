"""The protobuf messages of the protocol, in a descriptor pool of their own.

Other packages (``tritonclient``) register messages of the same names in protobuf's default
pool, and a pool refuses a second file with the same names; ours cannot collide with theirs.
"""

from __future__ import annotations

from importlib import resources
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory


def _load() -> dict[str, Any]:
    data = resources.files(__package__).joinpath("open_inference.binpb").read_bytes()
    files = descriptor_pb2.FileDescriptorSet.FromString(data)
    pool = descriptor_pool.DescriptorPool()
    for file in files.file:
        pool.Add(file)  # type: ignore[no-untyped-call, unused-ignore]
    return dict(message_factory.GetMessageClassesForFiles([f.name for f in files.file], pool))


_CLASSES = _load()

# Their attributes exist only at run time, so a type checker sees Any.
ModelInferRequest: Any = _CLASSES["inference.ModelInferRequest"]
ModelInferResponse: Any = _CLASSES["inference.ModelInferResponse"]
ModelReadyRequest: Any = _CLASSES["inference.ModelReadyRequest"]
ModelReadyResponse: Any = _CLASSES["inference.ModelReadyResponse"]
ModelMetadataResponse: Any = _CLASSES["inference.ModelMetadataResponse"]
ServerMetadataResponse: Any = _CLASSES["inference.ServerMetadataResponse"]
ModelConfigResponse: Any = _CLASSES["inference.ModelConfigResponse"]
RepositoryIndexRequest: Any = _CLASSES["inference.RepositoryIndexRequest"]
RepositoryIndexResponse: Any = _CLASSES["inference.RepositoryIndexResponse"]
RepositoryModelLoadRequest: Any = _CLASSES["inference.RepositoryModelLoadRequest"]
RepositoryModelUnloadRequest: Any = _CLASSES["inference.RepositoryModelUnloadRequest"]
TraceSettingRequest: Any = _CLASSES["inference.TraceSettingRequest"]
TraceSettingResponse: Any = _CLASSES["inference.TraceSettingResponse"]
LogSettingsRequest: Any = _CLASSES["inference.LogSettingsRequest"]
LogSettingsResponse: Any = _CLASSES["inference.LogSettingsResponse"]
