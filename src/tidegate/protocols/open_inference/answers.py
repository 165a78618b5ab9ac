"""What a caller reads in an answer, whichever transport it came by.

The rules for tensors are those that a server reads requests by; here they find fault with the
server instead of with the caller.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from google.protobuf.message import DecodeError

from tidegate.errors import InvalidAnswer, InvalidInput
from tidegate.protocols.open_inference.tensors import DTYPES, shown
from tidegate.types import Dimension, TensorSpec


@contextlib.contextmanager
def reading_output(name: str) -> Iterator[None]:
    """Turn what is wrong with the data of the output ``name`` into the server's fault.

    Raises:
        InvalidAnswer: the code within found an :class:`InvalidInput`.
    """
    try:
        yield
    except InvalidInput as error:
        # The advice after the semicolon is for a sender, and the tensor was an output.
        fault = str(error).partition("; ")[0].replace(f"input {name!r}", f"output {name!r}")
        raise invalid_answer(fault) from error


def invalid_answer(fault: str) -> InvalidAnswer:
    """Return the error for an answer that the protocol does not allow."""
    return InvalidAnswer(
        f"the answer cannot be read: {fault}; is the server one of the Open Inference Protocol v2?"
    )


def read_message(kind: Any, message: bytes) -> Any:
    """Return the protobuf message of the class ``kind`` in ``message``.

    Raises:
        InvalidAnswer: it is malformed.
    """
    try:
        return kind.FromString(message)
    except DecodeError as error:
        name = kind.DESCRIPTOR.full_name
        raise invalid_answer(f"its {len(message)} bytes are no {name}") from error


def tensor_spec(name: object, datatype: object, shape: object) -> TensorSpec:
    """Return what a model's metadata says of one input or output; -1 is a dynamic dimension.

    Raises:
        InvalidAnswer: the name, the type or the shape is none.
    """
    if not isinstance(name, str):
        raise invalid_answer(f"a tensor of the model's metadata has the name {shown(name)}")
    dtype = DTYPES.get(datatype) if isinstance(datatype, str) else None
    if dtype is None:
        raise invalid_answer(f"the tensor {name!r} has the unknown datatype {shown(datatype)}")
    if not isinstance(shape, Sequence) or not all(type(d) is int for d in shape):
        raise invalid_answer(f"the tensor {name!r} has the shape {shown(shape)}")
    dimensions: tuple[Dimension, ...] = tuple(d if d >= 0 else None for d in shape)
    return TensorSpec(name, dtype, dimensions)
