"""A REST request without JSON: all of the body is the data of the model's only input.

Source: Triton's ``extension_binary_data.md``, "raw binary request".
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from tidegate.errors import InvalidInput
from tidegate.protocols.grpc_frames import Buffer
from tidegate.protocols.open_inference.tensors import from_raw, object_array
from tidegate.types import (
    DType,
    InferRequest,
    Parameter,
    Signature,
    Tensor,
    TensorSpec,
    element_count,
)

HEADER_LENGTH = "Inference-Header-Content-Length"
_ALL_BINARY: Mapping[str, Parameter] = MappingProxyType({"binary_data_output": True})


def decode(model: str, version: str, body: Buffer, signature: Signature | None) -> InferRequest:
    """Decode a body without JSON: all of it is the data of the model's only input.

    The answer is binary then. An element of BYTES comes without its length: there is one.
    """
    inputs = signature.inputs if signature else ()
    if len(inputs) != 1:
        names = ", ".join(repr(spec.name) for spec in inputs)
        raise InvalidInput(
            f"the header {HEADER_LENGTH} is 0, which says that the body is the data of the only "
            f"input, but model {model!r} has {len(inputs)} inputs ({names}); describe them in JSON"
        )
    spec = inputs[0]
    shape = _bare_shape(spec, len(body))
    if spec.dtype is DType.BYTES:
        if element_count(shape) != 1:
            raise _no_bare_shape(spec, "more than one element")
        tensor = Tensor(spec.name, spec.dtype, object_array([bytes(body)], shape))
    else:
        tensor = from_raw(spec.name, spec.dtype, shape, memoryview(body))
    return InferRequest(model, version, "", (tensor,), (), _ALL_BINARY)


def _bare_shape(spec: TensorSpec, size: int) -> tuple[int, ...]:
    """Return the shape that ``size`` bytes of data have.

    One dynamic dimension is inferred. Of two, the first is taken as the batch, which is 1.
    """
    if spec.shape is None:
        raise _no_bare_shape(spec, "any rank")
    shape = [d if isinstance(d, int) and d >= 0 else -1 for d in spec.shape]
    if spec.dtype.itemsize is None:
        return tuple(1 if d < 0 else d for d in shape)
    dynamic = shape.count(-1)
    if dynamic == 2 and shape[0] < 0:
        shape[0], dynamic = 1, 1
    if dynamic > 1:
        raise _no_bare_shape(spec, f"{dynamic} dynamic dimensions")
    if dynamic:
        row = spec.dtype.itemsize * element_count(tuple(d for d in shape if d >= 0))
        shape[shape.index(-1)] = size // row if row else 0
    return tuple(shape)


def _no_bare_shape(spec: TensorSpec, why: str) -> InvalidInput:
    return InvalidInput(
        f"the header {HEADER_LENGTH} is 0, but the shape of input {spec.name!r} "
        f"({spec.dtype.value} {list(spec.wire_shape)}, {why}) cannot be told from the length of "
        "the body; describe the input in JSON"
    )
