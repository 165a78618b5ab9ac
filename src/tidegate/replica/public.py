"""What clients send to a model with hooks and get from it: its public signature.

A side of it is tensors as any model's, or one value of a *kind*: ``image`` and ``bytes`` are
``bytes``, ``text`` is ``str``, ``json`` a JSON document. Protocols that can say such a thing do;
for those of tensors it is one BYTES tensor of one element, called as its kind when it comes and
``payload`` when it goes.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, cast

import orjson

from tidegate.config.model import DeclaredTensor
from tidegate.errors import ConfigurationError, InvalidInput
from tidegate.protocols.payloads import PAYLOAD
from tidegate.replica.binding import Binder
from tidegate.types import KINDS, Array, DType, InferRequest, Json, Signature, Tensor, TensorSpec

Kind: TypeAlias = Literal["image", "text", "bytes", "json"]
_NAMES = {"image": "an image", "text": "a text", "bytes": "bytes", "json": "a JSON document"}
OWN = "model"
"""Says that a side is as the model's own."""
Declared: TypeAlias = "Kind | Literal['model'] | Sequence[DeclaredTensor] | None"


@dataclass(frozen=True, slots=True)
class Side:
    """What goes in, or what comes out.

    With neither ``kind`` nor ``specs`` it is anything: nobody has declared it.
    """

    kind: Kind | None = None
    specs: tuple[TensorSpec, ...] | None = None
    many: bool = False
    """In a tensor, there may be any number of the kind."""
    own: bool = False
    """It is as the model's own, which is not known yet."""

    @classmethod
    def of(cls, declared: Declared, where: str) -> Side:
        """Return what is ``declared`` at a place, which is for messages.

        Raises:
            ConfigurationError: a tensor has no type or no shape.
        """
        if declared is None:
            return cls()
        if declared == "model":
            return cls(own=True)
        if isinstance(declared, str):
            return cls(kind=declared)
        specs = []
        for tensor in declared:
            if tensor.dtype is None:
                raise ConfigurationError(
                    f"{where}: the tensor {tensor.name!r} needs a dtype, as FP32"
                )
            specs.append(TensorSpec(tensor.name, tensor.dtype, tensor.shape))
        return cls(specs=tuple(specs))

    @property
    def known(self) -> bool:
        """Whether somebody has declared it."""
        return self.kind is not None or self.specs is not None

    def filled(self, own: tuple[TensorSpec, ...]) -> Side:
        """Return it with the tensors of the model."""
        return Side(specs=own) if self.own else self

    def described(self, name: str) -> tuple[TensorSpec, ...]:
        """Return it as tensors; a value is called ``name``, and what is not known is none."""
        if self.kind is not None:
            return (TensorSpec(name, DType.BYTES, ("batch",) if self.many else (1,)),)
        return self.specs or ()


ANYTHING = Side()


class Incoming:
    """Reads what came, as the public signature says."""

    def __init__(self, side: Side) -> None:
        self._side = side
        self._binder = None
        if side.specs is not None:
            self._binder = Binder(Signature(side.specs, ()), batched=False)

    def read(self, request: InferRequest) -> tuple[Mapping[str, Array], bytes | str | Json]:
        """Return the tensors and the payload of a request.

        Raises:
            InvalidInput: it is not what the public signature says.
        """
        kind = self._side.kind
        inputs = request.inputs
        if kind is not None:
            if request.payload is not None:
                return {}, _payload(kind, request.payload)
            if self._side.many:
                return {kind: _elements(kind, inputs)}, None
            return {}, _payload(kind, _element(kind, inputs))
        if self._binder is not None:
            if request.payload is not None:
                raise InvalidInput(f"send {_listed(self._side.specs or ())}, not {_what(request)}")
            self._binder.bind(InferRequest(request.model, inputs=inputs))
        elif request.payload is None and len(inputs) == 1 and inputs[0].name in KINDS:
            (tensor,) = inputs
            if tensor.dtype is DType.BYTES and tensor.data.size == 1:
                named = cast("Kind", tensor.name)
                return {}, _payload(named, tensor.data.reshape(-1)[0])
        return {tensor.name: tensor.data for tensor in inputs}, request.payload


def public_signature(
    signature: Signature, incoming: Side | None, outgoing: Side | None
) -> Signature:
    """Return what metadata tell of a model whose own ``signature`` this is.

    A side that is ``None`` is the model's own.
    """
    inputs, outputs = signature.inputs, signature.outputs
    if incoming is not None:
        inputs = incoming.described(incoming.kind or "")
    if outgoing is not None:
        outputs = outgoing.described(PAYLOAD)
    return Signature(inputs, outputs)


def _element(kind: Kind, inputs: Sequence[Tensor]) -> bytes:
    """Return the only element of the only tensor."""
    if len(inputs) != 1:
        raise InvalidInput(
            f"the model takes {_called(kind)}: send one BYTES tensor {kind!r} of one element, not "
            f"{len(inputs)} tensors"
        )
    (tensor,) = inputs
    if tensor.name != kind or tensor.dtype is not DType.BYTES or tensor.data.size != 1:
        raise InvalidInput(
            f"the model takes {_called(kind)}: send one BYTES tensor {kind!r} of one element, not "
            f"{tensor.name!r} {tensor.dtype.value} {list(tensor.shape)}"
        )
    element: bytes = tensor.data.reshape(-1)[0]
    return element


def _elements(kind: Kind, inputs: Sequence[Tensor]) -> Array:
    """Return the only tensor, which is a list of the kind."""
    if len(inputs) == 1:
        (tensor,) = inputs
        # Some clients cannot send a list that is not of rows.
        listed = tensor.data.ndim < 2 or (tensor.data.ndim == 2 and tensor.shape[1] == 1)
        if tensor.name == kind and tensor.dtype is DType.BYTES and listed:
            return tensor.data.reshape(-1)
        sent = f"{tensor.name!r} {tensor.dtype.value} {list(tensor.shape)}"
    else:
        sent = f"{len(inputs)} tensors"
    raise InvalidInput(
        f"the model takes {_called(kind)}: send one BYTES tensor {kind!r} of one dimension, an "
        f"element for each, not {sent}"
    )


def _payload(kind: Kind, sent: bytes | str | Json) -> bytes | str | Json:
    if kind == "text":
        return _text(sent)
    if kind == "json":
        return _json(sent) if isinstance(sent, bytes | str) else sent
    if isinstance(sent, dict) and sent.keys() == {"b64"}:
        # As JSON of TensorFlow Serving writes bytes.
        return _base64(kind, sent["b64"])
    if not isinstance(sent, bytes):
        raise InvalidInput(
            f'the model takes {_called(kind)}: send its bytes (in JSON: {{"b64": …}}), not '
            + ("a text" if isinstance(sent, str) else "a JSON document")
        )
    return sent


def _text(sent: bytes | str | Json) -> str:
    if isinstance(sent, str):
        return sent
    if not isinstance(sent, bytes):
        raise InvalidInput("the model takes a text, not a JSON document")
    try:
        return sent.decode()
    except UnicodeDecodeError as error:
        raise InvalidInput(
            f"the model takes a text in UTF-8, which this is not: {error}"
        ) from None


def _json(sent: bytes | str) -> Json:
    try:
        found: Json = orjson.loads(sent)
    except orjson.JSONDecodeError as error:
        raise InvalidInput(
            f"the model takes a JSON document, which this is not: {error}"
        ) from None
    return found


def _base64(kind: Kind, sent: Json) -> bytes:
    try:
        if isinstance(sent, str):
            return base64.b64decode(sent, validate=True)
    except (binascii.Error, ValueError):
        pass
    raise InvalidInput(f"the model takes {_called(kind)}: what b64 holds is no base64")


def _called(kind: Kind) -> str:
    return _NAMES[kind]


def _what(request: InferRequest) -> str:
    if isinstance(request.payload, bytes):
        return "bytes"
    return "a text" if isinstance(request.payload, str) else "a JSON document"


def _listed(specs: Sequence[TensorSpec]) -> str:
    names = ", ".join(f"{spec.name!r} {spec.dtype.value}" for spec in specs)
    return f"the tensor{'s' if len(specs) != 1 else ''} {names}"
