"""ONNX models on onnxruntime.

API: https://onnxruntime.ai/docs/api/python/api_summary.html.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import ml_dtypes
import numpy as np

from tidegate.errors import (
    ConfigurationError,
    InferenceFailed,
    InsufficientMemory,
    InvalidInput,
    InvalidModel,
)
from tidegate.runtimes.declared import refined
from tidegate.runtimes.interface import OneSignature, RuntimeOptions
from tidegate.runtimes.onnx_file import cast_outputs, shapes
from tidegate.runtimes.onnxruntime_quiet import onnxruntime
from tidegate.types import Array, Dimension, DType, Signature, TensorSpec

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
OpenSession = Callable[[str | bytes], tuple[Any, str]]
"""Makes a session of a path or a file's bytes, and says on which device it runs."""
_EXACT = {"fp32": {"use_tf32": "0"}}
"""Left to itself, CUDA multiplies FP32 matrices in TF32, whose mantissa has 10 bits."""
_DTYPES = {
    "bool": DType.BOOL,
    "uint8": DType.UINT8,
    "uint16": DType.UINT16,
    "uint32": DType.UINT32,
    "uint64": DType.UINT64,
    "int8": DType.INT8,
    "int16": DType.INT16,
    "int32": DType.INT32,
    "int64": DType.INT64,
    "float16": DType.FP16,
    "bfloat16": DType.BF16,
    "float": DType.FP32,
    "double": DType.FP64,
    "string": DType.BYTES,
}
_BFLOAT16 = 16
"""``TensorProto.BFLOAT16``."""
_ERROR, _FATAL = 3, 4
_NO_MEMORY = re.compile(
    r"failed to allocate memory|bad_alloc|out of memory|BFCArena|cudaErrorMemoryAllocation"
    r"|CUDA_ERROR_OUT_OF_MEMORY|ALLOC_FAILED|cannot allocate memory",
    re.IGNORECASE,
)
_PREAMBLE = re.compile(r"^\[ONNXRuntimeError\] : [0-9]+ : \w+ : ")
_LOADING = re.compile(r"Load model from .*? failed:")
_SOURCE = re.compile(r"/onnxruntime_src/.*?\) (?=[A-Z])")
_WANTS_CUDA = (
    "device: {device} needs onnxruntime with its CUDA provider, {found}; install it with "
    "'pip uninstall onnxruntime' and 'pip install onnxruntime-gpu[cuda,cudnn]', or use "
    "device: cpu"
)
_PRECISION = (
    "precision: {precision} is not for the runtime onnx, which computes in the types that the "
    "model itself names: convert the model, or let another runtime compute in {precision}, with "
    "runtime: openvino on a CPU or runtime: tensorrt on a GPU"
)

onnxruntime.set_default_logger_severity(_ERROR)


class OnnxModel(OneSignature):
    """A model in an onnxruntime session; meets :class:`~tidegate.runtimes.interface.Model`."""

    platform = "onnxruntime_onnx"
    most_rows: int | None = None

    def __init__(
        self, session: Any, signature: Signature, device: str, twins: Mapping[str, str]
    ) -> None:
        self._run = session.run
        self.native = session
        """The ``onnxruntime.InferenceSession``."""
        self._twins = twins
        self.signature = signature
        self.device = device
        # What onnxruntime takes and gives as it is needs no look at run time.
        self._converted_in = {
            spec.name: _INWARD[spec.dtype] for spec in signature.inputs if spec.dtype in _INWARD
        }
        self._converted_out = {
            spec.name: _OUTWARD[spec.dtype] for spec in signature.outputs if spec.dtype in _OUTWARD
        }

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """Run once; see :meth:`tidegate.runtimes.interface.Model.run`.

        Raises:
            InvalidInput: an element of a BYTES input is not UTF-8, which alone an ONNX
                string can be.
            InsufficientMemory: the run needed more memory than there is.
            InferenceFailed: onnxruntime raised; the message is its own.
        """
        if self._converted_in:
            inputs = dict(inputs)
            for name, convert in self._converted_in.items():
                inputs[name] = convert(name, inputs[name])
        names = [self._twins.get(name, name) for name in outputs] if self._twins else outputs
        try:
            arrays = self._run(names, inputs)
        except Exception as error:
            _raise(error, InferenceFailed, "")
        results: dict[str, Array] = dict(zip(outputs, arrays))
        if self._converted_out:
            for name, convert in self._converted_out.items():
                if name in results:
                    results[name] = convert(results[name])
        return results

    def attach(self) -> None:
        """Nothing: a session's threads serve whoever calls."""

    def close(self) -> None:
        """Free the session."""
        del self._run


def load(path: Path, options: RuntimeOptions) -> OnnxModel:
    """Load the ONNX file at ``path``; its external data lie beside it.

    Raises:
        InvalidModel: onnxruntime refuses it, or it has inputs or outputs that are no
            tensors of a known type.
        InsufficientMemory: it does not fit.
        ConfigurationError: a GPU is asked for that onnxruntime cannot use, or a precision that
            it does not compute in, or ``signature`` in model.yaml contradicts the model.
    """
    if options.config.precision in ("bf16", "fp16"):
        raise ConfigurationError(_PRECISION.format(precision=options.config.precision))
    return OnnxModel(*opened(path, options, lambda model: _open(path, model, options)))


def opened(
    path: Path, options: RuntimeOptions, open_session: OpenSession
) -> tuple[Any, Signature, str, Mapping[str, str]]:
    """Open a file as ``open_session`` does, and return what makes a model of it.

    Raises:
        InvalidModel: it has inputs or outputs that are no tensors of a known type.
        ConfigurationError: ``signature`` in model.yaml contradicts the model.
    """
    session, device = open_session(str(path))
    signature = signature_of(path, session, options)
    fragments = cast_outputs(s.name for s in signature.outputs if s.dtype is DType.BF16)
    if fragments:
        # onnxruntime hands out no BF16 that numpy could take: let it cast to FP32 itself.
        del session
        content = path.read_bytes() + b"".join(fragments.values())
        session, device = open_session(content)
    twins = {twin.rpartition("/")[0]: twin for twin in fragments}
    return session, signature, device, twins


def signature_of(path: Path, session: Any, options: RuntimeOptions) -> Signature:
    """Return the tensors of the model in a session.

    Raises:
        InvalidModel: it has inputs or outputs that are no tensors of a known type.
        ConfigurationError: ``signature`` in model.yaml contradicts the model.
    """
    signature = Signature(
        _specs(path, session.get_inputs(), "input"), _specs(path, session.get_outputs(), "output")
    )
    return refined(signature, options.config.signature)


def devices() -> tuple[str, ...]:
    """Return the kinds of device that this onnxruntime was built for."""
    cuda = CUDA in onnxruntime.get_available_providers()
    return ("cpu", "cuda") if cuda else ("cpu",)


def _open(path: Path, model: str | bytes, options: RuntimeOptions) -> tuple[Any, str]:
    """Return a session and the device it runs on."""
    kind, _, number = options.device.partition(":")
    if kind != "cpu":
        load_cuda_libraries()
    if kind == "cuda" and "cuda" not in devices():
        found = f"but {onnxruntime.__version__} as installed has none"
        raise ConfigurationError(_WANTS_CUDA.format(device=options.device, found=found))
    if kind == "cpu" or "cuda" not in devices():
        return create_session(path, model, options, [CPU]), "cpu"
    cuda = (CUDA, {"device_id": number or "0", **_EXACT.get(options.config.precision or "", {})})
    try:
        session = create_session(path, model, options, [cuda, CPU])
    except InvalidModel as error:
        if kind == "cuda":
            raise
        try:
            return create_session(path, model, options, [CPU]), "cpu"
        except InvalidModel:
            raise error from None
    if CUDA in session.get_providers():
        return session, f"cuda:{number or 0}"
    if kind == "cuda":
        # onnxruntime falls back to the CPU when it cannot load the CUDA libraries.
        found = "which is installed but found no GPU or no CUDA libraries"
        raise ConfigurationError(_WANTS_CUDA.format(device=options.device, found=found))
    return session, "cpu"


def load_cuda_libraries() -> None:
    """Load the CUDA libraries that pip installed; otherwise only those of the system are found."""
    if "cuda" in devices() and hasattr(onnxruntime, "preload_dlls"):
        # It prints what it does not find.
        with contextlib.redirect_stdout(sys.stderr):
            onnxruntime.preload_dlls()


def session_options(options: RuntimeOptions) -> Any:
    """Return how onnxruntime shall run a model."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = options.threads
    settings.inter_op_num_threads = 1
    settings.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    # Left to itself, onnxruntime spins for 30 ms after each run: a core for each thread, taken
    # from others. Not at all, and operators wait for threads to wake. 20 us bridge the operators.
    spin = round(options.config.onnx.spin * 1e6)
    settings.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin else "0")
    if spin:
        settings.add_session_config_entry("session.intra_op.spin_duration_us", str(spin))
    settings.add_session_config_entry("session.inter_op.allow_spinning", "0")
    # Its errors are raised as well; logged, each bad request would fill the log.
    settings.log_severity_level = _FATAL
    return settings


def create_session(
    path: Path, model: str | bytes, options: RuntimeOptions, providers: list[Any]
) -> Any:
    """Return a session of ``model``: the path, or the bytes in its stead.

    Raises:
        InvalidModel: onnxruntime refuses it.
        InsufficientMemory: it does not fit.
    """
    settings = session_options(options)
    if isinstance(model, bytes):
        settings.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(path.parent)
        )
    try:
        return onnxruntime.InferenceSession(
            model, settings, providers=providers, enable_fallback=0
        )
    except Exception as error:
        _raise(error, InvalidModel, f"onnxruntime {onnxruntime.__version__} refuses {path.name}: ")


def _specs(path: Path, arguments: Sequence[Any], role: str) -> tuple[TensorSpec, ...]:
    specs = []
    for argument in arguments:
        kind = argument.type
        if not kind.startswith("tensor("):
            raise InvalidModel(
                f"the {role} {argument.name!r} of {path.name} is a {kind}, which no request or "
                "answer can carry; export the model with tensors alone (from scikit-learn: "
                "with the option zipmap=False)"
            )
        dtype = _DTYPES.get(kind[len("tensor(") : -1])
        if dtype is None:
            raise InvalidModel(
                f"the {role} {argument.name!r} of {path.name} has the element type {kind}, "
                f"which no protocol has; add a Cast to one of {', '.join(_DTYPES)}"
            )
        specs.append(TensorSpec(argument.name, dtype, _shape(path, argument)))
    return tuple(specs)


def _shape(path: Path, argument: Any) -> tuple[Dimension, ...] | None:
    if not argument.shape and shapes(path).get(argument.name, ()) is None:
        return None
    return tuple(d if d or d == 0 else None for d in argument.shape)


def _raise(error: Exception, kind: type[Exception], prefix: str) -> NoReturn:
    message = _LOADING.sub("", _SOURCE.sub("", _PREAMBLE.sub("", str(error))))
    message = prefix + " ".join(message.split())
    if isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)):
        raise InsufficientMemory(message or "onnxruntime could not allocate memory") from error
    raise kind(message) from error


def _text_of(name: str, array: Array) -> Array:
    """Turn ``bytes`` into ``str``: onnxruntime takes the text form of any other object."""
    texts = np.empty(array.shape, np.object_)
    try:
        texts.reshape(-1)[:] = [element.decode() for element in array.reshape(-1).tolist()]
    except UnicodeDecodeError as error:
        raise InvalidInput(
            f"the input {name!r} has the element {error.object[:40]!r}, which is not UTF-8 text; "
            "the strings of an ONNX model hold nothing else"
        ) from error
    return texts


def _bytes_of(array: Array) -> Array:
    encoded = np.empty(array.shape, np.object_)
    encoded.reshape(-1)[:] = [element.encode() for element in array.reshape(-1).tolist()]
    return encoded


def _value_of(name: str, array: Array) -> Any:
    """Wrap BF16, which onnxruntime does not know as a type of numpy."""
    bits = array.view(np.int16)
    return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, _BFLOAT16)


def _narrowed(array: Array) -> Array:
    # These FP32 were BF16: their lower halves are zero, so this is exact, for NaN as well.
    upper = (array.view(np.uint32) >> 16).astype(np.uint16)
    return upper.view(ml_dtypes.bfloat16)


_INWARD: dict[DType, Any] = {DType.BYTES: _text_of, DType.BF16: _value_of}
_OUTWARD: dict[DType, Any] = {DType.BYTES: _bytes_of, DType.BF16: _narrowed}
