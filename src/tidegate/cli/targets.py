"""What ``tidegate infer`` asks: a model in this process, or one of a server."""

from __future__ import annotations

import os
import sys
import time
from contextlib import chdir, nullcontext
from pathlib import Path
from typing import Protocol

from tidegate.cli.serving import check_serving_parts
from tidegate.client.blocking import Client
from tidegate.config.loading import nearest
from tidegate.errors import ConfigurationError, InvalidModel, ModelNotFound, RuntimeMissing
from tidegate.repository.entries import ModelEntry, Repository
from tidegate.repository.layout import is_model_folder, read_model, scan
from tidegate.types import InferRequest, InferResponse, Signature, Tensor


class Target(Protocol):
    """A model that can be asked."""

    @property
    def model(self) -> str:
        """Its name."""

    @property
    def signature(self) -> Signature:
        """The tensors in and out."""

    def infer(self, request: InferRequest) -> InferResponse:
        """Run the model once.

        Raises:
            TidegateError: why there is no answer.
        """

    def close(self) -> None:
        """Let go of it."""


class LocalModel:
    """One version of a model, loaded by this process; no server is needed."""

    def __init__(self, entry: ModelEntry, version: int, device: str | None) -> None:
        check_serving_parts()
        from tidegate.controller.machine import usable_cores
        from tidegate.node.environments import is_own
        from tidegate.replica.binding import binding
        from tidegate.replica.loading import load
        from tidegate.runtimes.interface import RuntimeOptions

        found = entry.versions[version]
        config = entry.config
        if device is not None:
            config = config.model_copy(update={"device": device})
        if config.interpreter is not None and not is_own(config.interpreter, sys.executable):
            raise ConfigurationError(
                f"{entry.name} runs in another Python, which this one cannot load: ask it with "
                f"'{config.interpreter} -m tidegate infer', or serve it"
            )
        threads = config.resources.threads or round(config.resources.cpu or usable_cores())
        options = RuntimeOptions(config.device, max(1, threads), found.folder, config)
        self.model = entry.name
        self._version = str(version)
        loaded = load(found.runtime, found.path, options)
        self._model = loaded.model
        self.signature = loaded.public
        self._binder = binding(
            self._model.signatures, dict.fromkeys(self._model.signatures, False)
        )
        self._home = loaded.home
        self._hooks = loaded.hooks(self._binder)
        self._runner = loaded.runner(time.monotonic)

    def infer(self, request: InferRequest) -> InferResponse:
        """Check the request against the signature and run the model, hooks included."""
        with nullcontext() if self._home is None else chdir(self._home):
            return self._infer(request)

    def _infer(self, request: InferRequest) -> InferResponse:
        hooks = self._hooks
        prepared = None if hooks is None else hooks.prepare(request)
        bound = self._binder.bind(request) if prepared is None else prepared.bound
        (outcome,) = self._runner.run([bound]).outcomes
        if isinstance(outcome, BaseException):
            raise outcome
        if hooks is not None and prepared is not None:
            response = hooks.finish(request, prepared, outcome)
            response.model, response.version = self.model, self._version
            return response
        tensors = tuple(Tensor.of(name, array) for name, array in outcome.items())
        return InferResponse(self.model, self._version, request.id, tensors)

    def close(self) -> None:
        """Free what the model holds."""
        self._model.close()


class ServedModel:
    """A model of a server of the Open Inference Protocol, by HTTP or gRPC."""

    def __init__(self, client: Client, model: str, version: int | None) -> None:
        self.model = model
        self._client = client
        self._handle = self._client.model(model, version)
        self.signature = self._handle.metadata().signature

    def infer(self, request: InferRequest) -> InferResponse:
        """Send the request; the server checks it."""
        answer = self._handle.infer(
            {tensor.name: tensor.data for tensor in request.inputs},
            [output.name for output in request.outputs] or None,
            parameters=dict(request.parameters) or None,
            request_id=request.id or None,
        )
        tensors = tuple(Tensor.of(name, array) for name, array in answer.items())
        return InferResponse(
            answer.model or self.model, answer.version, answer.id, tensors, answer.parameters
        )

    def close(self) -> None:
        """Close the connections; calls that run are cut."""
        self._client.close()


def is_path(model: str) -> bool:
    """Whether ``model`` is a path here, or can be nothing else."""
    return os.sep in model or os.path.exists(model)  # noqa: PTH110 - no error for any text


def local_model(
    path: Path, name: str | None, version: int | None, device: str | None
) -> LocalModel:
    """Load a model: a file, a model's folder, or one of a repository.

    Raises:
        ConfigurationError: there is nothing at ``path``, or several models and no name.
        ModelNotFound: the repository has no such model, or the model no such version.
        InvalidModel: it cannot be served.
        RuntimeMissing: its runtime is not installed.
    """
    if not os.path.exists(path):  # noqa: PTH110 - no error for any text
        raise ConfigurationError(f"{path} does not exist; give the path of a model or repository")
    entry = _entry(path, name)
    if not entry.versions:
        reasons = "; ".join(map(str, entry.problems)) or "there is no model in it"
        skipped = entry.problems and all(p.kind == "skipped" for p in entry.problems)
        raise (RuntimeMissing if skipped else InvalidModel)(f"{path}: {reasons}")
    if version is None:
        served = entry.config.versions.select(list(entry.versions)) or tuple(entry.versions)
        version = served[-1]
    if version not in entry.versions:
        there = ", ".join(map(str, sorted(entry.versions)))
        raise ModelNotFound(
            f"the model {entry.name!r} has no version {version}; there are {there}"
        )
    return LocalModel(entry, version, device)


def _entry(path: Path, name: str | None) -> ModelEntry:
    if path.is_dir() and not is_model_folder(path):
        return _of_repository(path, scan(path), name)
    entry = read_model(path)
    if name not in (None, entry.name):
        raise ModelNotFound(f"{path} is the model {entry.name!r} itself, and has no {name!r}")
    return entry


def _of_repository(path: Path, found: Repository, name: str | None) -> ModelEntry:
    models = found.models
    if not models:
        raise ConfigurationError(f"there is no model in {path}")
    if name is None and len(models) > 1:
        raise ConfigurationError(
            f"{path} holds several models ({', '.join(sorted(models))}); choose one with --model"
        )
    chosen = next(iter(models)) if name is None else name
    if chosen not in models:
        raise ModelNotFound(f"{path} has no model {chosen!r}; {nearest(chosen, models)}")
    return models[chosen]
