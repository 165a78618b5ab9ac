"""A whole PyTorch module that is called with whatever code beside it makes of a request.

Nothing is known of what it takes or gives: values pass in and out as they are, each *boxed* in an
array of objects without dimensions. Tensors in them are moved to the model's device and back.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tidegate.errors import ConfigurationError, InferenceFailed, RequestError
from tidegate.repository import formats
from tidegate.runtimes.interface import OneSignature, RuntimeOptions
from tidegate.runtimes.torch import Reduced, prepare_device, start_threads
from tidegate.runtimes.torch_program import open_program
from tidegate.runtimes.torch_tensors import named_leaves, reraise
from tidegate.types import Array, DType, Signature, TensorSpec

BOX = ""
"""The name of what goes in, and of what comes out."""


_BOXED = TensorSpec(BOX, DType.BYTES, ())


def boxed(value: Any) -> Array:
    """Return an array of objects that holds ``value`` alone."""
    box = np.empty((), np.object_)
    box[()] = value
    return box


class WholeModel(OneSignature):
    """A module; meets :class:`~tidegate.runtimes.interface.Model` with boxed values.

    What goes in is a function that is given the module and its device, what comes out is what the
    function returned.
    """

    signature = Signature((_BOXED,), (_BOXED,))
    most_rows: int | None = None

    def __init__(self, module: Any, device: torch.device, platform: str, reduced: Reduced) -> None:
        self.native = module
        self.platform = platform
        self.device = str(device)
        self._device = device
        self._reduced = reduced

    @property
    def dtype(self) -> Any:
        """The type of numpy's that is the module's floating-point type, if it has one."""
        for parameter in self.native.parameters():
            if parameter.is_floating_point():
                return _NUMPY.get(parameter.dtype)
        return None

    def without_gradients(self) -> AbstractContextManager[Any]:
        """Return the context in which everything around the model is run, in any thread."""
        context: AbstractContextManager[Any] = torch.no_grad()
        return context

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """Let the boxed function call the module, and move what it returns to the CPU.

        Raises:
            RequestError: the function raised it on purpose.
            InsufficientMemory: the run needed more memory than there is, on the CPU or a GPU.
            InferenceFailed: it raised anything else.
        """
        call: Any = inputs[BOX][()]
        if not callable(call):
            return {BOX: boxed(None)}  # a sample: nobody knows what it takes
        try:
            with torch.no_grad(), self._reduced.context(self._device):
                found = call(self.native, self._to_device)
                return {BOX: boxed(moved(found, torch.device("cpu")))}
        except RequestError:
            raise
        except Exception as error:
            reraise(error, InferenceFailed)

    def _to_device(self, value: Any) -> Any:
        return moved(value, self._device)

    def attach(self) -> None:
        """Start the threads that OpenMP keeps for the thread that calls this."""
        start_threads()

    def close(self) -> None:
        """Free the module."""
        del self.native
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


_NUMPY = {torch.float32: np.float32, torch.float64: np.float64, torch.float16: np.float16}


def load(path: Path, options: RuntimeOptions) -> WholeModel:
    """Load the module at ``path``: a whole pickle, or TorchScript.

    Raises:
        InvalidModel: it cannot be loaded, or is a pickle that nobody vouched for.
        InsufficientMemory: it does not fit.
        ConfigurationError: a GPU is asked for that PyTorch cannot use, or requests are to be
            joined, of which nothing is known.
    """
    if options.config.batching.enabled is True:
        raise ConfigurationError(
            "batching.enabled is true, but nothing says what run_model and the module take: "
            "remove it, or write hooks.py with a signature"
        )
    device = prepare_device(options)
    program = open_program(path, formats.detect(path).name, options, device)
    reduced = Reduced.of(options)
    return WholeModel(program.module, device, program.platform, reduced)


def from_array(array: Array, dtype: Any) -> Any:
    """Return an array as a tensor; numbers of another floating-point type become ``dtype``."""
    if dtype is not None and array.dtype.kind == "f":
        array = array.astype(dtype)
    try:
        return torch.from_numpy(array)
    except TypeError as error:
        raise InferenceFailed(
            f"an array of {array.dtype} is no tensor: write preprocess in processor.py"
        ) from error


def leaves(value: Any) -> list[tuple[str, Array]]:
    """Return the tensors in what a module returned as arrays by name."""
    found = []
    for name, tensor in named_leaves(value):
        tensor = tensor.detach()
        found.append(
            (name, (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy())
        )
    return found


def moved(value: Any, device: torch.device) -> Any:
    """Return ``value`` with every tensor in it on ``device``; what cannot hold any is the same."""
    if isinstance(value, torch.Tensor):
        return value if value.device == device else value.to(device)
    if isinstance(value, Mapping):
        return _moved_mapping(value, device)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(moved(item, device) for item in value))
    if isinstance(value, list | tuple):
        return type(value)(moved(item, device) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changed = {
            f.name: moved(getattr(value, f.name), device) for f in dataclasses.fields(value)
        }
        return dataclasses.replace(value, **changed)
    if hasattr(value, "to") and not isinstance(value, type):
        return value.to(device)  # as packed sequences and the batches of tokenizers
    return value


def _moved_mapping(value: Mapping[Any, Any], device: torch.device) -> Any:
    items = {key: moved(item, device) for key, item in value.items()}
    if type(value) is dict:
        return items
    changed: Any = copy.copy(value)
    try:
        for key, item in items.items():
            changed[key] = item
    except TypeError:  # it cannot be changed
        return items
    return changed
