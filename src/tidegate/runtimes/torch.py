"""PyTorch models: TorchScript, ``torch.export``, and weights with their code.

API: https://docs.pytorch.org/docs/stable/.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tidegate.errors import ConfigurationError, InferenceFailed, InvalidModel, TidegateError
from tidegate.repository import formats
from tidegate.runtimes.interface import OneSignature, RuntimeOptions
from tidegate.runtimes.learning import Output, find_signature
from tidegate.runtimes.samples import samples_of
from tidegate.runtimes.torch_program import Call, Program, open_program
from tidegate.runtimes.torch_signature import of_export, refuse_bytes
from tidegate.runtimes.torch_tensors import (
    DTYPES,
    named_leaves,
    reraise,
    said,
    to_numpy,
    to_torch,
    type_name,
)
from tidegate.types import Array, DType, Signature, TensorSpec

_GRAIN = 32768
"""``at::internal::GRAIN_SIZE``: the elements that are worth a thread."""
_COMPILER_ERRORS = frozenset({"BackendCompilerFailed", "InductorError"})
"""Of :mod:`torch._dynamo.exc`, which is slow to import."""
_REDUCED = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True)
class Reduced:
    """The type in which matrix products and convolutions are run, where it is not their own."""

    dtype: torch.dtype | None

    @classmethod
    def of(cls, options: RuntimeOptions) -> Reduced:
        """Return what ``precision`` says."""
        return cls(_REDUCED.get(options.config.precision or ""))

    def context(self, device: torch.device) -> contextlib.AbstractContextManager[Any]:
        """Return the context in which they are."""
        if self.dtype is None:
            return contextlib.nullcontext()
        context: contextlib.AbstractContextManager[Any] = torch.autocast(device.type, self.dtype)
        return context


class _Runner:
    """Calls a model: arrays in, named tensors out."""

    def __init__(self, call: Call, device: torch.device, options: RuntimeOptions) -> None:
        config = options.config
        self._call = call
        self._device = device
        self._channels_last = config.torch.channels_last
        self._reduced = Reduced.of(options)

    def run(self, arrays: Sequence[Array]) -> list[tuple[str, torch.Tensor]]:
        """Run once.

        Raises:
            InsufficientMemory: there was not enough.
            InferenceFailed: the model raised, or gave what is no tensor.
        """
        try:
            tensors = [to_torch(array, self._device) for array in arrays]
            if self._channels_last:
                tensors = [_with_channels_last(tensor) for tensor in tensors]
            with torch.inference_mode(), self._reduced.context(self._device):
                return named_leaves(self._call(*tensors))
        except TidegateError:
            raise
        except Exception as error:
            if type(error).__name__ in _COMPILER_ERRORS:
                words = said(error).partition(" Set TORCHDYNAMO")[0]
                raise ConfigurationError(
                    f"torch.compile could not compile the model: {words}; on a CPU it needs a C++ "
                    "compiler (g++ or clang++); or write torch: {compile: false}"
                ) from error
            reraise(error, InferenceFailed)

    def public_dtype(self, name: str, dtype: torch.dtype) -> DType:
        """Return the type that an answer has; one that only autocast brought is FP32."""
        if dtype is self._reduced.dtype:
            return DType.FP32
        found = DTYPES.get(dtype)
        if found is None:
            raise InvalidModel(
                f"the output {name!r} is {type_name(dtype)}, which no protocol has: convert it "
                "in the model"
            )
        return found


class TorchModel(OneSignature):
    """A model of PyTorch; meets :class:`~tidegate.runtimes.interface.Model`."""

    def __init__(
        self,
        runner: _Runner,
        program: Program,
        device: torch.device,
        signature: Signature,
        most_rows: int | None,
    ) -> None:
        self._runner = runner
        self._inputs = tuple(spec.name for spec in signature.inputs)
        self._outputs = signature.outputs
        self._places = {spec.name: place for place, spec in enumerate(signature.outputs)}
        self.platform = program.platform
        self.native = program.module
        """The ``torch.nn.Module``."""
        self.device = str(device)
        self.signature = signature
        self.most_rows = most_rows

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """Run once; see :meth:`tidegate.runtimes.interface.Model.run`.

        Raises:
            InsufficientMemory: the run needed more memory than there is, on the CPU or a GPU.
            InferenceFailed: the model raised; the message is its own.
        """
        found = self._matched(self._runner.run([inputs[name] for name in self._inputs]))
        places, specs = self._places, self._outputs
        try:
            return {
                name: to_numpy(name, found[places[name]], specs[places[name]].dtype)
                for name in outputs
            }
        except TidegateError:
            raise
        except Exception as error:
            # What a GPU could not do is said when its results are fetched.
            reraise(error, InferenceFailed)

    def _matched(self, found: list[tuple[str, torch.Tensor]]) -> list[torch.Tensor]:
        """Return the outputs of the signature, by their names if the model gives these."""
        by_name = dict(found)
        if self._places.keys() <= by_name.keys():
            return [by_name[name] for name in self._places]
        if len(found) == len(self._places):
            return [tensor for _, tensor in found]
        raise InferenceFailed(
            f"the model gave the outputs {', '.join(by_name)}, but the signature says "
            f"{', '.join(self._places)}: correct signature.outputs in model.yaml"
        )

    def attach(self) -> None:
        """Start the threads that OpenMP keeps for the thread that calls this.

        It starts them in the first operator that is worth it, and ends the process when there
        is no room for them then.
        """
        start_threads()

    def close(self) -> None:
        """Free the model."""
        del self._runner, self.native
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def load(path: Path, options: RuntimeOptions) -> TorchModel:
    """Load the model at ``path``, whatever of PyTorch's formats it is in.

    Raises:
        InvalidModel: PyTorch refuses it, its code raised, it is a pickle that nobody vouched
            for, or nothing says what it takes.
        InsufficientMemory: it does not fit.
        ConfigurationError: a GPU is asked for that PyTorch cannot use, or ``model.yaml``
            contradicts the model.
    """
    device = prepare_device(options)
    try:
        kind = formats.detect(path).name
    except OSError as error:
        raise InvalidModel(f"{path.name} cannot be read: {error.strerror}") from error
    program = open_program(path, kind, options, device)
    model = _with_signature(path, program, options, device)
    if options.config.torch.compile:
        _compile(model, options)
    return model


def prepare_device(options: RuntimeOptions) -> torch.device:
    """Return where a model is to run, after PyTorch was told of its threads.

    Raises:
        ConfigurationError: a GPU is asked for that PyTorch cannot use.
    """
    device = _device(options.device)
    torch.set_num_threads(options.threads)
    with contextlib.suppress(RuntimeError):  # it can be said once in a process
        torch.set_num_interop_threads(1)
    start_threads()
    return device


def _compile(model: TorchModel, options: RuntimeOptions) -> None:
    """Run a model that is to be compiled, which is when that happens."""
    inputs = samples_of(options).make(model.signature.inputs, 2)
    if inputs is None:
        return
    names = [spec.name for spec in model.signature.inputs]
    # What the model says of inputs that are made up is of no concern.
    with contextlib.suppress(InferenceFailed):
        model.run(dict(zip(names, inputs)), [])


def start_threads() -> None:
    """Run an operator on as many threads as there are."""
    torch.empty(torch.get_num_threads() * _GRAIN).fill_(0)


def devices() -> tuple[str, ...]:
    """Return the kinds of device that this PyTorch can use here."""
    return ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)


def _with_signature(
    path: Path, program: Program, options: RuntimeOptions, device: torch.device
) -> TorchModel:
    declared = options.config.signature
    if program.exported is not None:
        signature = of_export(program.exported.signature, declared)
        runner = _Runner(program.call, device, options)
        most_rows = program.exported.most_rows
        return TorchModel(runner, program, device, signature, most_rows)

    def run(specs: Sequence[TensorSpec], arrays: Sequence[Array]) -> list[Output]:
        refuse_bytes(specs)
        call = program.parameters.order(program.call, [spec.name for spec in specs])
        runner = _Runner(call, device, options)
        return [
            Output(name, runner.public_dtype(name, tensor.dtype), tuple(tensor.shape))
            for name, tensor in runner.run(arrays)
        ]

    samples = samples_of(options)
    signature = find_signature(path.name, program.parameters.names, declared, samples, run)
    refuse_bytes(signature.inputs)
    names = [spec.name for spec in signature.inputs]
    runner = _Runner(program.parameters.order(program.call, names), device, options)
    return TorchModel(runner, program, device, signature, None)


def _device(wanted: str) -> torch.device:
    kind, _, number = wanted.partition(":")
    if kind == "cpu" or (kind == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        built = torch.version.cuda
        found = f"is built for CUDA {built} but finds no GPU" if built else "is built without CUDA"
        raise ConfigurationError(
            f"device: {wanted} needs a GPU, but PyTorch {torch.__version__} {found}; install a "
            "build with CUDA (https://pytorch.org/get-started/locally/), or use device: cpu"
        )
    count = torch.cuda.device_count()
    index = int(number or 0)
    if index >= count:
        raise ConfigurationError(
            f"device: {wanted} is not here: PyTorch sees {count} GPU{'s' if count > 1 else ''}, "
            f"cuda:0 to cuda:{count - 1}"
        )
    return torch.device("cuda", index)


def _with_channels_last(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.ndim != 4 or not tensor.is_floating_point():
        return tensor
    return tensor.contiguous(memory_format=torch.channels_last)
