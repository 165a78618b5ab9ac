"""The code in a model's folder: ``model.py``, which makes the module that weights belong to.

It is the operator's, as ``model.yaml`` is, and is run without being asked for: who may write
into the repository may run code as the user that serves it. Nothing else in a folder is run;
what a pickle holds is not the operator's word.
"""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

from torch import nn

from tidegate.config.model import Torch
from tidegate.errors import InvalidModel
from tidegate.runtimes.folder_code import FolderCode, code_in
from tidegate.runtimes.torch_tensors import said

CODE = "model.py"
_MODULE = "model"


def find_code(path: Path, folder: Path | None) -> FolderCode | None:
    """Return the code that belongs to the weights at ``path``; that of a bare file is nothing."""
    return None if folder is None else code_in(path, folder)


def run_code(code: FolderCode | None) -> types.ModuleType | None:
    """Run ``model.py``, if there is one; it can import what lies beside it.

    Raises:
        InvalidModel: it raised.
    """
    return None if code is None or code.path(CODE) is None else code.load(_MODULE)


def make_module(code: types.ModuleType, settings: Torch) -> nn.Module:
    """Make the module that ``model.py`` describes.

    Raises:
        InvalidModel: there is no such class or function, or it gives no module.
    """
    name, factory = _factory(code, settings.model)
    try:
        made = factory(**settings.arguments)
    except (Exception, SystemExit) as error:
        given = ", ".join(f"{key}={value!r}" for key, value in settings.arguments.items())
        raise InvalidModel(
            f"{name}({given}) of {CODE} raised {said(error)}; its arguments are those under "
            "torch.arguments in model.yaml"
        ) from error
    if not isinstance(made, nn.Module):
        raise InvalidModel(f"{name}() of {CODE} gave a {type(made).__name__}, no torch.nn.Module")
    return made


def _factory(code: types.ModuleType, wanted: str | None) -> tuple[str, Any]:
    own = {
        name: value
        for name, value in vars(code).items()
        if getattr(value, "__module__", None) == code.__name__ and callable(value)
    }
    modules = [n for n, v in own.items() if isinstance(v, type) and issubclass(v, nn.Module)]
    if wanted is not None:
        found = getattr(code, wanted, None)
        if not callable(found):
            raise InvalidModel(
                f"{CODE} has no class or function {wanted!r}, which torch.model in model.yaml "
                f"asks for: it has {', '.join(own) or 'none'}"
            )
        return wanted, found
    if "Model" in own:
        return "Model", own["Model"]
    if len(modules) == 1:
        return modules[0], own[modules[0]]
    raise InvalidModel(
        f"{CODE} does not say which is the model (it has {', '.join(own) or 'no class'}): name "
        "the class Model, or write torch: {model: NAME} into model.yaml"
    )
