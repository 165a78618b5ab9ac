"""Checks a request against the model's signature, before it may meet any other request."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from tidegate.errors import InvalidInput
from tidegate.types import (
    DEFAULT_SIGNATURE,
    Array,
    InferRequest,
    Signature,
    Tensor,
    TensorSpec,
)


@dataclass(slots=True, eq=False)
class Bound:
    """A request that fits the signature: its arrays in the signature's order.

    ``rows`` is the length of the batch dimension (at least 1); two requests of one
    ``group`` can be joined along it. ``outputs`` are the names to compute, ``signature`` is the
    one that the caller asked for, empty for the default one.
    """

    inputs: tuple[Array, ...]
    outputs: tuple[str, ...]
    rows: int
    group: Hashable
    size: int
    signature: str = ""


class Binding(Protocol):
    """Binds requests to what a model takes."""

    def bind(self, request: InferRequest) -> Bound:
        """Return what of the request the model takes.

        Raises:
            InvalidInput: the request does not fit.
        """


class _Form(NamedTuple):
    """What is known of all requests whose tensors have certain names, types and shapes."""

    order: tuple[int, ...]
    """Where the request has the inputs of the signature."""
    rows: int
    group: Hashable


_REMEMBERED = 1024


class Binder:
    """Binds requests to one signature; ``batched`` joins them along the first dimension.

    It is all that a model of one signature needs; :class:`SignatureBinder` is for others. Names,
    types and shapes repeat from call to call, so what was found of them is remembered.
    """

    def __init__(
        self, signature: Signature, *, batched: bool, name: str = DEFAULT_SIGNATURE
    ) -> None:
        self._name = name
        self._forms: dict[Hashable, _Form] = {}
        self._specs = signature.inputs
        self._names = {spec.name for spec in signature.inputs}
        self._outputs = tuple(spec.name for spec in signature.outputs)
        self._batched = batched

    def bind(self, request: InferRequest) -> Bound:
        """Return the request's arrays in the order of the signature.

        Raises:
            InvalidInput: a tensor is missing, unknown or given twice, or its type, rank or a
                dimension differs from the signature's; or an unknown output or signature is
                asked for.
        """
        if request.signature and request.signature != self._name:
            raise _no_signature(request.signature, (self._name,))
        tensors = request.inputs
        single = len(tensors) == 1
        key: Hashable
        if single:
            data = tensors[0].data
            key = (tensors[0].name, tensors[0].dtype, data.shape)
        else:
            key = tuple((t.name, t.dtype, t.data.shape) for t in tensors)
        form = self._forms.get(key)
        if form is None:
            form = self._form(tensors)
            if len(self._forms) >= _REMEMBERED:
                self._forms.clear()
            self._forms[key] = form
        outputs = self._requested(request) if request.outputs else self._outputs
        if single:
            return Bound((data,), outputs, form.rows, form.group, data.nbytes)
        inputs = tuple(tensors[place].data for place in form.order)
        size = sum(array.nbytes for array in inputs)
        return Bound(inputs, outputs, form.rows, form.group, size)

    def _form(self, tensors: tuple[Tensor, ...]) -> _Form:
        """Check names, types and shapes."""
        places: dict[str, int] = {}
        for place, tensor in enumerate(tensors):
            if tensor.name not in self._names or tensor.name in places:
                raise self._wrong_name(tensor.name, twice=tensor.name in places)
            places[tensor.name] = place
        symbols: dict[str, int] = {}
        for spec in self._specs:
            if spec.name not in places:
                raise InvalidInput(
                    f"the input {spec.name!r} is missing: the model takes {self._list()}"
                )
            _check(tensors[places[spec.name]], spec, symbols)
        order = tuple(places[spec.name] for spec in self._specs)
        if not self._batched:
            return _Form(order, 1, None)
        shapes = [tensors[place].data.shape for place in order]
        # A signature that leaves the rank open lets a scalar through.
        rows = shapes[0][0] if shapes[0] else 0
        if any(shape[:1] != (rows,) for shape in shapes):
            named = ", ".join(f"{s.name} {list(shape)}" for s, shape in zip(self._specs, shapes))
            raise InvalidInput(f"the first dimension must be the same for every input: {named}")
        return _Form(order, max(1, rows), tuple(shape[1:] for shape in shapes))

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


class SignatureBinder:
    """Binds each request to the signature that it names; the first one is the default.

    Requests of different signatures are of different groups.
    """

    def __init__(self, signatures: Mapping[str, Signature], batched: Mapping[str, bool]) -> None:
        self._binders = {
            name: Binder(signature, batched=batched[name], name=name)
            for name, signature in signatures.items()
        }
        self._batched = batched
        self._joins = any(batched.values())
        self._default = next(iter(signatures))

    def bind(self, request: InferRequest) -> Bound:
        """Return the request's arrays in the order of the signature that it names.

        Raises:
            InvalidInput: there is no such signature, or the request does not fit it.
        """
        name = request.signature or self._default
        binder = self._binders.get(name)
        if binder is None:
            raise _no_signature(name, self._binders)
        bound = binder.bind(request)
        bound.signature = name
        if self._batched[name]:
            bound.group = (name, bound.group)
        elif self._joins:
            # The batcher joins what is of one group, for the sake of other signatures.
            bound.group = object()
        return bound


def binding(signatures: Mapping[str, Signature], batched: Mapping[str, bool]) -> Binding:
    """Return what binds requests to a model of these signatures, by name, the default one first.

    ``batched`` says for each whether its requests can be joined.
    """
    if list(signatures) == [DEFAULT_SIGNATURE]:
        return Binder(signatures[DEFAULT_SIGNATURE], batched=batched[DEFAULT_SIGNATURE])
    return SignatureBinder(signatures, batched)


def _no_signature(name: str, known: Iterable[str]) -> InvalidInput:
    return InvalidInput(
        f"the model has no signature {name!r}: it has " + ", ".join(map(repr, known))
    )


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
