"""Checks a request against the model's signature, before it may meet any other request."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from tidegate.errors import InvalidInput
from tidegate.types import Array, InferRequest, Signature, Tensor, TensorSpec


@dataclass(slots=True, eq=False)
class Bound:
    """A request that fits the signature: its arrays in the signature's order.

    ``rows`` is the length of the batch dimension (at least 1); two requests of one
    ``group`` can be joined along it. ``outputs`` are the names to compute.
    """

    inputs: tuple[Array, ...]
    outputs: tuple[str, ...]
    rows: int
    group: Hashable
    size: int


class Binder:
    """Binds requests to one signature; ``batched`` joins them along the first dimension."""

    def __init__(self, signature: Signature, *, batched: bool) -> None:
        self._specs = signature.inputs
        self._names = {spec.name for spec in signature.inputs}
        self._outputs = tuple(spec.name for spec in signature.outputs)
        self._batched = batched

    def bind(self, request: InferRequest) -> Bound:
        """Return the request's arrays in the order of the signature.

        Raises:
            InvalidInput: a tensor is missing, unknown or given twice, or its type, rank or a
                dimension differs from the signature's; or an unknown output is asked for.
        """
        tensors: dict[str, Tensor] = {}
        for tensor in request.inputs:
            if tensor.name not in self._names or tensor.name in tensors:
                raise self._wrong_name(tensor.name, twice=tensor.name in tensors)
            tensors[tensor.name] = tensor
        symbols: dict[str, int] = {}
        inputs = []
        size = 0
        for spec in self._specs:
            found = tensors.get(spec.name)
            if found is None:
                raise InvalidInput(
                    f"the input {spec.name!r} is missing: the model takes {self._list()}"
                )
            _check(found, spec, symbols)
            inputs.append(found.data)
            size += found.data.nbytes
        outputs = self._requested(request) if request.outputs else self._outputs
        if not self._batched:
            return Bound(tuple(inputs), outputs, 1, None, size)
        # A signature that leaves the rank open lets a scalar through.
        rows = inputs[0].shape[0] if inputs[0].ndim else 0
        if any(array.shape[:1] != (rows,) for array in inputs):
            shapes = ", ".join(f"{s.name} {list(a.shape)}" for s, a in zip(self._specs, inputs))
            raise InvalidInput(f"the first dimension must be the same for every input: {shapes}")
        group = tuple(array.shape[1:] for array in inputs)
        return Bound(tuple(inputs), outputs, max(1, rows), group, size)

    def _requested(self, request: InferRequest) -> tuple[str, ...]:
        for output in request.outputs:
            if output.name not in self._outputs:
                raise InvalidInput(
                    f"the model has no output {output.name!r}: it gives "
                    + ", ".join(map(repr, self._outputs))
                )
        return tuple(dict.fromkeys(output.name for output in request.outputs))

    def _wrong_name(self, name: str, *, twice: bool) -> InvalidInput:
        if twice:
            return InvalidInput(f"the input {name!r} is given twice: send it once")
        return InvalidInput(f"the model has no input {name!r}: it takes {self._list()}")

    def _list(self) -> str:
        return ", ".join(f"{s.name!r} {s.dtype.value} {_written(s)}" for s in self._specs)


def _written(spec: TensorSpec) -> str:
    if spec.shape is None:
        return "of any shape"
    return "[" + ",".join("?" if d is None else str(d) for d in spec.shape) + "]"


def _check(tensor: Tensor, spec: TensorSpec, symbols: dict[str, int]) -> None:
    if tensor.dtype is not spec.dtype:
        raise InvalidInput(
            f"the input {spec.name!r} must be {spec.dtype.value}, not {tensor.dtype.value}"
        )
    if spec.shape is None:
        return
    shape = tensor.data.shape
    if len(shape) != len(spec.shape):
        raise InvalidInput(
            f"the input {spec.name!r} must have {len(spec.shape)} dimensions, as "
            f"{_written(spec)}, not {len(shape)}: {list(shape)}"
        )
    for index, (have, want) in enumerate(zip(shape, spec.shape)):
        if isinstance(want, str):
            want = symbols.setdefault(want, have)
        if want is not None and have != want:
            raise InvalidInput(
                f"dimension {index} of the input {spec.name!r} must be {want}, not {have}: "
                f"the model takes {_written(spec)}, the request has {list(shape)}"
            )
