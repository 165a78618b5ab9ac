"""The calls of the protocol over gRPC."""

from __future__ import annotations

from collections.abc import Callable

from tidegate.client.calls import Call, Incoming, Outgoing, T, loading
from tidegate.errors import ModelNotReady
from tidegate.protocols import open_inference
from tidegate.protocols.open_inference import extension_callers, grpc_caller
from tidegate.protocols.open_inference.repository import IndexEntry
from tidegate.protocols.open_inference.statistics import VersionStatistics
from tidegate.protocols.statuses import GrpcCode, error_of_grpc
from tidegate.types import InferRequest, InferResponse, ModelMetadata, ServerMetadata


class GrpcDialect:
    """The service ``inference.GRPCInferenceService``."""

    def infer(self, request: InferRequest) -> Call[InferResponse]:
        """``ModelInfer``."""
        message = grpc_caller.encode_infer(request)
        return _call(open_inference.MODEL_INFER, message, grpc_caller.decode_infer)

    def model_metadata(self, name: str, version: str) -> Call[ModelMetadata]:
        """``ModelMetadata``."""
        message = grpc_caller.encode_model(name, version)
        return _call(open_inference.MODEL_METADATA, message, grpc_caller.decode_model_metadata)

    def server_metadata(self) -> Call[ServerMetadata]:
        """``ServerMetadata``."""
        return _call(open_inference.SERVER_METADATA, b"", grpc_caller.decode_server_metadata)

    def live(self) -> Call[None]:
        """``ServerLive``."""
        return _call(open_inference.SERVER_LIVE, b"", _check_ready)

    def ready(self) -> Call[None]:
        """``ServerReady``."""
        return _call(open_inference.SERVER_READY, b"", _check_ready)

    def model_ready(self, name: str, version: str) -> Call[None]:
        """``ModelReady``."""
        message = grpc_caller.encode_model(name, version)
        return _call(open_inference.MODEL_READY, message, _check_ready)

    def index(self, ready: bool) -> Call[tuple[IndexEntry, ...]]:
        """``RepositoryIndex``."""
        message = extension_callers.encode_index(ready)
        return _call(open_inference.REPOSITORY_INDEX, message, extension_callers.decode_index)

    def load(self, name: str) -> Call[None]:
        """``RepositoryModelLoad``."""
        call = _call(open_inference.REPOSITORY_LOAD, extension_callers.encode_load(name), bytes)
        return Call(call.outgoing, loading(call.read))

    def unload(self, name: str) -> Call[None]:
        """``RepositoryModelUnload``."""
        message = extension_callers.encode_unload(name)
        call = _call(open_inference.REPOSITORY_UNLOAD, message, bytes)
        return Call(call.outgoing, loading(call.read))

    def statistics(self, name: str, version: str) -> Call[tuple[VersionStatistics, ...]]:
        """``ModelStatistics``."""
        message = extension_callers.encode_statistics(name, version)
        return _call(open_inference.MODEL_STATISTICS, message, extension_callers.decode_statistics)


def _call(method: str, message: bytes, decode: Callable[[bytes], T]) -> Call[T]:
    def read(incoming: Incoming) -> T:
        if incoming.status != GrpcCode.OK:
            words = incoming.message or (
                f"the server answered with the gRPC status {incoming.status} and no words"
            )
            raise error_of_grpc(incoming.status, words)
        return decode(incoming.body)

    return Call(Outgoing(method, message), read)


def _check_ready(message: bytes) -> None:
    if not grpc_caller.decode_ready(message):
        raise ModelNotReady("the server says that it is not ready")
