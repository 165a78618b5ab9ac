"""The Open Inference Protocol v2, as KServe, Triton and MLServer speak it.

Source: https://github.com/kserve/open-inference-protocol and Triton's extension documents.
"""

from __future__ import annotations

from tidegate.protocols.routing import RoutedMethod, RoutedPrefix, Routing

_SERVICE = "/inference.GRPCInferenceService/"

MODEL_INFER = _SERVICE + "ModelInfer"
MODEL_READY = _SERVICE + "ModelReady"
MODEL_METADATA = _SERVICE + "ModelMetadata"
MODEL_CONFIG = _SERVICE + "ModelConfig"
SERVER_LIVE = _SERVICE + "ServerLive"
SERVER_READY = _SERVICE + "ServerReady"
SERVER_METADATA = _SERVICE + "ServerMetadata"
MODEL_STATISTICS = _SERVICE + "ModelStatistics"
REPOSITORY_INDEX = _SERVICE + "RepositoryIndex"
REPOSITORY_LOAD = _SERVICE + "RepositoryModelLoad"
REPOSITORY_UNLOAD = _SERVICE + "RepositoryModelUnload"
SHARED_MEMORY_STATUS = _SERVICE + "SystemSharedMemoryStatus"
SHARED_MEMORY_REGISTER = _SERVICE + "SystemSharedMemoryRegister"
SHARED_MEMORY_UNREGISTER = _SERVICE + "SystemSharedMemoryUnregister"
CUDA_STATUS = _SERVICE + "CudaSharedMemoryStatus"
CUDA_REGISTER = _SERVICE + "CudaSharedMemoryRegister"
CUDA_UNREGISTER = _SERVICE + "CudaSharedMemoryUnregister"
TRACE_SETTING = _SERVICE + "TraceSetting"
LOG_SETTINGS = _SERVICE + "LogSettings"

ROUTING = Routing(
    methods=tuple(
        RoutedMethod(path, model=(1,), version=(2,))
        for path in (MODEL_INFER, MODEL_READY, MODEL_METADATA, MODEL_CONFIG)
    ),
    prefixes=(
        RoutedPrefix(
            "/v2/models/",
            server_verbs=("/stats", "/endpoints", "/trace/setting"),
            passed_verbs=("/stats",),
        ),
    ),
    server_methods=(
        SERVER_LIVE,
        SERVER_READY,
        SERVER_METADATA,
        MODEL_STATISTICS,
        REPOSITORY_INDEX,
        REPOSITORY_LOAD,
        REPOSITORY_UNLOAD,
        SHARED_MEMORY_STATUS,
        SHARED_MEMORY_REGISTER,
        SHARED_MEMORY_UNREGISTER,
        CUDA_STATUS,
        CUDA_REGISTER,
        CUDA_UNREGISTER,
        TRACE_SETTING,
        LOG_SETTINGS,
    ),
    server_paths=(
        "/openapi.json",
        "/v2/models/stats",
        "/v2/repository/",
        "/v2/systemsharedmemory/",
        "/v2/cudasharedmemory/",
        "/v2/trace/setting",
        "/v2/logging",
    ),
    passed_methods=(RoutedMethod(MODEL_STATISTICS, model=(1,), version=(2,), server=True),),
)
