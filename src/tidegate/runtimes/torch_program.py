"""Opens the files of PyTorch: from a path to something that can be called."""

from __future__ import annotations

import inspect
import pickle
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import safetensors.torch
import torch
from torch import nn
from torch.export.passes import move_to_device_pass

from tidegate.config.model import ModelConfig, Torch
from tidegate.errors import ConfigurationError, InvalidModel
from tidegate.repository.pickles import danger
from tidegate.runtimes.folder_code import FolderCode
from tidegate.runtimes.interface import RuntimeOptions
from tidegate.runtimes.torch_archive import check_export, check_size, words_of
from tidegate.runtimes.torch_code import CODE, find_code, make_module, run_code
from tidegate.runtimes.torch_export import Exported, read_export
from tidegate.runtimes.torch_tensors import reraise, said

_NESTED = ("state_dict", "model_state_dict", "model", "weights", "net", "network", "module")
"""Where training scripts put the weights in a checkpoint."""
_WRAPPERS = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put before every name."""
_UNSUPPORTED = re.compile(r"(Trying to|Unsupported|Can only|Not all).*?(?=\.\s|\.$|$)", re.M)
Call = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Parameters:
    """What a model's ``forward`` takes."""

    names: tuple[str, ...]
    required: int
    open: bool = False
    """It takes any number more."""

    def order(self, call: Call, inputs: Sequence[str]) -> Call:
        """Return a function of tensors in the order of ``inputs``.

        Inputs that are named like parameters are given by name, others in their order.

        Raises:
            ConfigurationError: the model takes another number of inputs.
        """
        if tuple(inputs) == self.names[: len(inputs)] or not set(inputs) <= set(self.names):
            fits = self.required <= len(inputs) and (self.open or len(inputs) <= len(self.names))
            named = None
        else:
            named = tuple(inputs)
            fits = set(self.names[: self.required]) <= set(inputs)
        if not fits:
            optional = self.names[self.required :]
            may = f" ({' and '.join(optional)} if wanted)" if optional else ""
            raise ConfigurationError(
                f"the model's forward takes ({', '.join(self.names)}){may}, but the signature has "
                f"the inputs ({', '.join(inputs)}): correct signature.inputs in model.yaml"
            )
        if named is None:
            return call
        names = named
        return lambda *tensors: call(**dict(zip(names, tensors)))


@dataclass(frozen=True, slots=True)
class Program:
    """A model that was opened."""

    platform: str
    call: Call
    parameters: Parameters
    module: Any
    """The module, before anything was made of it."""
    exported: Exported | None = None
    """What the file itself says of its signature."""


def open_program(path: Path, kind: str, options: RuntimeOptions, device: torch.device) -> Program:
    """Open a file of the format ``kind`` (see :mod:`tidegate.repository.formats`).

    Raises:
        InvalidModel: it cannot be loaded, or only by running code that nobody vouched for.
        InsufficientMemory: it does not fit.
        ConfigurationError: an option does not apply to it.
    """
    config = options.config
    trusted = config.trust == "pickle"
    if kind == "pt2":
        check_export(path, trust_pickle=trusted)
        return _open_export(path, config, device)
    if kind == "torchscript":
        check_size(path)
        return _open_script(path, config, device)
    code = find_code(path, options.folder)
    if kind == "torch-pickle":
        if not trusted:
            raise InvalidModel("; ".join(danger(path)))
        loaded = _unpickle(path, code)
    else:
        loaded = _read_weights(path, kind)
    module = loaded if isinstance(loaded, nn.Module) else _filled(path, code, loaded, config.torch)
    return _eager(path, module, config, device)


def _open_script(path: Path, config: ModelConfig, device: torch.device) -> Program:
    if config.torch.compile:
        raise ConfigurationError(
            f"torch.compile does not apply to {path.name}, which is TorchScript and compiled "
            "already: remove it, or export the model with torch.export.save"
        )
    module = _loading(path, lambda: torch.jit.load(path, map_location=device))
    module = _arranged(module.eval(), config, device)
    parameters = []
    for argument in module.forward.schema.arguments[1:]:
        kind = str(argument.type)
        if kind not in ("Tensor", "Optional[Tensor]"):
            if argument.has_default_value():
                break
            raise InvalidModel(
                f"forward of {path.name} takes {argument.name!r} of the type {kind}, which no "
                "request can carry: wrap the model in one that takes tensors alone"
            )
        parameters.append(argument)
    required = sum(not argument.has_default_value() for argument in parameters)
    names = tuple(argument.name for argument in parameters)
    return Program("pytorch_torchscript", module, Parameters(names, required), module)


def _open_export(path: Path, config: ModelConfig, device: torch.device) -> Program:
    program = _loading(path, lambda: read_export(path))
    if device.type != "cpu":
        program = _loading(path, lambda: move_to_device_pass(program, device))
    exported = Exported.of(path, program)
    # Its guards are code from the file; requests are checked against the signature.
    module = _arranged(program.module(check_guards=False), config, device)
    call = torch.compile(module, dynamic=True) if config.torch.compile else module
    names = tuple(spec.name for spec in exported.signature.inputs)
    return Program(
        "pytorch_export", exported.caller(call), Parameters(names, len(names)), module, exported
    )


def _eager(path: Path, module: nn.Module, config: ModelConfig, device: torch.device) -> Program:
    module = _loading(path, lambda: _arranged(module.eval(), config, device))
    names, required, more = [], 0, False
    for parameter in inspect.signature(module.forward).parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL:
            more = True
        elif parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            names.append(parameter.name)
            required += parameter.default is parameter.empty
    call = torch.compile(module, dynamic=True) if config.torch.compile else module
    return Program("pytorch_eager", call, Parameters(tuple(names), required, more), module)


def _arranged(module: Any, config: ModelConfig, device: torch.device) -> Any:
    if config.precision == "fp32":
        module = module.float()
    if config.torch.channels_last:
        module = module.to(memory_format=torch.channels_last)
    return module.to(device)


def _read_weights(path: Path, kind: str) -> Any:
    if kind == "safetensors":
        return _loading(path, lambda: safetensors.torch.load_file(path))
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InvalidModel(
            f"{path.name} holds more than weights: {_refusal(error)}; save the weights "
            "alone, with torch.save(model.state_dict(), …), or as safetensors"
        ) from error
    except Exception as error:
        reraise(error, InvalidModel, f"PyTorch {torch.__version__} refuses {path.name}: ")


def _filled(path: Path, code: FolderCode | None, loaded: Any, settings: Torch) -> nn.Module:
    weights = _weights_in(path, loaded)
    own = run_code(code)
    if own is None:
        listed = ", ".join(list(weights)[:3]) + (", …" if len(weights) > 3 else "")
        s = "" if len(weights) == 1 else "s"
        raise InvalidModel(
            f"{path.name} holds weights alone ({len(weights)} tensor{s}: {listed}): put the code "
            f"of the model beside it as {CODE}, with a torch.nn.Module named Model, in a folder "
            "of the model's own; or export model and weights together, with torch.export.save"
        )
    module = make_module(own, settings)
    for prefix in _WRAPPERS:
        if all(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    try:
        module.load_state_dict(weights)
    except Exception as error:
        reraise(error, InvalidModel, f"the weights in {path.name} are not those of {CODE}: ")
    return module


def _weights_in(path: Path, loaded: Any) -> dict[str, Any]:
    candidates = [loaded]
    if isinstance(loaded, Mapping):
        candidates += [loaded[key] for key in _NESTED if key in loaded]
    for found in candidates:
        if isinstance(found, nn.Module):
            return dict(found.state_dict())
        if isinstance(found, Mapping) and any(isinstance(v, torch.Tensor) for v in found.values()):
            return {str(name): value for name, value in found.items()}
    holds = type(loaded).__name__
    if isinstance(loaded, Mapping):
        holds += f" with {', '.join(map(repr, list(loaded)[:5]))}"
    raise InvalidModel(
        f"{path.name} holds no weights, but a {holds}; save model.state_dict() itself"
    )


def _unpickle(path: Path, code: FolderCode | None) -> Any:
    """Load a pickle that the operator trusts; its classes may be those of the model's folder."""
    own = run_code(code)

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            # A script or a notebook pickles its own classes as those of __main__.
            if own is not None and module in ("__main__", "model") and hasattr(own, name):
                return getattr(own, name)
            if code is not None and code.has(module):
                module = f"{code.package}.{module}"
            try:
                return super().find_class(module, name)
            except (AttributeError, ImportError) as error:
                raise ImportError(_missing(module, name, error)) from error

    using = SimpleNamespace(Unpickler=Unpickler, load=pickle.load, __name__="pickle")
    try:
        return torch.load(path, map_location="cpu", weights_only=False, pickle_module=using)
    except (AttributeError, ImportError) as error:
        raise InvalidModel(
            f"{path.name} needs code that is not here: {error}; put it into the model's folder "
            f"as {CODE}"
        ) from error
    except Exception as error:
        reraise(error, InvalidModel, f"PyTorch {torch.__version__} refuses {path.name}: ")


def _missing(module: str, name: str, error: Exception) -> str:
    if module == "__main__":
        return f"{name} of the program that saved it"
    return f"{module}.{name} ({error})"


def _loading(path: Path, load: Callable[[], Any]) -> Any:
    try:
        with warnings.catch_warnings(action="ignore"):
            return load()
    except InvalidModel:
        raise
    except Exception as error:
        if isinstance(error, MemoryError | torch.OutOfMemoryError):
            reraise(error, InvalidModel)
        reraise(
            RuntimeError(words_of(error)),
            InvalidModel,
            f"PyTorch {torch.__version__} refuses {path.name}: ",
        )


def _refusal(error: Exception) -> str:
    """Return the sentence of PyTorch's refusal that says what it was, without its advice."""
    found = _UNSUPPORTED.search(str(error))
    return " ".join(found[0].split()) if found else said(error).partition(". ")[0]
