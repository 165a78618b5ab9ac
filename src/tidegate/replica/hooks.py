"""Hooks: what is done with a request before and after the model, beside it and around it.

Where they come from is no concern of this module: ``hooks.py`` is read by
:mod:`tidegate.replica.hook_file`, steps of ``model.yaml`` and the interface files of dl_inference
elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from tidegate.errors import InferenceFailed, InsufficientMemory, InvalidInput, RequestError
from tidegate.hooks import Outputs, Request, Response
from tidegate.protocols.payloads import PAYLOAD
from tidegate.replica.binding import Binding, Bound
from tidegate.replica.public import ANYTHING, Incoming, Side
from tidegate.replica.values import as_array, as_dtype, as_json, is_array, tensor_of
from tidegate.types import (
    NO_PARAMETERS,
    InferRequest,
    InferResponse,
    Json,
    Parameter,
    Signature,
    Tensor,
)


@dataclass(slots=True, eq=False)
class HookedBound(Bound):
    """What the model takes of a request, and what ``run_model`` is told of it."""

    parameters: Mapping[str, Parameter | Json] = field(default_factory=lambda: NO_PARAMETERS)


@dataclass(slots=True)
class Prepared:
    """A request that was preprocessed."""

    bound: Bound
    request: Request
    """As hooks see it."""


class Hooks(Protocol):
    """What a replica does around a run of the model. Both methods are called in any thread."""

    @property
    def before(self) -> bool:
        """Whether :meth:`prepare` takes time, and is better called in a thread of its own."""

    @property
    def after(self) -> bool:
        """Whether :meth:`finish` does."""

    def prepare(self, request: InferRequest) -> Prepared:
        """Return what the model takes.

        Raises:
            InvalidInput: the caller's request is wrong.
            InferenceFailed: a hook is.
        """

    def finish(self, sent: InferRequest, prepared: Prepared, answer: Outputs) -> InferResponse:
        """Return the answer to what was ``sent``; it names no model yet.

        Raises:
            InvalidInput: the caller's request is wrong.
            InferenceFailed: a hook is.
        """


@dataclass(frozen=True, slots=True)
class Functions:
    """The functions of one model, and what it is to the outside."""

    preprocess: Callable[[Request], Any] | None = None
    postprocess: Callable[[Request, Outputs], Any] | None = None
    run_model: Callable[..., Any] | None = None
    incoming: Side = ANYTHING
    outgoing: Side = ANYTHING
    group_by: Sequence[str] = ()


class FunctionHooks:
    """Calls the functions of a model's hooks; ``signature`` is the model's own.

    ``signatures`` are those that a request may name, where the model has several.
    """

    def __init__(
        self,
        functions: Functions,
        signature: Signature,
        binding: Binding,
        signatures: Mapping[str, Signature] = NO_PARAMETERS,
    ) -> None:
        self._functions = functions
        self._signature = signature
        self._signatures = signatures
        self._binding = binding
        self._incoming = Incoming(functions.incoming)
        self.before = functions.preprocess is not None
        self.after = functions.postprocess is not None
        self._given: Collection[str] | None = None
        """The names of the outputs, if the hooks say which they give."""
        if self.after and functions.outgoing.known:
            self._given = [spec.name for spec in functions.outgoing.described(PAYLOAD)]

    def prepare(self, request: InferRequest) -> Prepared:
        """Return what the model takes; see :meth:`Hooks.prepare`."""
        functions = self._functions
        if request.outputs and (given := self._names(request)) is not None:
            check_outputs(request, given)
        tensors, payload = self._incoming.read(request)
        seen = Request(
            tensors,
            payload,
            request.parameters,
            request.tags,
            request.metadata,
            request.id,
            request.model,
            request.version,
        )
        outputs = () if self.after else request.outputs
        if functions.preprocess is None:
            bound = self._binding.bind(replace(request, outputs=outputs))
        else:
            found = called("preprocess", functions.preprocess, seen)
            bound = self._bound(found, request, outputs)
        if functions.run_model is not None:
            bound = self._grouped(bound, request)
        return Prepared(bound, seen)

    def finish(self, sent: InferRequest, prepared: Prepared, answer: Outputs) -> InferResponse:
        """Return the answer; see :meth:`Hooks.finish`."""
        functions = self._functions
        if functions.postprocess is None:
            return InferResponse("", "", sent.id, _own(answer, self._asked(sent)))
        found = called("postprocess", functions.postprocess, prepared.request, answer)
        response = self._response(found)
        response.id = sent.id
        if sent.outputs:
            response.outputs = _wanted(sent, response)
        return response

    def _bound(self, found: Any, request: InferRequest, outputs: Sequence[Any]) -> Bound:
        specs = {spec.name: spec for spec in self._asked(request).inputs}
        if not isinstance(found, Mapping):
            if len(specs) != 1:
                raise InferenceFailed(
                    f"preprocess returned a {type(found).__name__}, but the model has the inputs "
                    f"{', '.join(map(repr, specs))}: return a dict of arrays by these names"
                )
            found = {next(iter(specs)): found}
        tensors = []
        for name, value in found.items():
            array = as_array(f"{name!r} of what preprocess returned", value)
            if name in specs:
                array = as_dtype(array, specs[name].dtype)
            tensors.append(Tensor.of(str(name), array))
        made = replace(request, inputs=tuple(tensors), payload=None, outputs=tuple(outputs))
        try:
            return self._binding.bind(made)
        except InvalidInput as error:
            raise InferenceFailed(
                f"what preprocess returned does not fit the model: {error}"
            ) from error

    def _grouped(self, bound: Bound, request: InferRequest) -> Bound:
        """Let only requests run together that ``run_model`` need not tell apart."""
        parameters: dict[str, Any] = {}
        for name in self._functions.group_by:
            value = request.parameters.get(name, request.tags.get(name))
            if not isinstance(value, bool | int | float | str | None):
                raise InvalidInput(f"the parameter {name!r} must be a text, a number or a bool")
            parameters[name] = value
        key = tuple((type(value), value) for value in parameters.values())
        return HookedBound(
            bound.inputs,
            bound.outputs,
            bound.rows,
            (bound.group, key),
            bound.size,
            bound.signature,
            parameters,
        )

    def _names(self, request: InferRequest) -> Collection[str] | None:
        """Return the names of the outputs, if they are known."""
        if self.after:
            return self._given
        return [spec.name for spec in self._asked(request).outputs]

    def _asked(self, request: InferRequest) -> Signature:
        """Return the model's signature that the request is for."""
        return self._signatures.get(request.signature, self._signature)

    def _response(self, found: Any) -> InferResponse:
        """Return what ``postprocess`` gave as an answer, of the kind that was declared."""
        if isinstance(found, Response):
            made = self._content(found.tensors or found.payload)
            if found.tensors and found.payload is not None:
                made.payload = self._value(found.payload)
            made.parameters, made.tags = found.parameters, found.tags
            return made
        return self._content(found)

    def _content(self, found: Any) -> InferResponse:
        side = self._functions.outgoing
        tensors: Mapping[str, Any] | None = None
        if side.kind is None and is_array(found):
            name = side.specs[0].name if side.specs else "output"
            tensors = {name: found}
        elif (
            side.kind is None
            and isinstance(found, Mapping)
            and found
            and all(is_array(value) for value in found.values())
        ):
            tensors = found
        if tensors is not None:
            return InferResponse("", "", outputs=self._tensors(tensors))
        if side.specs is not None:
            raise InferenceFailed(
                f"postprocess returned a {type(found).__name__}, but the output is declared as "
                "tensors: return a dict of arrays"
            )
        return InferResponse("", "", payload=self._value(found))

    def _tensors(self, tensors: Mapping[str, Any]) -> list[Tensor]:
        specs = self._functions.outgoing.specs
        if specs is None:
            return [tensor_of("what postprocess returned", k, v) for k, v in tensors.items()]
        dtypes = {spec.name: spec.dtype for spec in specs}
        if dtypes.keys() != tensors.keys():
            raise InferenceFailed(
                f"postprocess returned {', '.join(map(repr, tensors))}, but the output is "
                f"declared as {', '.join(map(repr, dtypes))}"
            )
        return [
            tensor_of("what postprocess returned", name, tensors[name], dtype)
            for name, dtype in dtypes.items()
        ]

    def _value(self, found: Any) -> bytes | str | Json:
        kind = self._functions.outgoing.kind
        if kind in ("image", "bytes", "text"):
            wanted = str if kind == "text" else bytes
            if isinstance(found, str | bytes) and isinstance(found, wanted):
                return found
            raise InferenceFailed(
                f"postprocess returned a {type(found).__name__}, but the output is declared "
                f"as {kind}: return {wanted.__name__}"
            )
        if isinstance(found, bytes) and kind is None:
            return found
        if found is None:
            raise InferenceFailed("postprocess returned nothing")
        return as_json("what postprocess returned", found)


def called(name: str, function: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
    """Call a hook; what it raises becomes an error that says whose fault it is.

    Raises:
        RequestError: the hook raised it on purpose, as ``InvalidInput``.
        InsufficientMemory: there was not enough.
        InferenceFailed: it raised anything else.
    """
    try:
        return function(*arguments, **more)
    except (RequestError, InsufficientMemory):
        raise
    except MemoryError as error:
        raise InsufficientMemory(f"{name} ran out of memory: {error}") from error
    except (Exception, SystemExit) as error:
        raise InferenceFailed(f"{name} raised {type(error).__name__}: {error}") from error


def check_outputs(request: InferRequest, given: Collection[str]) -> None:
    """Check that the outputs that the caller asked for are among those that are ``given``.

    Raises:
        InvalidInput: one is not.
    """
    for output in request.outputs:
        if output.name not in given:
            raise InvalidInput(
                f"the model has no output {output.name!r}: it gives " + ", ".join(map(repr, given))
            )


def _own(answer: Outputs, signature: Signature) -> list[Tensor]:
    """Return the model's own outputs."""
    dtypes = {spec.name: spec.dtype for spec in signature.outputs}
    return [
        tensor_of("the model's outputs", name, array, dtypes.get(name))
        for name, array in answer.items()
    ]


def _wanted(sent: InferRequest, response: InferResponse) -> Sequence[Tensor]:
    """Return the outputs that the caller asked for."""
    if not response.outputs:
        return response.outputs
    found = {tensor.name: tensor for tensor in response.outputs}
    check_outputs(sent, found)
    return [found[output.name] for output in sent.outputs]
