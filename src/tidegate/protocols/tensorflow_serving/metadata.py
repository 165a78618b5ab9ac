"""GetModelMetadata: the signatures of a model, as protobuf and as JSON.

Source: ``get_model_metadata.proto`` and ``http_rest_api_util.cc`` of TensorFlow Serving,
``meta_graph.proto`` of TensorFlow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from tidegate.errors import InvalidInput
from tidegate.protocols.descriptors import parsed
from tidegate.protocols.grpc_frames import Buffer
from tidegate.protocols.open_inference.tensors import shown
from tidegate.protocols.tensorflow_serving import messages
from tidegate.protocols.tensorflow_serving.dtypes import NUMBERS, name_of
from tidegate.protocols.tensorflow_serving.model_spec import Spec, spec_of
from tidegate.types import DEFAULT_SIGNATURE, ModelMetadata, Signature, TensorSpec

_SIGNATURE_DEF = "signature_def"
"""The only field of metadata that there is."""
_PREDICT = "tensorflow/serving/predict"


def decode_metadata(message: Buffer) -> Spec:
    """Return whose metadata a ``GetModelMetadataRequest`` asks for.

    Raises:
        InvalidInput: it is malformed, or asks for other fields than ``signature_def``.
    """
    request = parsed(messages.GetModelMetadataRequest, message)
    if not request.metadata_field:
        raise InvalidInput(f"metadata_field is empty; ask for {_SIGNATURE_DEF!r}")
    for field in request.metadata_field:
        if field != _SIGNATURE_DEF:
            raise InvalidInput(
                f"the metadata field {shown(field)} is not known; ask for {_SIGNATURE_DEF!r}"
            )
    return spec_of(request.model_spec)


def encode_metadata(metadata: ModelMetadata, version: str) -> bytes:
    """Return the signatures of ``version`` of a model as a ``GetModelMetadataResponse``."""
    signatures = messages.SignatureDefMap()
    for name, signature in signatures_of(metadata).items():
        definition = signatures.signature_def[name]
        definition.method_name = _PREDICT
        for infos, specs in (
            (definition.inputs, signature.inputs),
            (definition.outputs, signature.outputs),
        ):
            for spec in specs:
                _fill(infos[spec.name], spec)
    response = messages.GetModelMetadataResponse()
    response.model_spec.name = metadata.name
    response.model_spec.version.value = int(version)
    response.metadata[_SIGNATURE_DEF].Pack(signatures)
    return bytes(response.SerializeToString())


def encode_metadata_body(metadata: ModelMetadata, version: str) -> bytes:
    """Return the same as JSON."""
    definitions = {
        name: {
            "inputs": _infos(signature.inputs),
            "outputs": _infos(signature.outputs),
            "method_name": _PREDICT,
        }
        for name, signature in signatures_of(metadata).items()
    }
    return orjson.dumps(
        {
            "model_spec": {"name": metadata.name, "signature_name": "", "version": version},
            "metadata": {_SIGNATURE_DEF: {_SIGNATURE_DEF: definitions}},
        }
    )


def signatures_of(metadata: ModelMetadata) -> Mapping[str, Signature]:
    """Return all signatures of a model by name, the default one first."""
    return metadata.signatures or {DEFAULT_SIGNATURE: metadata.signature}


def signature_of(metadata: ModelMetadata, name: str) -> Signature:
    """Return the signature ``name``; the default one when it is empty.

    Raises:
        InvalidInput: there is none of this name.
    """
    signatures = signatures_of(metadata)
    if not name:
        return next(iter(signatures.values()))
    found = signatures.get(name)
    if found is None:
        known = ", ".join(map(repr, signatures))
        raise InvalidInput(f"the model has no signature {shown(name)}: it has {known}")
    return found


def _fill(info: Any, spec: TensorSpec) -> None:
    info.name = spec.name
    info.dtype = NUMBERS[spec.dtype]
    if spec.shape is None:
        info.tensor_shape.unknown_rank = True
    else:
        info.tensor_shape.SetInParent()
        for size in spec.wire_shape:
            info.tensor_shape.dim.add(size=size)


def _infos(specs: Sequence[TensorSpec]) -> dict[str, Any]:
    return {
        spec.name: {
            "dtype": name_of(spec.dtype),
            "tensor_shape": {
                "dim": [{"size": str(size), "name": ""} for size in spec.wire_shape],
                "unknown_rank": spec.shape is None,
            },
            "name": spec.name,
        }
        for spec in specs
    }
