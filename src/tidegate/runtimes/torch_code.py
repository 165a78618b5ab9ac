"""The code in a model's folder: ``model.py``, which makes the module that weights belong to.

It is the operator's, as ``model.yaml`` is, and is run without being asked for: who may write
into the repository may run code as the user that serves it. Nothing else in a folder is run;
what a pickle holds is not the operator's word.
"""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

from torch import nn

from tidegate.config.model import Torch
from tidegate.errors import InvalidModel
from tidegate.runtimes.torch_tensors import said

CODE = "model.py"
_MODULE = "tidegate_model"
_folders: list[Path] = []
"""Those on ``sys.path`` for an earlier model of this process."""


def find_code(path: Path, folder: Path | None) -> Path | None:
    """Return ``model.py`` beside the weights, or in the model's folder; a bare file has none."""
    if folder is None:
        return None
    return next((p for p in (path.parent / CODE, folder / CODE) if p.is_file()), None)


def run_code(code: Path) -> types.ModuleType:
    """Run ``model.py``; it can import what lies beside it.

    Raises:
        InvalidModel: it raised.
    """
    _forget_earlier()
    # Last: a file beside it must not take the place of a module that everything needs.
    sys.path.append(str(code.parent))
    _folders.append(code.parent)
    module = types.ModuleType(_MODULE)
    module.__file__ = str(code)
    sys.modules[_MODULE] = module
    try:
        exec(compile(code.read_bytes(), code, "exec"), module.__dict__)  # noqa: S102 - its purpose
    except (Exception, SystemExit) as error:
        line = _line(error, code)
        raise InvalidModel(f"{CODE}{line} raised {type(error).__name__}: {error}") from error
    return module


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
        if getattr(value, "__module__", None) == _MODULE and callable(value)
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


def _forget_earlier() -> None:
    """Let go of the code of a model that this process loaded before."""
    for folder in _folders:
        for name, module in list(sys.modules.items()):
            file = getattr(module, "__file__", None)
            if file is not None and Path(file).is_relative_to(folder):
                del sys.modules[name]
        sys.path.remove(str(folder))
    _folders.clear()


def _line(error: BaseException, code: Path) -> str:
    if isinstance(error, SyntaxError):
        return "" if error.lineno is None else f", line {error.lineno},"
    found = ""
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(code):
            found = f", line {trace.tb_lineno},"
        trace = trace.tb_next
    return found
