"""The interface file of dl_inference: ``processor.py`` beside a whole PyTorch module.

Its functions, each optional, are called as dl_inference's image for PyTorch calls them
(``PyTorchPredictOnline`` of https://github.com/wuba/dl_inference): ``preprocess(data, **kwargs)``,
``run_model(model, x, **kwargs)``, ``postprocess(data, **kwargs)``, where ``kwargs["meta"]`` is
what Seldon's messages have as ``meta``. Without ``run_model`` the model is called with what
``preprocess`` returned, and with the tags as keyword arguments when there is more than one.

What differs: tensors are moved to the model's device before it is called, however deep they lie,
and to the CPU before ``postprocess`` is; and who gets no answer is told why.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from tidegate.errors import InferenceFailed, InvalidInput, InvalidModel
from tidegate.hooks import Outputs, Request, Response
from tidegate.replica.binding import Bound
from tidegate.replica.hooks import FunctionHooks, Functions, Prepared, called
from tidegate.replica.public import Incoming, Side
from tidegate.runtimes.folder_code import FolderCode
from tidegate.types import Array, InferRequest, InferResponse, Signature

Call: TypeAlias = Callable[[Any, Callable[[Any], Any]], Any]

FILE = "processor.py"
_MODULE = "processor"
NAMES = ("preprocess", "postprocess", "run_model")
_OF_THE_PROTOCOL = frozenset({"binary_data_output", "priority", "signature_name", "timeout"})
"""Parameters of the Open Inference Protocol that are no tags."""


@dataclass(frozen=True, slots=True)
class Processor:
    """The functions of an interface file."""

    preprocess: Callable[..., Any] | None
    postprocess: Callable[..., Any] | None
    run_model: Callable[..., Any] | None


def read_processor(code: FolderCode) -> Processor | None:
    """Return the functions of the interface file, or ``None`` when there is none.

    Raises:
        InvalidModel: it raised.
    """
    path = code.path(FILE)
    if path is None:
        return None
    # What it reads beside itself it opens by name, as in the image that it was written for.
    with contextlib.chdir(path.parent):
        module = code.load(_MODULE)
    found = {name: getattr(module, name, None) for name in NAMES}
    for name, function in found.items():
        if function is not None and not callable(function):
            raise InvalidModel(f"{name} in {FILE} is a {type(function).__name__}, no function")
    return Processor(**found) if any(found.values()) else None


@dataclass(slots=True)
class _Prepared(Prepared):
    meta: Mapping[str, Any]
    """The keyword arguments of all functions."""


class ProcessorHooks:
    """Does with a request what the interface file says; meets :class:`Hooks`."""

    before = after = True

    def __init__(self, processor: Processor, model: Any, incoming: Side, outgoing: Side) -> None:
        self._processor = processor
        self._model = model
        """A :class:`~tidegate.runtimes.torch_whole.WholeModel`."""
        self._incoming = Incoming(incoming)
        nothing = Signature((), ())
        shaped = Functions(postprocess=_same, outgoing=outgoing)
        self._answers = FunctionHooks(shaped, nothing, _NoBinding())

    def prepare(self, request: InferRequest) -> Prepared:
        """Preprocess; see :meth:`Hooks.prepare`."""
        tensors, payload = self._incoming.read(request)
        tags = {k: v for k, v in request.parameters.items() if k not in _OF_THE_PROTOCOL}
        given: dict[str, Any] = {"tags": {**tags, **request.tags}}
        if request.id:
            given["puid"] = request.id
        meta = {"meta": given}
        data = payload if payload is not None else _data(tensors)
        function = self._processor.preprocess
        with self._model.without_gradients():
            x = data if function is None else called("preprocess", function, data, **meta)
        bound = Bound((_boxed(self._call(x, meta)),), ("",), 1, object(), 0)
        return _Prepared(bound, Request(), meta)

    def _call(self, x: Any, meta: Mapping[str, Any]) -> Call:
        run_model = self._processor.run_model

        def call(module: Any, to_device: Callable[[Any], Any]) -> Any:
            value = to_device(x)
            if run_model is not None:
                return run_model(module, value, **meta)
            if isinstance(value, np.ndarray):
                from tidegate.runtimes.torch_whole import from_array

                value = to_device(from_array(value, self._model.dtype))
            tags = meta["meta"]["tags"]
            return module(value, **(tags if len(tags) > 1 else {}))

        return call

    def finish(self, sent: InferRequest, prepared: Prepared, answer: Outputs) -> InferResponse:
        """Postprocess; see :meth:`Hooks.finish`."""
        assert isinstance(prepared, _Prepared)
        found = answer[""][()]
        function = self._processor.postprocess
        with self._model.without_gradients():
            if function is None:
                made = _as_it_is(found)
            else:
                made = _as_array(called("postprocess", function, found, **prepared.meta))
            return self._answers.finish(sent, Prepared(prepared.bound, Request()), {"": made})


class _NoBinding:
    """Nothing is known of what the model takes."""

    def bind(self, request: InferRequest) -> Bound:
        raise NotImplementedError


def _same(request: Request, outputs: Mapping[str, Any]) -> Any:
    return outputs[""]


def _boxed(value: Any) -> Array:
    from tidegate.runtimes.torch_whole import boxed

    return boxed(value)


def _data(tensors: Mapping[str, Array]) -> Any:
    """Return tensors as Seldon gives them: an array, or several by name; texts as texts."""
    if not tensors:
        raise InvalidInput("the request has no data: send a text, bytes, JSON or a tensor")
    found = {name: _own(array) for name, array in tensors.items()}
    return next(iter(found.values())) if len(found) == 1 else found


def _own(array: Array) -> Array:
    """Return an array that code may write into."""
    if array.dtype != np.object_:
        return array.copy()
    try:
        texts = [element.decode() for element in array.reshape(-1).tolist()]
    except UnicodeDecodeError:
        return array.copy()
    return np.array(texts).reshape(array.shape)


def _as_array(made: Any) -> Any:
    """Return a list of numbers or texts as an array, as Seldon answers with it."""
    if not isinstance(made, list) or not made:
        return made
    try:
        array = np.array(made)
    except (ValueError, TypeError):  # rows of different lengths, tensors
        return made
    if array.dtype.kind in "iuf":
        return array
    # Numpy makes texts of what is mixed.
    mixed = array.dtype.kind == "U" and array.tolist() != made
    return made if mixed or array.dtype.kind != "U" else array


def _as_it_is(found: Any) -> Any:
    """Return what the model gave: tensors by name, or anything else as JSON."""
    from tidegate.runtimes.torch_whole import leaves

    try:
        return Response(tensors=dict(leaves(found)))
    except InferenceFailed:
        return found
