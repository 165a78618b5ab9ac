"""Models that are a class in ``model.py``, on whatever library it imports."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import numpy as np
from pydantic import ValidationError

from tidegate.config.model import DeclaredSignature, DeclaredTensor
from tidegate.errors import (
    ConfigurationError,
    InferenceFailed,
    InsufficientMemory,
    InvalidInput,
    InvalidModel,
    TidegateError,
)
from tidegate.repository.python_models import CODE
from tidegate.runtimes.declared import refined
from tidegate.runtimes.folder_code import FolderCode, code_in
from tidegate.runtimes.interface import OneSignature, RuntimeOptions
from tidegate.runtimes.learning import Output, find_signature
from tidegate.runtimes.samples import samples_of
from tidegate.types import Array, DType, Signature, TensorSpec

log = logging.getLogger(__name__)

_MODULE = "model"
_LONGEST = 500
"""Characters of what an error says."""


@dataclass(frozen=True, slots=True)
class Context:
    """What a model's ``load`` is given."""

    folder: Path
    """The folder of the version; the model's folder where versions have none of their own."""
    model_folder: Path
    """The model's folder, which all versions share."""
    device: str = "auto"
    """``device`` of ``model.yaml``: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``."""
    precision: str | None = None
    """``precision`` of ``model.yaml``."""
    threads: int = 1
    """The cores that are meant for this replica."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """``python.arguments`` of ``model.yaml``, which the class was made with."""

    def path(self, name: str) -> Path:
        """Return the file of this name in the version's folder, or else in the model's.

        Raises:
            FileNotFoundError: neither has one.
        """
        for folder in (self.folder, self.model_folder):
            if (folder / name).exists():
                return folder / name
        raise FileNotFoundError(f"there is no {name} in {self.folder} or {self.model_folder}")


class PythonModel(OneSignature):
    """A class of the operator's; meets :class:`~tidegate.runtimes.interface.Model`."""

    platform = "python"
    most_rows: int | None = None

    def __init__(self, instance: Any, code: FolderCode, signature: Signature, device: str) -> None:
        self._instance = instance
        self.native = instance
        """The instance of the class."""
        self._code = code
        self._dtypes = {spec.name: spec.dtype for spec in signature.outputs}
        self.signature = signature
        self.device = device

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """Run once; see :meth:`tidegate.runtimes.interface.Model.run`.

        Raises:
            InvalidInput: the class says that the caller must change the request.
            InsufficientMemory: there was not enough.
            InferenceFailed: it raised anything else, or did not give what its signature says.
        """
        found = _call(self._instance, self._code, inputs)
        missing = [name for name in self._dtypes if name not in found]
        if missing:
            raise InferenceFailed(
                f"run() of {CODE} gave {_listed(found)}, but its signature says that it gives "
                f"{_listed(missing)}, too"
            )
        return {name: _public(name, found[name], self._dtypes[name]) for name in outputs}

    def attach(self) -> None:
        """Nothing: which threads it needs, the class knows."""

    def close(self) -> None:
        """Let the class free what it holds."""
        unload = getattr(self._instance, "unload", None)
        if unload is not None:
            try:
                unload()
            except (Exception, SystemExit):
                log.exception("unload() of %s", CODE)
        del self._instance


def load(path: Path, options: RuntimeOptions) -> PythonModel:
    """Load the class in ``model.py``, which lies in the folder ``path`` or in the model's.

    Raises:
        InvalidModel: there is no such class, its code raised, or nothing says what it takes.
        InsufficientMemory: it does not fit.
        ConfigurationError: ``model.yaml`` contradicts the class.
    """
    folder = options.folder or path
    code = code_in(path, folder)
    # One process serves one model: a pickle may name the classes beside it.
    code.expose()
    settings = options.config.python
    instance = _make(code.load(_MODULE), settings.model, settings.arguments)
    context = Context(
        path,
        folder,
        options.device,
        options.config.precision,
        options.threads,
        settings.arguments,
    )
    if hasattr(instance, "load"):
        try:
            instance.load(context)
        except (Exception, SystemExit) as error:
            _raise(error, code, "load()", InvalidModel)
    own = _own_signature(instance, code)
    signature = _signature(instance, code, own, options)
    return PythonModel(instance, code, signature, _device(instance, options.device))


def devices() -> tuple[str, ...]:
    """Return the kinds of device that are known to be there; a class may use others."""
    return ("cpu",)


def _make(module: ModuleType, wanted: str | None, arguments: Mapping[str, Any]) -> Any:
    name, factory = _class(module, wanted)
    try:
        return factory(**arguments)
    except (Exception, SystemExit) as error:
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        raise InvalidModel(
            f"{name}({given}) of {CODE} raised {type(error).__name__}: {error}; its arguments are "
            "those under python.arguments in model.yaml"
        ) from error


def _class(module: ModuleType, wanted: str | None) -> tuple[str, Any]:
    own = {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, type) and callable(getattr(value, "run", None))
    }
    if wanted is not None:
        if wanted not in own:
            raise InvalidModel(
                f"{CODE} has no class {wanted!r} with a method run(self, inputs), which "
                f"python.model in model.yaml asks for: it has {', '.join(own) or 'none'}"
            )
        return wanted, own[wanted]
    here = {name: value for name, value in own.items() if value.__module__ == module.__name__}
    for chosen in ("Model", *(here if len(here) == 1 else ())):
        if chosen in own:
            return chosen, own[chosen]
    raise InvalidModel(
        f"{CODE} does not say which class is the model (those with a method run(self, inputs) are "
        f"{', '.join(here) or 'none'}): call it Model, or write python: {{model: NAME}} into "
        "model.yaml"
    )


def _own_signature(instance: Any, code: FolderCode) -> DeclaredSignature | None:
    """Return what the class says of its signature, in the form of ``model.yaml``."""
    said = getattr(instance, "signature", None)
    if callable(said):
        try:
            said = said()
        except (Exception, SystemExit) as error:
            _raise(error, code, "signature()", InvalidModel)
    if said is None:
        return None
    try:
        return DeclaredSignature.model_validate(said)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, ("signature", *first["loc"])))
        raise InvalidModel(
            f"{place} of the class in {CODE}: {first['msg']}; it has the form of signature in "
            'model.yaml, as {"inputs": [{"name": "x", "dtype": "FP32", "shape": ["batch", 4]}]}'
        ) from error


def _signature(
    instance: Any, code: FolderCode, own: DeclaredSignature | None, options: RuntimeOptions
) -> Signature:
    """Return what the class or ``model.yaml`` says, and learn the rest from runs."""
    declared = options.config.signature
    if own is None:
        own = declared
    # What the class leaves open, model.yaml may say.
    own = DeclaredSignature(
        inputs=own.inputs or declared.inputs, outputs=own.outputs or declared.outputs
    )

    def run(specs: Sequence[TensorSpec], arrays: Sequence[Array]) -> list[Output]:
        inputs = {spec.name: array.copy() for spec, array in zip(specs, arrays)}
        found = _call(instance, code, inputs)
        return [_seen(name, value) for name, value in _wanted(found, own.outputs)]

    signature = find_signature(CODE, (), own, samples_of(options), run)
    return refined(signature, declared)


def _wanted(found: Mapping[str, Any], declared: Sequence[DeclaredTensor]) -> list[tuple[str, Any]]:
    """Return the outputs of a run that are declared, or all."""
    names = [tensor.name for tensor in declared] or list(found)
    missing = [name for name in names if name not in found]
    if missing:
        raise ConfigurationError(
            f"signature.outputs names {_listed(missing)}, but run() of {CODE} gives "
            f"{_listed(found)}"
        )
    return [(name, found[name]) for name in names]


def _seen(name: str, value: Any) -> Output:
    array = _array(name, value)
    try:
        dtype = DType.of(array.dtype)
    except TypeError as error:
        raise InvalidModel(f"the output {name!r} of run() in {CODE}: {error}") from error
    return Output(name, dtype, array.shape)


def _call(instance: Any, code: FolderCode, inputs: Mapping[str, Array]) -> Mapping[str, Any]:
    """Run the class on arrays that it may change."""
    given = {
        name: array if array.base is None and array.flags.writeable else array.copy()
        for name, array in inputs.items()
    }
    try:
        found = instance.run(given)
    except (InvalidInput, InsufficientMemory):
        raise
    except (Exception, SystemExit) as error:
        _raise(error, code, "run()", InferenceFailed)
    if not isinstance(found, Mapping):
        raise InferenceFailed(
            f"run() of {CODE} gave a {type(found).__name__}: it must give a dictionary of "
            "arrays by the names of the outputs"
        )
    return found


def _public(name: str, value: Any, dtype: DType) -> Array:
    """Return an output as the signature has it."""
    array = _array(name, value)
    if dtype is DType.BYTES:
        if array.dtype.kind not in "OSU":
            raise InferenceFailed(_other_type(name, array, dtype))
        return _bytes(name, array)
    if array.dtype != dtype.numpy:
        if not np.can_cast(array.dtype, dtype.numpy, "same_kind"):
            raise InferenceFailed(_other_type(name, array, dtype))
        array = array.astype(dtype.numpy)
    return np.require(array, requirements="C")


def _other_type(name: str, array: Array, dtype: DType) -> str:
    return (
        f"the output {name!r} of run() in {CODE} is of the type {array.dtype}, but the signature "
        f"says {dtype.value}"
    )


def _array(name: str, value: Any) -> Array:
    try:
        return np.asarray(value)
    except Exception as error:
        raise InferenceFailed(
            f"the output {name!r} of run() in {CODE} is a {type(value).__name__}, which is no "
            f"array: {error}"
        ) from error


def _bytes(name: str, array: Array) -> Array:
    found = np.empty(array.shape, np.object_)
    flat = found.reshape(-1)
    for place, element in enumerate(array.reshape(-1).tolist()):
        if isinstance(element, str):
            flat[place] = element.encode()
        elif isinstance(element, bytes):
            flat[place] = element
        else:
            raise InferenceFailed(
                f"the output {name!r} of run() in {CODE} holds a {type(element).__name__}, which "
                "is neither str nor bytes"
            )
    return found


def _device(instance: Any, wanted: str) -> str:
    """Return where it runs: what the class says, or else what it was told."""
    said = getattr(instance, "device", None)
    if said is None or callable(said):
        return "cpu" if wanted == "auto" else wanted
    return str(said)


def _raise(
    error: BaseException, code: FolderCode, where: str, kind: type[TidegateError]
) -> NoReturn:
    """Raise an error of the class as one of ours; its traceback goes to the log alone."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        raise InsufficientMemory(f"{where} of {CODE} ran out of memory: {error}") from error
    place = code.place_of(error)
    words = " ".join(str(error).split())
    if kind is InvalidModel:
        log.error("%s of %s failed", where, CODE, exc_info=error)
    raise kind(
        f"{where} of {CODE} raised {type(error).__name__}: {words[:_LONGEST]}"
        + (f" ({place.rstrip(',')})" if place and kind is InvalidModel else "")
    ) from error


def _listed(names: Mapping[str, Any] | Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names) or "nothing"
