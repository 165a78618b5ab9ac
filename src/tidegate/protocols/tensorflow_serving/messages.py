"""The protobuf messages of the protocol."""

from __future__ import annotations

from typing import Any

from google.protobuf import any_pb2, descriptor_pb2, wrappers_pb2

from tidegate.protocols.descriptors import message_classes, read_files


def _imported(module: Any) -> Any:
    """Return the descriptor of a file that comes with protobuf."""
    return descriptor_pb2.FileDescriptorProto.FromString(module.DESCRIPTOR.serialized_pb)


_PACKAGE = __package__ or ""
TENSORFLOW_FILES = [*read_files(_PACKAGE, "tensorflow_error"), *read_files(_PACKAGE, "tensorflow")]
"""The descriptors of TensorFlow's own messages, which other protocols carry as well."""
FILES = [
    _imported(any_pb2),
    _imported(wrappers_pb2),
    *TENSORFLOW_FILES,
    *read_files(_PACKAGE, "tensorflow_serving"),
]
"""All descriptors, for reflection."""
_CLASSES = message_classes(FILES)
_SERVING = "tensorflow.serving."

# Their attributes exist only at run time, so a type checker sees Any.
TensorProto: Any = _CLASSES["tensorflow.TensorProto"]
Example: Any = _CLASSES["tensorflow.Example"]
SignatureDef: Any = _CLASSES["tensorflow.SignatureDef"]
ModelSpec: Any = _CLASSES[_SERVING + "ModelSpec"]
PredictRequest: Any = _CLASSES[_SERVING + "PredictRequest"]
PredictResponse: Any = _CLASSES[_SERVING + "PredictResponse"]
ClassificationRequest: Any = _CLASSES[_SERVING + "ClassificationRequest"]
ClassificationResponse: Any = _CLASSES[_SERVING + "ClassificationResponse"]
RegressionRequest: Any = _CLASSES[_SERVING + "RegressionRequest"]
RegressionResponse: Any = _CLASSES[_SERVING + "RegressionResponse"]
MultiInferenceRequest: Any = _CLASSES[_SERVING + "MultiInferenceRequest"]
SignatureDefMap: Any = _CLASSES[_SERVING + "SignatureDefMap"]
GetModelMetadataRequest: Any = _CLASSES[_SERVING + "GetModelMetadataRequest"]
GetModelMetadataResponse: Any = _CLASSES[_SERVING + "GetModelMetadataResponse"]
GetModelStatusRequest: Any = _CLASSES[_SERVING + "GetModelStatusRequest"]
GetModelStatusResponse: Any = _CLASSES[_SERVING + "GetModelStatusResponse"]
ReloadConfigRequest: Any = _CLASSES[_SERVING + "ReloadConfigRequest"]
ReloadConfigResponse: Any = _CLASSES[_SERVING + "ReloadConfigResponse"]
