"""A model and its hooks, loaded together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from tidegate.replica.batch import BatchRunner
from tidegate.replica.binding import Binding
from tidegate.replica.hook_file import read_hooks
from tidegate.replica.hooks import FunctionHooks, Functions, Hooks
from tidegate.replica.public import public_signature
from tidegate.replica.run_hook import HookedModel, HookedRunner, Parameters
from tidegate.runtimes import registry
from tidegate.runtimes.folder_code import code_in
from tidegate.runtimes.interface import Model, RuntimeOptions
from tidegate.types import Signature


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that was loaded."""

    model: Model
    """What is run: ``run_model`` in its place, where there is one."""
    public: Signature
    """What goes in and comes out to the outside."""
    functions: Functions | None = None
    parameters: Parameters | None = None

    def hooks(self, binding: Binding) -> Hooks | None:
        """Return its hooks, if it has any; ``binding`` is to the model itself."""
        if self.functions is None:
            return None
        return FunctionHooks(self.functions, self.model.signature, binding)

    def runner(self, time: Callable[[], float]) -> BatchRunner:
        """Return what runs its batches."""
        if self.parameters is None:
            return BatchRunner(self.model, time)
        return HookedRunner(self.model, time, self.parameters)


def load(runtime: str, path: Path, options: RuntimeOptions) -> Loaded:
    """Load the model at ``path`` with the hooks in its folder.

    Raises:
        RuntimeMissing: the runtime is unknown or not installed.
        InvalidModel: the file is not a model that the runtime can load, or its hooks are wrong.
        InsufficientMemory: it does not fit.
        ConfigurationError: ``model.yaml`` asks for what the model or the machine has not.
    """
    functions = None
    if options.folder is not None:
        functions = read_hooks(code_in(path, options.folder), options.config.hooks)
    model = registry.load(runtime, path, options)
    return with_hooks(model, functions)


def with_hooks(model: Model, functions: Functions | None) -> Loaded:
    """Return a model with its hooks around it."""
    if functions is None:
        return Loaded(model, model.signature)
    parameters = None
    before, after = functions.preprocess is not None, functions.postprocess is not None
    if functions.run_model is not None:
        parameters = Parameters()
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
    return Loaded(model, public, functions, parameters)
