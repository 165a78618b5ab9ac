"""An answer that is no tensors, for protocols that carry nothing else.

Such an answer is one BYTES tensor of one element: the bytes as they are, a text in UTF-8, a JSON
document as its text.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import orjson

from tidegate.errors import InferenceFailed
from tidegate.types import DType, InferResponse, Json, Tensor

PAYLOAD = "payload"
"""The name of that tensor."""


def as_tensors(response: InferResponse) -> Sequence[Tensor]:
    """Return the outputs, or the payload as a tensor when there are none.

    Raises:
        InferenceFailed: the payload is nothing that JSON can hold.
    """
    if response.outputs or response.payload is None:
        return response.outputs
    data = np.empty(1, np.object_)
    data[0] = encoded(response.payload)
    return (Tensor(PAYLOAD, DType.BYTES, data),)


def encoded(payload: bytes | str | Json) -> bytes:
    """Return a payload as bytes.

    Raises:
        InferenceFailed: it is nothing that JSON can hold.
    """
    if isinstance(payload, bytes):
        return payload
    try:
        return payload.encode() if isinstance(payload, str) else orjson.dumps(payload)
    except (TypeError, ValueError) as error:
        raise InferenceFailed(
            f"the model answered with what is no JSON: {error}; let it return text, bytes, "
            "tensors or JSON"
        ) from error
