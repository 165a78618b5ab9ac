"""The protobuf messages of the protocol."""

from __future__ import annotations

from typing import Any

from tidegate.protocols.descriptors import message_classes, read_files

FILES = read_files(__package__ or "", "open_inference")
"""The descriptors, for reflection."""
_CLASSES = message_classes(FILES)

# Their attributes exist only at run time, so a type checker sees Any.
ModelInferRequest: Any = _CLASSES["inference.ModelInferRequest"]
ModelInferResponse: Any = _CLASSES["inference.ModelInferResponse"]
ModelReadyRequest: Any = _CLASSES["inference.ModelReadyRequest"]
ModelReadyResponse: Any = _CLASSES["inference.ModelReadyResponse"]
ModelMetadataResponse: Any = _CLASSES["inference.ModelMetadataResponse"]
ServerMetadataResponse: Any = _CLASSES["inference.ServerMetadataResponse"]
ModelConfigResponse: Any = _CLASSES["inference.ModelConfigResponse"]
ModelStatisticsRequest: Any = _CLASSES["inference.ModelStatisticsRequest"]
ModelStatisticsResponse: Any = _CLASSES["inference.ModelStatisticsResponse"]
RepositoryIndexRequest: Any = _CLASSES["inference.RepositoryIndexRequest"]
RepositoryIndexResponse: Any = _CLASSES["inference.RepositoryIndexResponse"]
RepositoryModelLoadRequest: Any = _CLASSES["inference.RepositoryModelLoadRequest"]
RepositoryModelUnloadRequest: Any = _CLASSES["inference.RepositoryModelUnloadRequest"]
TraceSettingRequest: Any = _CLASSES["inference.TraceSettingRequest"]
TraceSettingResponse: Any = _CLASSES["inference.TraceSettingResponse"]
LogSettingsRequest: Any = _CLASSES["inference.LogSettingsRequest"]
LogSettingsResponse: Any = _CLASSES["inference.LogSettingsResponse"]
SystemSharedMemoryStatusRequest: Any = _CLASSES["inference.SystemSharedMemoryStatusRequest"]
SystemSharedMemoryStatusResponse: Any = _CLASSES["inference.SystemSharedMemoryStatusResponse"]
SystemSharedMemoryRegisterRequest: Any = _CLASSES["inference.SystemSharedMemoryRegisterRequest"]
