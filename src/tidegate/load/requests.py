"""The requests of a load: arrays that fit a model, and what carries them in each encoding."""

from __future__ import annotations

import enum
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tidegate.errors import ConfigurationError
from tidegate.protocols.open_inference import grpc_caller, messages, rest_caller
from tidegate.protocols.open_inference.rest import HEADER_LENGTH
from tidegate.protocols.open_inference.tensors import object_array
from tidegate.protocols.open_inference.typed_contents import CONTENT_FIELDS
from tidegate.types import Array, DType, InferRequest, Signature, Tensor, TensorSpec, element_count

_MOST_BYTES = 2**30
_DIFFERENT, _DIFFERENT_BYTES = 16, 64 * 2**20


class Encoding(enum.Enum):
    """How tensors travel: the first two over gRPC, the others over REST."""

    RAW = "raw"
    """``raw_input_contents``."""
    TYPED = "typed"
    """Repeated numbers, as ``fp32_contents``."""
    JSON = "json"
    BINARY = "binary"
    """Triton's binary tensor data extension, for inputs and outputs."""

    @property
    def grpc(self) -> bool:
        """Whether it is one of gRPC's."""
        return self in (Encoding.RAW, Encoding.TYPED)


@dataclass(frozen=True, slots=True)
class Request:
    """One request: the gRPC message or the HTTP body, and the HTTP header fields it needs."""

    body: bytes
    headers: Mapping[str, str]


def random_inputs(
    signature: Signature, batch: int, shapes: Mapping[str, tuple[int, ...]]
) -> list[tuple[Tensor, ...]]:
    """Make a few sets of inputs of different random numbers; the same ones every time.

    A dynamic first dimension is ``batch``, any other dynamic one 1, unless ``shapes`` has the
    input's whole shape. Floats are from 0 to 1; integers 0 or 1, which are valid indices almost
    everywhere.

    Raises:
        ConfigurationError: a shape does not fit the model, is not known or is too large.
    """
    unknown = set(shapes) - {spec.name for spec in signature.inputs}
    if unknown:
        names = ", ".join(spec.name for spec in signature.inputs)
        raise ConfigurationError(f"the model has no input {min(unknown)!r}; it has {names}")
    if not signature.inputs:
        raise ConfigurationError(
            "the server says nothing of the model's inputs: give them with --input FILE.npz"
        )
    full = [(spec, _shape(spec, batch, shapes.get(spec.name))) for spec in signature.inputs]
    size = sum(element_count(shape) * (spec.dtype.itemsize or 16) for spec, shape in full)
    if size > _MOST_BYTES:
        raise ConfigurationError(f"one request would have {size} bytes: give a smaller shape")
    random = np.random.default_rng(0)
    return [
        tuple(
            Tensor(spec.name, spec.dtype, _fill(spec.dtype, shape, random)) for spec, shape in full
        )
        for _ in range(max(1, min(_DIFFERENT, _DIFFERENT_BYTES // max(1, size))))
    ]


def _shape(spec: TensorSpec, batch: int, given: tuple[int, ...] | None) -> tuple[int, ...]:
    if given is not None:
        _check_shape(spec, given)
        return given
    if spec.shape is None:
        raise ConfigurationError(
            f"the shape of input {spec.name!r} is not known: give it with --shape"
        )
    fixed = [d if isinstance(d, int) else 1 for d in spec.shape]
    if fixed and not isinstance(spec.shape[0], int):
        fixed[0] = batch
    elif batch != 1:
        raise ConfigurationError(
            f"input {spec.name!r} has the fixed shape {list(spec.shape)}: leave out --batch"
        )
    return tuple(fixed)


def _check_shape(spec: TensorSpec, shape: tuple[int, ...]) -> None:
    wanted = spec.shape
    if wanted is None:
        return
    if len(wanted) != len(shape) or any(
        isinstance(w, int) and w != d for w, d in zip(wanted, shape)
    ):
        raise ConfigurationError(
            f"input {spec.name!r} has the shape {list(spec.wire_shape)}, which {list(shape)} does "
            "not fit (-1 stands for any size)"
        )


def _fill(dtype: DType, shape: tuple[int, ...], random: np.random.Generator) -> Array:
    if dtype is DType.BYTES:
        return object_array([b"tide"] * element_count(shape), shape)
    if dtype.numpy.kind in "fV":
        return random.random(shape, np.float32).astype(dtype.numpy)
    return random.integers(0, 2, shape, np.uint8).astype(dtype.numpy)


def read_inputs(path: Path, signature: Signature) -> list[tuple[Tensor, ...]]:
    """Read one set of inputs from an ``.npz`` file, an array for each, by name.

    Raises:
        ConfigurationError: the file cannot be read, or its arrays do not fit the model.
    """
    try:
        # Opened here: numpy leaves its own file open when it is no archive.
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ConfigurationError(
            f"{path} is no file of arrays: {error}; write one with numpy.savez(FILE, NAME=ARRAY)"
        ) from error
    if not signature.inputs:
        return [tuple(_tensor(path, name, array) for name, array in arrays.items())]
    wanted = [spec.name for spec in signature.inputs]
    if set(arrays) != set(wanted):
        raise ConfigurationError(
            f"{path} has the arrays {', '.join(arrays) or '(none)'}; the model's inputs are "
            f"{', '.join(wanted)}: save one array for each, by its name"
        )
    tensors = []
    for spec in signature.inputs:
        tensor = _tensor(path, spec.name, arrays[spec.name])
        if tensor.dtype is not spec.dtype:
            raise ConfigurationError(
                f"input {spec.name!r} is {spec.dtype.value}, the array in {path} is "
                f"{tensor.dtype.value}: convert it with astype()"
            )
        _check_shape(spec, tensor.shape)
        tensors.append(tensor)
    return [tuple(tensors)]


def _tensor(path: Path, name: str, array: Array) -> Tensor:
    try:
        dtype = DType.of(array.dtype)
    except TypeError as error:
        raise ConfigurationError(f"the array {name!r} in {path}: {error}") from error
    if dtype is DType.BYTES:
        texts = [t if isinstance(t, bytes) else str(t).encode() for t in array.ravel().tolist()]
        return Tensor(name, dtype, object_array(texts, array.shape))
    return Tensor(name, dtype, np.ascontiguousarray(array, dtype.numpy).reshape(array.shape))


def encode(
    encoding: Encoding, model: str, version: str, tensors: Sequence[Tensor], identity: str = ""
) -> Request:
    """Return an inference request; ``model`` and ``version`` are in the path with REST.

    Raises:
        ConfigurationError: the encoding cannot carry a tensor of that type.
        InvalidInput: nor a value that is in it; or the message is too large.
    """
    request = InferRequest(model, version, identity, tuple(tensors))
    if encoding is Encoding.RAW:
        return Request(grpc_caller.encode_infer(request), {})
    if encoding is Encoding.TYPED:
        return Request(_typed(request), {})
    parts, header_length = rest_caller.encode_infer(request, binary=encoding is Encoding.BINARY)
    fields = {}
    if header_length is not None:
        fields = {
            "content-type": "application/octet-stream",
            HEADER_LENGTH.lower(): str(header_length),
        }
    return Request(b"".join(parts), fields)


def _typed(request: InferRequest) -> bytes:
    message = messages.ModelInferRequest(
        model_name=request.model, model_version=request.version, id=request.id
    )
    for tensor in request.inputs:
        entry = message.inputs.add(
            name=tensor.name, datatype=tensor.dtype.value, shape=tensor.shape
        )
        field = CONTENT_FIELDS.get(tensor.dtype)
        if field is None:
            raise ConfigurationError(
                f"input {tensor.name!r} is {tensor.dtype.value}, which has no typed contents: "
                "use --encoding raw"
            )
        getattr(entry.contents, field).extend(tensor.data.reshape(-1).tolist())
    return bytes(message.SerializeToString())
