"""A model and its hooks, loaded together."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from tidegate.errors import ConfigurationError, InvalidModel
from tidegate.replica import processor
from tidegate.replica.batch import BatchRunner
from tidegate.replica.binding import Binding
from tidegate.replica.hook_file import read_hooks
from tidegate.replica.hooks import FunctionHooks, Functions, Hooks
from tidegate.replica.processor import ProcessorHooks, read_processor
from tidegate.replica.public import Side, public_signature
from tidegate.replica.run_hook import HookedModel, HookedRunner, Parameters
from tidegate.replica.steps import has_steps, with_steps
from tidegate.repository import formats
from tidegate.runtimes import registry
from tidegate.runtimes.folder_code import FolderCode, code_in
from tidegate.runtimes.interface import Model, RuntimeOptions
from tidegate.types import Signature

_WHOLE = frozenset({"torch-pickle", "torchscript"})
"""Formats that an interface file of dl_inference stands beside."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that was loaded."""

    model: Model
    """What is run: ``run_model`` in its place, where there is one."""
    public: Signature
    """What goes in and comes out to the outside."""
    make_hooks: Callable[[Binding], Hooks] | None = None
    parameters: Parameters | None = None
    home: Path | None = None
    """The folder that its code opens files in by name, if it relies on that."""

    @property
    def hooked(self) -> bool:
        """Whether it has hooks."""
        return self.make_hooks is not None

    def hooks(self, binding: Binding) -> Hooks | None:
        """Return its hooks, if it has any; ``binding`` is to the model itself."""
        return None if self.make_hooks is None else self.make_hooks(binding)

    def runner(self, time: Callable[[], float]) -> BatchRunner:
        """Return what runs its batches."""
        if self.parameters is None:
            return BatchRunner(self.model, time)
        return HookedRunner(self.model, time, self.parameters)


def load(runtime: str, path: Path, options: RuntimeOptions, *, enter: bool = False) -> Loaded:
    """Load the model at ``path`` with the hooks in its folder.

    Its code can be imported by name everywhere, until the next model is loaded. With ``enter``,
    the process goes to the folder of a model of dl_inference, whose code opens files there.

    Raises:
        RuntimeMissing: the runtime is unknown or not installed.
        InvalidModel: the file is not a model that the runtime can load, or its hooks are wrong.
        InsufficientMemory: it does not fit.
        ConfigurationError: ``model.yaml`` asks for what the model or the machine has not.
    """
    functions, code = None, None
    if options.folder is not None:
        code = code_in(path, options.folder)
        code.expose()
        functions = read_hooks(code, options.config.hooks)
        if functions is None and runtime == "torch":
            whole = _with_processor(path, options, code, enter=enter)
            if whole is not None:
                return whole
    model = registry.load(runtime, path, options)
    functions = with_steps(functions, options.config, model.signature, code)
    return with_hooks(model, functions)


def _with_processor(
    path: Path, options: RuntimeOptions, code: FolderCode, *, enter: bool
) -> Loaded | None:
    """Load a folder of dl_inference; ``None`` when it is none."""
    file = code.path(processor.FILE)
    if file is None or formats.detect(path).name not in _WHOLE:
        return None
    if has_steps(options.config):
        raise ConfigurationError(
            f"model.yaml has preprocess or postprocess, but {file.name} stands beside the model: "
            "remove one of them"
        )
    if enter:
        os.chdir(file.parent)
    registry.devices("torch")
    from tidegate.runtimes import torch_whole

    # The file first: the pickle may need what it imports.
    model = torch_whole.load(path, options)
    read = read_processor(code)
    if read is None:
        raise InvalidModel(
            f"{processor.FILE} has none of the functions {', '.join(processor.NAMES)}"
        )
    settings = options.config.hooks
    incoming = Side.of(settings.input, "hooks.input")
    outgoing = Side.of(settings.output, "hooks.output")
    public = public_signature(model.signature, incoming, outgoing)
    return Loaded(
        model,
        public,
        lambda binding: ProcessorHooks(read, model, incoming, outgoing),
        home=file.parent,
    )


def with_hooks(model: Model, functions: Functions | None) -> Loaded:
    """Return a model with its hooks around it."""
    if functions is None:
        return Loaded(model, model.signature)
    parameters = None
    before, after = functions.preprocess is not None, functions.postprocess is not None
    if functions.run_model is not None:
        parameters = Parameters(functions.group_by)
        given = None if after else functions.outgoing.specs
        model = HookedModel(model, functions.run_model, parameters, given)
    functions = replace(
        functions,
        incoming=functions.incoming.filled(model.signature.inputs),
        outgoing=functions.outgoing.filled(model.signature.outputs),
    )
    public = public_signature(
        model.signature,
        functions.incoming if before else None,
        functions.outgoing if after else None,
    )
    found = functions

    def hooks(binding: Binding) -> FunctionHooks:
        return FunctionHooks(found, model.signature, binding, model.signatures)

    return Loaded(model, public, hooks, parameters)
