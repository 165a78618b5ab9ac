"""Between numpy and PyTorch: tensors, whatever a model returns, and what it raises."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, NoReturn

import ml_dtypes
import numpy as np
import torch

from tidegate.errors import InferenceFailed, InsufficientMemory
from tidegate.types import Array, DType

TORCH_DTYPES = {
    DType.BOOL: torch.bool,
    DType.UINT8: torch.uint8,
    DType.UINT16: torch.uint16,
    DType.UINT32: torch.uint32,
    DType.UINT64: torch.uint64,
    DType.INT8: torch.int8,
    DType.INT16: torch.int16,
    DType.INT32: torch.int32,
    DType.INT64: torch.int64,
    DType.FP16: torch.float16,
    DType.BF16: torch.bfloat16,
    DType.FP32: torch.float32,
    DType.FP64: torch.float64,
}
DTYPES = {found: dtype for dtype, found in TORCH_DTYPES.items()}
_NO_MEMORY = re.compile(
    r"can't allocate memory|cannot allocate memory|not enough memory|out of memory|bad_alloc"
    r"|ALLOC_FAILED|failed to allocate|could not create a memory",
    re.IGNORECASE,
)
_NATIVE_TRACE = re.compile(r"\s*(Exception raised from|C\+\+ CapturedTraceback|frame #0).*", re.S)
_SCRIPT_TRACE = "The following operation failed in the TorchScript interpreter."
_RAISED = re.compile(r"^(?:builtins\.)?(\w*(?:Error|Exception)): ", re.M)
_LONGEST = 1000


def to_torch(array: Array, device: torch.device) -> torch.Tensor:
    """Return ``array`` as a tensor on ``device``; a model may write into it."""
    if not array.flags.writeable:
        array = array.copy()  # it lies over the bytes of a request
    if array.dtype == ml_dtypes.bfloat16:
        tensor = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    else:
        tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.to(device)


def to_numpy(name: str, tensor: torch.Tensor, dtype: DType) -> Array:
    """Return a model's output on the CPU, contiguous, as ``dtype``.

    Raises:
        InferenceFailed: it is of another kind than ``dtype``, or no dense tensor.
    """
    if tensor.layout is not torch.strided or tensor.is_quantized:
        raise InferenceFailed(
            f"the output {name!r} is a {tensor.layout} tensor of {tensor.dtype}, which no answer "
            "can carry: let the model return a dense one (to_dense, dequantize)"
        )
    wanted = TORCH_DTYPES[dtype]
    if tensor.dtype is not wanted:
        if not (tensor.dtype.is_floating_point and wanted.is_floating_point):
            raise InferenceFailed(
                f"the output {name!r} is {type_name(tensor.dtype)}, but the signature says "
                f"{dtype.value}: correct signature.outputs in model.yaml"
            )
        tensor = tensor.to(wanted)
    tensor = tensor.cpu().contiguous()
    if wanted is torch.bfloat16:
        tensor = tensor.view(torch.int16)
    array: Array = tensor.numpy()
    return array.view(ml_dtypes.bfloat16) if wanted is torch.bfloat16 else array


def type_name(dtype: torch.dtype) -> str:
    """Return the protocol's name of a type, or PyTorch's where the protocol has none."""
    found = DTYPES.get(dtype)
    return str(dtype) if found is None else found.value


def named_leaves(result: Any, leaf: type = torch.Tensor) -> list[tuple[str, Any]]:
    """Return what a model returned as named tensors, in its order.

    A mapping, a named tuple or a dataclass names its own; those of tuples and lists are
    ``output_0``, ``output_1`` and so on, and a single tensor is ``output``. ``None`` is left out,
    and plain numbers are tensors without dimensions.

    Raises:
        InferenceFailed: there is something else in it, or no tensor at all.
    """
    if isinstance(result, leaf):
        return [("output", result)]
    if type(result) is tuple and result and all(isinstance(item, leaf) for item in result):
        # The usual case, without a generator.
        return [(f"output_{index}", item) for index, item in enumerate(result)]
    found = list(_walk("", result, leaf))
    if not found:
        raise InferenceFailed(f"the model returned no tensor, but {result!r:.80}")
    return found


def _walk(name: str, value: Any, leaf: type) -> Iterator[tuple[str, Any]]:
    if value is None:
        return
    if isinstance(value, leaf):
        yield name or "output", value
    elif isinstance(value, bool | int | float) and leaf is torch.Tensor:
        yield name or "output", torch.tensor(value)
    else:
        for key, item in _items(name, value):
            yield from _walk(f"{name}_{key}" if name else key, item, leaf)


def _items(name: str, value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [(str(key), item) for key, item in value.items()]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return list(zip(value._fields, value))
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [(str(i) if name else f"output_{i}", item) for i, item in enumerate(value)]
    if is_dataclass(value) and not isinstance(value, type):
        return [(each.name, getattr(value, each.name)) for each in fields(value)]
    raise InferenceFailed(
        f"the model returned a {type(value).__name__} in its output {name or 'output'!r}, which "
        "no answer can carry: return tensors"
    )


def reraise(error: BaseException, kind: type[Exception], prefix: str = "") -> NoReturn:
    """Raise ``kind`` with the words of PyTorch's ``error``, or InsufficientMemory.

    Raises:
        InsufficientMemory: the error is that there is no memory, on the CPU or a GPU.
    """
    words = said(error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or _NO_MEMORY.search(str(error)):
        if torch.cuda.is_initialized():
            # What the failed run held is of use to the next, smaller one only in whole blocks.
            torch.cuda.empty_cache()
        raise InsufficientMemory(words or "PyTorch could not allocate memory") from error
    raise kind(prefix + words) from error


def said(error: BaseException) -> str:
    """Return the words of an error in one line, without the traces of native code."""
    kind, text = type(error).__name__, _NATIVE_TRACE.sub("", str(error))
    if text.startswith(_SCRIPT_TRACE):
        # What was raised comes after the places that it came through.
        raised = list(_RAISED.finditer(text))
        if raised:
            kind, text = raised[-1][1], text[raised[-1].end() :]
    words = " ".join(text.split())
    if kind not in ("RuntimeError", "Error") or not words:
        words = f"{kind}: {words}"
    return words if len(words) <= _LONGEST else words[:_LONGEST] + " …"
