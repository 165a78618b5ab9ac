"""``hooks.py`` in a model's folder, with what ``model.yaml`` says of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any, cast

import pydantic

from tidegate.config.model import DeclaredTensor, HookSettings
from tidegate.errors import InvalidModel
from tidegate.replica.hooks import Functions
from tidegate.replica.public import OWN, Declared, Kind, Side
from tidegate.runtimes.folder_code import FolderCode
from tidegate.types import KINDS

FILE = "hooks.py"
_MODULE = "hooks"
_TAKES = {"preprocess": 1, "postprocess": 2, "run_model": 2}
"""How many arguments each hook is called with."""


def read_hooks(code: FolderCode, settings: HookSettings) -> Functions | None:
    """Return the hooks in the folder, or ``None`` when it has no such file.

    Raises:
        InvalidModel: it raised, has none of the functions, or one that takes something else.
        ConfigurationError: what it, or ``model.yaml``, declares of tensors is not complete.
    """
    if code.path(FILE) is None:
        return None
    module = code.load(_MODULE)
    found = {name: _function(module, name) for name in _TAKES}
    if not any(found.values()):
        raise InvalidModel(
            f"{FILE} has none of the functions {', '.join(_TAKES)}: 'tidegate init hooks' writes "
            "a template"
        )
    incoming = settings.input if settings.input is not None else _declared(module, "INPUT")
    outgoing = settings.output if settings.output is not None else _declared(module, "OUTPUT")
    if incoming is not None and found["preprocess"] is None:
        raise InvalidModel(
            f"{FILE} has no preprocess, so that the model's own inputs are sent: remove INPUT "
            "(or hooks.input in model.yaml)"
        )
    if outgoing is not None and found["postprocess"] is None and isinstance(outgoing, str):
        raise InvalidModel(
            f"{FILE} has no postprocess, so that tensors are the answer: remove OUTPUT = "
            f"{outgoing!r} (or hooks.output in model.yaml)"
        )
    return Functions(
        found["preprocess"],
        found["postprocess"],
        found["run_model"],
        Side.of(incoming, f"INPUT of {FILE}"),
        Side.of(outgoing, f"OUTPUT of {FILE}"),
        settings.group_by or _group_by(module),
    )


def _function(module: ModuleType, name: str) -> Callable[..., Any] | None:
    found = getattr(module, name, None)
    if found is None:
        return None
    if not callable(found):
        raise InvalidModel(f"{name} in {FILE} is a {type(found).__name__}, no function")
    if inspect.iscoroutinefunction(found):
        raise InvalidModel(f"{name} in {FILE} is async, but is called in a thread: write def")
    takes = _TAKES[name]
    try:
        inspect.signature(found).bind(*range(takes))
    except TypeError as error:
        arguments = {1: "(request)", 2: "(request, outputs)"}[takes]
        if name == "run_model":
            arguments = "(model, batch)"
        raise InvalidModel(
            f"{name} in {FILE} must take {arguments}, not {inspect.signature(found)}: {error}"
        ) from error
    except ValueError:  # a built-in does not say what it takes
        pass
    return found  # type: ignore[no-any-return]


def _declared(module: ModuleType, name: str) -> Declared:
    found = getattr(module, name, None)
    if found is None:
        return None
    if isinstance(found, str):
        if found == OWN or found in KINDS:
            return cast("Kind", found)
        raise InvalidModel(
            f"{name} in {FILE} is {found!r}; it is one of {', '.join(map(repr, KINDS))}, "
            f"{OWN!r}, or a list of tensors"
        )
    try:
        return [DeclaredTensor.model_validate(each) for each in found]
    except (TypeError, pydantic.ValidationError) as error:
        words = " ".join(str(error).split())
        raise InvalidModel(
            f"{name} in {FILE} is no list of tensors as "
            f'{{"name": "x", "dtype": "FP32", "shape": ["batch", 3]}}: {words}'
        ) from error


def _group_by(module: ModuleType) -> tuple[str, ...]:
    found = getattr(module, "GROUP_BY", ())
    if isinstance(found, str) or not all(isinstance(name, str) for name in found):
        raise InvalidModel(
            f'GROUP_BY in {FILE} is {found!r}; it is a tuple of names of parameters, as ("scale",)'
        )
    return tuple(found)
