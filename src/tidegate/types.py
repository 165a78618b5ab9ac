"""The domain: tensors, signatures, requests and responses.

No protocol knows a runtime and no runtime a protocol: both speak these types.

Nobody changes any of them once it is made. Those that are made for every request are not
frozen all the same: Python's frozen classes take four times as long to make.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
Parameter: TypeAlias = bool | int | float | str
Dimension: TypeAlias = int | str | None
Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

NO_PARAMETERS: Mapping[str, Any] = MappingProxyType({})

KINDS = ("image", "text", "bytes", "json")
"""What a request may be in the place of tensors; for protocols of tensors it is named so."""

DEFAULT_SIGNATURE = "serving_default"
"""What the signature of a model that has only one is called, as TensorFlow Serving calls it."""


def _empty() -> Mapping[str, Any]:
    return NO_PARAMETERS


_NUMPY: dict[str, Any] = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "FP32": np.float32,
    "FP64": np.float64,
    "BYTES": np.object_,
}


class DType(enum.Enum):
    """The element types of the Open Inference Protocol, named as it names them."""

    BOOL = "BOOL"
    UINT8 = "UINT8"
    UINT16 = "UINT16"
    UINT32 = "UINT32"
    UINT64 = "UINT64"
    INT8 = "INT8"
    INT16 = "INT16"
    INT32 = "INT32"
    INT64 = "INT64"
    FP16 = "FP16"
    BF16 = "BF16"
    FP32 = "FP32"
    FP64 = "FP64"
    BYTES = "BYTES"

    # Members are single: the hash of the object will do, and Enum's own is slow.
    __hash__ = object.__hash__

    numpy: np.dtype[Any]
    itemsize: int | None

    def __init__(self, value: str) -> None:
        self.numpy = np.dtype(_NUMPY[value])
        self.itemsize = None if value == "BYTES" else self.numpy.itemsize
        """Bytes per element; ``None`` for BYTES, whose elements have lengths of their own."""

    @classmethod
    def of(cls, dtype: np.dtype[Any]) -> DType:
        """Return the type that holds ``dtype``; strings and objects are BYTES.

        Raises:
            TypeError: no type of the protocol holds it (complex numbers, dates).
        """
        found = _BY_NUMPY.get(dtype.newbyteorder("="))
        if found is not None:
            return found
        if dtype.kind in "OSU":
            return cls.BYTES
        raise TypeError(f"no tensor type holds the numpy type {dtype}")


_BY_NUMPY = {dtype.numpy: dtype for dtype in DType if dtype is not DType.BYTES}


@dataclass(slots=True)
class Tensor:
    """A named, dense array.

    ``data`` is C-contiguous and little-endian with exactly ``shape``; a BYTES tensor holds
    Python ``bytes`` in an object array. Receivers treat it as read-only: it may lie over
    the bytes of the request.
    """

    name: str
    dtype: DType
    data: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """The dimensions, outermost first."""
        return self.data.shape

    @classmethod
    def of(cls, name: str, data: Array) -> Tensor:
        """Wrap ``data``, with the type that its numpy type implies."""
        return cls(name, DType.of(data.dtype), np.require(data, requirements="C"))


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a model says of one input or output.

    A dimension is a number, the name of a dynamic dimension (two of the same name are
    equal in one call), or ``None`` for a dynamic one without a name. ``shape`` is ``None``
    when not even the rank is known.
    """

    name: str
    dtype: DType
    shape: tuple[Dimension, ...] | None

    @property
    def wire_shape(self) -> tuple[int, ...]:
        """The dimensions as the protocols write them: -1 for a dynamic one."""
        return tuple(d if isinstance(d, int) else -1 for d in self.shape or ())


@dataclass(frozen=True, slots=True)
class Signature:
    """The tensors that go into and come out of a model, in the model's own order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True, slots=True)
class RequestedOutput:
    """An output that the caller asked for by name; ``parameters`` say how to send it."""

    name: str
    parameters: Mapping[str, Parameter] = field(default_factory=_empty)


@dataclass(slots=True)
class InferRequest:
    """One call of a model, whichever protocol it came by.

    ``inputs`` are the tensors; ``payload`` is what came instead of tensors: an image or other
    ``bytes``, a text as ``str``, or else a JSON document. ``outputs`` is empty when the caller
    wants all. ``metadata`` holds the transport's headers that concern the model, ``tags`` what
    the caller said of the request beside its data (Seldon's ``meta.tags``). ``version`` is empty
    for the default one, and so is ``signature``, which names one of the model's signatures.
    """

    model: str
    version: str = ""
    id: str = ""
    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[RequestedOutput, ...] = ()
    parameters: Mapping[str, Parameter] = field(default_factory=_empty)
    payload: bytes | str | Json = None
    metadata: Mapping[str, str] = field(default_factory=_empty)
    tags: Mapping[str, Json] = field(default_factory=_empty)
    signature: str = ""


@dataclass(slots=True)
class InferResponse:
    """The answer of one model version to one :class:`InferRequest`.

    ``payload`` is the answer of a model that gives no tensors: ``bytes``, a text as ``str``, or
    else a JSON document. When ``outputs`` are there as well, both say the same: a protocol of
    tensors sends these, and one for people or for JSON the payload
    (:func:`tidegate.protocols.payloads.as_tensors` is for the first kind). ``tags`` is what the
    model says beside it.
    """

    model: str
    version: str
    id: str = ""
    outputs: Sequence[Tensor] = ()
    parameters: Mapping[str, Parameter] = field(default_factory=_empty)
    payload: bytes | str | Json = None
    tags: Mapping[str, Json] = field(default_factory=_empty)


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """What a client may know of a model: its versions, its runtime and its signature.

    ``signatures`` are all that it has, by name, the default one first; empty where that is not
    known: the Open Inference Protocol tells of the default one alone.
    """

    name: str
    versions: tuple[str, ...]
    platform: str
    signature: Signature
    signatures: Mapping[str, Signature] = field(default_factory=_empty)


@dataclass(frozen=True, slots=True)
class ServerMetadata:
    """What a server says of itself: its name, its version and the extensions it offers."""

    name: str
    version: str
    extensions: tuple[str, ...] = ()


def element_count(shape: tuple[int, ...]) -> int:
    """Return the number of elements of ``shape``; Python's integers cannot overflow."""
    return math.prod(shape)
