"""OpenVINO on CPUs: its own IR, and models of other frameworks that it reads.

API: https://docs.openvino.ai/2026/api/ie_python_api/api.html.
"""

from __future__ import annotations

import re
import resource
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import ml_dtypes
import numpy as np
import psutil

from tidegate.config.model import ModelConfig
from tidegate.errors import (
    ConfigurationError,
    InferenceFailed,
    InsufficientMemory,
    InvalidInput,
    InvalidModel,
    TidegateError,
)
from tidegate.repository import formats
from tidegate.runtimes.declared import refined
from tidegate.runtimes.interface import OneSignature, RuntimeOptions
from tidegate.runtimes.onnx_file import external_files, shapes
from tidegate.runtimes.openvino_quiet import openvino
from tidegate.types import Array, Dimension, DType, Signature, TensorSpec

_CPU = "CPU"
_BATCH = "batch"
VERSION = openvino.__version__.partition("-")[0]
_DTYPES = {
    "boolean": DType.BOOL,
    "u8": DType.UINT8,
    "u16": DType.UINT16,
    "u32": DType.UINT32,
    "u64": DType.UINT64,
    "i8": DType.INT8,
    "i16": DType.INT16,
    "i32": DType.INT32,
    "i64": DType.INT64,
    "f16": DType.FP16,
    "bf16": DType.BF16,
    "f32": DType.FP32,
    "f64": DType.FP64,
}
_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
_NARROWED = (DType.INT64, DType.UINT64)
"""OpenVINO computes these in 32 bits on CPUs, without a word of what does not fit."""
_SMALLEST, _LARGEST = -(2**31), 2**31 - 1
_NO_MEMORY = re.compile(
    r"bad_alloc|bad allocation|cannot allocate|can't allocate|out of memory|not enough memory"
    r"|failed to allocate|could not create a memory|can't alloc|std::length_error"
    r"|Resource temporarily unavailable",
    re.IGNORECASE,
)
_PLACES = re.compile(
    r"(Exception from \S+:\d+:|Check '.*?' failed at \S+:\d+:|Caught exception:)\s*"
)
_CORES: list[Any] = []
"""Every Core, for good. Its CPU plugin gives the thread a stack for signals, and takes it away
with the Core; when two do that in turns, the next signal, as Ctrl-C, ends the process (2026.4)."""
_COMPILING = 64 * 2**20
"""Bytes that compiling takes beside the weights, for threads and code."""
_LONGEST = 1000


class OpenVinoModel(OneSignature):
    """A model that OpenVINO compiled; meets :class:`~tidegate.runtimes.interface.Model`."""

    platform = "openvino"
    device = "cpu"

    def __init__(
        self,
        requests: Sequence[Any],
        signature: Signature,
        most_rows: int | None,
        reopen: Callable[[], Sequence[Any]],
    ) -> None:
        self._requests = requests
        self._reopen = reopen
        self._inputs = tuple((spec.name, _to_tensor(spec.dtype)) for spec in signature.inputs)
        self._narrowed = [
            place for place, spec in enumerate(signature.inputs) if spec.dtype in _NARROWED
        ]
        self._places = {spec.name: place for place, spec in enumerate(signature.outputs)}
        self._bf16 = {spec.name for spec in signature.outputs if spec.dtype is DType.BF16}
        self.signature = signature
        self.most_rows = most_rows

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """Run once; see :meth:`tidegate.runtimes.interface.Model.run`.

        With several streams, the rows are divided among them.

        Raises:
            InvalidInput: an integer of more than 32 bits.
            InsufficientMemory: the run needed more memory than there is.
            InferenceFailed: OpenVINO raised; the message is its own.
        """
        arrays = [np.require(inputs[name], requirements=("C", "W")) for name, _ in self._inputs]
        for place in self._narrowed:
            _check_integers(self._inputs[place][0], arrays[place])
        try:
            self._requests = self._requests or self._reopen()
            if len(self._requests) > 1 and len(arrays[0]) > 1:
                return self._run_divided(arrays, outputs)
            request = self._requests[0]
            for place, ((_, tensor), array) in enumerate(zip(self._inputs, arrays)):
                request.set_input_tensor(place, tensor(array))
            # Not infer(): with one thread it gives empty tensors for shapes that do not fit.
            request.start_async()
            request.wait()
            return {name: self._output(request, name) for name in outputs}
        except Exception as error:
            if _is_about_memory(error):
                # What it lacked for many rows it asks for again for one: the next run starts anew.
                self._requests = ()
            reraise(error, InferenceFailed)

    def _run_divided(self, arrays: Sequence[Array], outputs: Sequence[str]) -> dict[str, Array]:
        """Run the rows in as many parts as there are streams, at the same time."""
        count = min(len(self._requests), len(arrays[0]))
        parts = zip(*(np.array_split(array, count) for array in arrays))
        running = []
        try:
            for request, part in zip(self._requests, parts):
                for place, ((_, tensor), array) in enumerate(zip(self._inputs, part)):
                    request.set_input_tensor(place, tensor(array))
                request.start_async()
                running.append(request)
        finally:
            errors = [error for request in running if (error := _outcome(request)) is not None]
        if errors:
            raise errors[0]
        return {
            name: np.concatenate([self._output(request, name) for request in running])
            for name in outputs
        }

    def _output(self, request: Any, name: str) -> Array:
        # A copy: the next run writes where this lies.
        array: Array = request.get_output_tensor(self._places[name]).data.copy()
        return array.view(ml_dtypes.bfloat16) if name in self._bf16 else array

    def attach(self) -> None:
        """Nothing: OpenVINO's threads serve whoever calls."""

    def close(self) -> None:
        """Free the model."""
        self._requests = ()


def load(path: Path, options: RuntimeOptions) -> OpenVinoModel:
    """Load the model at ``path``: IR (its weights in a ``.bin`` beside it), ONNX, SavedModel.

    Raises:
        InvalidModel: OpenVINO refuses it, or it has inputs or outputs of a type that cannot
            be served.
        InsufficientMemory: it does not fit.
        ConfigurationError: a GPU is asked for, or a precision that this CPU does not have, or
            streams for a model that cannot use them, or ``signature`` in model.yaml contradicts
            the model.
    """
    kind = options.device.partition(":")[0]
    if kind not in ("auto", _CPU.lower()):
        raise ConfigurationError(
            f"device: {options.device} is not for the runtime openvino, which serves on CPUs: "
            "remove the key, or use another runtime"
        )
    _check_room(path)

    def requests() -> list[Any]:
        core = openvino.Core()
        _CORES.append(core)
        capabilities = core.get_property(_CPU, "OPTIMIZATION_CAPABILITIES")
        compiled = core.compile_model(path, _CPU, settings_of(options, capabilities))
        streams = int(compiled.get_property("NUM_STREAMS"))
        return [compiled.create_infer_request() for _ in range(streams)]

    try:
        opened = requests()
    except TidegateError:
        raise
    except Exception as error:
        reraise(error, InvalidModel, f"OpenVINO {VERSION} refuses {path.name}: ")
    compiled = opened[0].get_compiled_model()
    signature = refined(signature_of(path, compiled), options.config.signature)
    if len(opened) > 1:
        _check_streams(len(opened), signature, options.config)
    return OpenVinoModel(opened, signature, _most_rows(compiled), requests)


def devices() -> tuple[str, ...]:
    """Return the kinds of device that are used."""
    return ("cpu",)


def settings_of(options: RuntimeOptions, capabilities: Sequence[str]) -> dict[str, Any]:
    """Return OpenVINO's properties for a model, on a CPU of these capabilities.

    Raises:
        ConfigurationError: the CPU does not compute in the precision.
    """
    config = options.config
    precision = config.precision or "fp32"
    if precision.upper() not in capabilities:
        here = [name for name in _HINTS if name.upper() in capabilities]
        raise ConfigurationError(
            f"precision: {precision} is nothing that OpenVINO computes in on this CPU; it has "
            f"{' and '.join(here)}"
        )
    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": _HINTS[precision],
        "PERFORMANCE_HINT": config.openvino.hint.upper(),
        "INFERENCE_NUM_THREADS": options.threads,
        # Replicas would all be pinned to the same cores.
        "ENABLE_CPU_PINNING": False,
    }
    if precision == "fp32":
        # Left to itself, OpenVINO quantises what it multiplies with compressed weights.
        settings["EXECUTION_MODE_HINT"] = "ACCURACY"
    if config.openvino.streams is not None:
        settings["NUM_STREAMS"] = str(config.openvino.streams)
    return settings


def signature_of(path: Path, compiled: Any) -> Signature:
    """Return the tensors of a compiled model.

    Dimensions have the names that an ONNX file gives them. Otherwise a dynamic first dimension
    that all tensors have is the batch: OpenVINO knows no names.

    Raises:
        InvalidModel: a tensor has a type that cannot be served.
    """
    named: Mapping[str, tuple[Dimension, ...] | None] = {}
    if _is_onnx(path):
        named = shapes(path)
    used: set[str] = set()
    inputs = [_spec(path, port, "input", named, used) for port in compiled.inputs]
    used.clear()
    outputs = [_spec(path, port, "output", named, used) for port in compiled.outputs]
    everything = (*inputs, *outputs)
    if not named and all(spec.shape and spec.shape[0] is None for spec in everything):
        inputs, outputs = ([_with_batch(spec) for spec in specs] for specs in (inputs, outputs))
    return Signature(tuple(inputs), tuple(outputs))


def reraise(error: Exception, kind: type[Exception], prefix: str = "") -> NoReturn:
    """Raise ``kind`` with the words of OpenVINO's ``error``, or InsufficientMemory.

    Raises:
        InsufficientMemory: the error is that there is no memory.
    """
    words = " ".join(_PLACES.sub("", str(error)).split())
    words = words if len(words) <= _LONGEST else words[:_LONGEST] + " …"
    if _is_about_memory(error):
        raise InsufficientMemory(words or "OpenVINO could not allocate memory") from error
    raise kind(prefix + words) from error


def _files(path: Path) -> list[Path]:
    """Return the files of a model: a SavedModel's folder, IR's weights, those of ONNX."""
    if path.is_dir():
        return list(path.rglob("*"))
    beside = external_files(path) if _is_onnx(path) else [path.with_suffix(".bin")]
    return [path, *beside]


def _is_onnx(path: Path) -> bool:
    return path.is_file() and formats.detect(path).name == "onnx"


def _is_about_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)) is not None


def _check_room(path: Path) -> None:
    """Make sure that a bound on memory leaves room to read and compile the model.

    Where there is none, OpenVINO does not always notice and ends the process.

    Raises:
        InsufficientMemory: there is none.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_DATA)
    if limit == resource.RLIM_INFINITY:
        return
    size = sum(file.stat().st_size for file in _files(path) if file.is_file())
    # Once as they are read, once in the order that suits the CPU.
    needed = _COMPILING + 2 * size
    # Only Linux tells, and only Linux minds the limit.
    used = getattr(psutil.Process().memory_info(), "data", 0)
    if used + needed > limit:
        raise InsufficientMemory(
            f"{used} bytes are in use, and about {needed} more are needed to compile the model"
        )


def _check_streams(count: int, signature: Signature, config: ModelConfig) -> None:
    if config.batching.enabled is not True:
        raise ConfigurationError(
            f"{count} streams divide the rows of a batch among them: say that rows do not mix, "
            "with batching: {enabled: true}, or write openvino: {hint: latency, streams: 1}"
        )
    for spec in (*signature.inputs, *signature.outputs):
        if not spec.shape or isinstance(spec.shape[0], int):
            raise ConfigurationError(
                f"{count} streams divide the rows of a batch among them, but {spec.name!r} of "
                f"shape {list(spec.shape or ())} has no rows: write openvino: "
                "{hint: latency, streams: 1}"
            )


def _spec(
    path: Path,
    port: Any,
    role: str,
    named: Mapping[str, tuple[Dimension, ...] | None],
    used: set[str],
) -> TensorSpec:
    name = _name(port, named, used)
    used.add(name)
    kind = port.get_element_type().get_type_name()
    dtype = _DTYPES.get(kind)
    if dtype is None:
        # Strings are a type of OpenVINO, but 2026.4 frees their memory twice.
        advice = "use the runtime of its own framework" if kind == "string" else "convert it"
        raise InvalidModel(
            f"the {role} {name!r} of {path.name} has the element type {kind}, which the runtime "
            f"openvino does not serve: {advice}"
        )
    sizes = port.get_partial_shape()
    known = named.get(name) or ()
    names = known if len(known) == len(sizes) else (None,) * len(sizes)
    return TensorSpec(name, dtype, tuple(_dimension(d, n) for d, n in zip(sizes, names)))


def _name(port: Any, named: Mapping[str, Any], used: set[str]) -> str:
    """Return a tensor's name; one tensor may have several, and one name be that of two outputs."""
    names = sorted(port.get_names() - used, key=lambda name: (name not in named, name))
    return names[0] if names else str(port.get_node().get_friendly_name())


def _dimension(dimension: Any, name: Dimension) -> Dimension:
    if dimension.is_dynamic:
        return name if isinstance(name, str) else None
    return int(dimension.get_length())


def _with_batch(spec: TensorSpec) -> TensorSpec:
    assert spec.shape is not None
    return TensorSpec(spec.name, spec.dtype, (_BATCH, *spec.shape[1:]))


def _most_rows(compiled: Any) -> int | None:
    shapes = [port.get_partial_shape() for port in compiled.inputs]
    bounds = [shape[0].max_length for shape in shapes if len(shape) and shape[0].is_dynamic]
    return min((bound for bound in bounds if bound > 0), default=None)


def _to_tensor(dtype: DType) -> Callable[[Array], Any]:
    """Return what makes a tensor over an array, which must live as long."""
    if dtype is DType.BF16:
        bf16 = openvino.Type.bf16
        return lambda array: openvino.Tensor(array.view(np.int16), array.shape, bf16)
    return lambda array: openvino.Tensor(array, shared_memory=True)


def _check_integers(name: str, array: Array) -> None:
    if array.size and not (array.max() <= _LARGEST and array.min() >= _SMALLEST):
        extreme = array.max() if array.max() > _LARGEST else array.min()
        raise InvalidInput(
            f"the input {name!r} holds {extreme}, but OpenVINO computes integers in 32 bits: use "
            "another runtime for larger ones"
        )


def _outcome(request: Any) -> Exception | None:
    try:
        request.wait()
    except Exception as error:
        return error
    return None
