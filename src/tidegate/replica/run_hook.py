"""``run_model``: a hook in the place of the model, which it may call as often as it likes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tidegate.errors import InferenceFailed, InvalidInput
from tidegate.hooks import Batch
from tidegate.replica.batch import BatchRunner, Ran
from tidegate.replica.binding import Bound
from tidegate.replica.hooks import HookedBound, called
from tidegate.replica.values import tensor_of
from tidegate.runtimes.interface import Model
from tidegate.types import Array, Json, Parameter, Signature, TensorSpec

log = logging.getLogger(__name__)

RunModel = Callable[["Handle", Batch], Any]


class Parameters:
    """Those of the batch that is being run, which all of its requests share."""

    __slots__ = ("current", "made_up")

    def __init__(self, group_by: Sequence[str] = ()) -> None:
        self.current: Mapping[str, Parameter | Json] = dict.fromkeys(group_by)
        self.made_up = True
        """There was no request yet: what is run is a warm-up, or a trial of batching."""


class Handle:
    """The model itself; meets :class:`tidegate.hooks.Model`."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self.signature = model.signature
        self.device = model.device
        self._outputs = tuple(spec.name for spec in model.signature.outputs)

    @property
    def native(self) -> Any:
        """The framework's own object, where the runtime has one."""
        return getattr(self._model, "native", None)

    def __call__(
        self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None
    ) -> dict[str, Array]:
        """Run the model once; see :class:`tidegate.hooks.Model`."""
        return self._model.run(inputs, self._outputs if outputs is None else outputs)


class HookedModel:
    """A model that is run by ``run_model``; meets :class:`~tidegate.runtimes.interface.Model`.

    ``outputs`` are what ``run_model`` gives if that is not what the model gives.
    """

    def __init__(
        self,
        model: Model,
        run_model: RunModel,
        parameters: Parameters,
        outputs: tuple[TensorSpec, ...] | None = None,
    ) -> None:
        self._model = model
        self._run_model = run_model
        self._parameters = parameters
        self._given = outputs
        self._handle = Handle(model)
        self.platform = model.platform
        self.device = model.device
        self.most_rows = model.most_rows
        self.signature = self._changed(model.signature)
        self._dtypes = {spec.name: spec.dtype for spec in self.signature.outputs}

    @property
    def signatures(self) -> Mapping[str, Signature]:
        """Those of the model."""
        return {name: self._changed(found) for name, found in self._model.signatures.items()}

    def under(self, signature: str) -> HookedModel:
        """Return it with another of the model's signatures."""
        model = self._model.under(signature)
        return HookedModel(model, self._run_model, self._parameters, self._given)

    def _changed(self, signature: Signature) -> Signature:
        return signature if self._given is None else Signature(signature.inputs, self._given)

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """Let the hook run the model once.

        Raises:
            RequestError: the hook raised it on purpose.
            InsufficientMemory: the run needed more memory than there is.
            InferenceFailed: the hook raised anything else, or gave what is no output.
        """
        wanted = (
            outputs
            if self._given is None
            else [spec.name for spec in self._model.signature.outputs]
        )
        batch = Batch(inputs, wanted, self._parameters.current)
        try:
            found = called("run_model", self._run_model, self._handle, batch)
        except (InferenceFailed, InvalidInput) as error:
            if not self._parameters.made_up or self._given is not None:
                raise
            log.info(
                "run_model does not take a made-up sample, the model is tried alone: %s", error
            )
            return self._model.run(inputs, outputs)
        if not isinstance(found, Mapping):
            if len(self._dtypes) != 1:
                raise InferenceFailed(
                    f"run_model returned a {type(found).__name__}, but the outputs are "
                    f"{', '.join(map(repr, self._dtypes))}: return a dict of arrays by these names"
                )
            found = {next(iter(self._dtypes)): found}
        missing = [name for name in outputs if name not in found]
        if missing:
            raise InferenceFailed(
                f"run_model returned {', '.join(map(repr, found)) or 'nothing'}, but not "
                f"{', '.join(map(repr, missing))}"
            )
        return {
            name: tensor_of("what run_model returned", name, found[name], self._dtypes[name]).data
            for name in outputs
        }

    def attach(self) -> None:
        """Make the thread that calls this ready to run the model."""
        self._model.attach()

    def close(self) -> None:
        """Free what the model holds."""
        self._model.close()


class HookedRunner(BatchRunner):
    """Runs batches, and tells ``run_model`` what the requests of each share."""

    def __init__(self, model: Model, time: Callable[[], float], parameters: Parameters) -> None:
        super().__init__(model, time)
        self._parameters = parameters

    def run(self, batch: Sequence[Bound]) -> Ran:
        """Run ``batch``, requests of one group; it never raises."""
        first = batch[0]
        if isinstance(first, HookedBound):
            self._parameters.made_up = False
            self._parameters.current = first.parameters
        return super().run(batch)
