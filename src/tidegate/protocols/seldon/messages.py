"""The protobuf messages of the protocol."""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, struct_pb2

from tidegate.protocols.descriptors import message_classes, read_files
from tidegate.protocols.tensorflow_serving.messages import TENSORFLOW_FILES

STRUCT = descriptor_pb2.FileDescriptorProto.FromString(struct_pb2.DESCRIPTOR.serialized_pb)
FILES = [STRUCT, *TENSORFLOW_FILES, *read_files(__package__ or "", "seldon")]
"""The descriptors, for reflection."""
_CLASSES = message_classes(FILES)

# Their attributes exist only at run time, so a type checker sees Any.
SeldonMessage: Any = _CLASSES["seldon.protos.SeldonMessage"]
Meta: Any = _CLASSES["seldon.protos.Meta"]
Tensor: Any = _CLASSES["seldon.protos.Tensor"]
Feedback: Any = _CLASSES["seldon.protos.Feedback"]
ListValue: Any = _CLASSES["google.protobuf.ListValue"]
Value: Any = _CLASSES["google.protobuf.Value"]
