"""ONNX models on TensorRT, through onnxruntime's provider of it.

Options: https://onnxruntime.ai/docs/execution-providers/TensorRT-ExecutionProvider.html.
Not yet run on a GPU: what is tested is what onnxruntime is told, the cache and the errors.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tidegate.errors import ConfigurationError, InvalidInput, InvalidModel
from tidegate.repository.formats import REQUIREMENTS
from tidegate.runtimes import onnx
from tidegate.runtimes.engine_cache import EngineCache, cache_folder, key_of
from tidegate.runtimes.interface import RuntimeOptions
from tidegate.runtimes.onnx_file import external_files
from tidegate.runtimes.onnxruntime_quiet import onnxruntime
from tidegate.types import Array, Signature, TensorSpec

_TENSORRT = "TensorrtExecutionProvider"
_LIBRARIES = "Please install TensorRT libraries"
"""How onnxruntime begins when it cannot load TensorRT or CUDA, or finds no GPU."""
_DISTRIBUTIONS = ("onnxruntime-gpu", "tensorrt-cu13", "tensorrt-cu12", "tensorrt")
_ANSWER_TIMEOUT = 15.0

Ranges = Mapping[str, Sequence[tuple[int, int]]]
"""By input, the smallest and the largest length of each dimension."""


class TensorRtModel(onnx.OnnxModel):
    """A model for which TensorRT built an engine."""

    platform = "onnxruntime_tensorrt"

    def __init__(self, opened: tuple[Any, ...], ranges: Ranges) -> None:
        super().__init__(*opened)
        self._ranges = ranges
        self.most_rows = min((found[0][1] for found in ranges.values() if found), default=None)

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """Run once; see :meth:`tidegate.runtimes.onnx.OnnxModel.run`.

        Raises:
            InvalidInput: a dimension is outside the range that the engine was built for.
        """
        for name, ranges in self._ranges.items():
            for place, (size, (low, high)) in enumerate(zip(inputs[name].shape, ranges)):
                if not low <= size <= high:
                    raise InvalidInput(
                        f"dimension {place} of the input {name!r} is {size}, but the engine was "
                        f"built for {low} to {high}: tensorrt.dimensions in model.yaml says so"
                    )
        return super().run(inputs, outputs)


def load(path: Path, options: RuntimeOptions) -> TensorRtModel:
    """Build TensorRT's engine for the ONNX file at ``path``, or take it from the cache.

    What TensorRT cannot run is run by CUDA, or on the CPU.

    Raises:
        InvalidModel: onnxruntime or TensorRT refuses it.
        InsufficientMemory: it does not fit.
        ConfigurationError: there is no GPU or no TensorRT, a dynamic dimension has no range, or
            ``signature`` in model.yaml contradicts the model.
    """
    number = _gpu(options.device)
    if _TENSORRT not in onnxruntime.get_available_providers():
        raise ConfigurationError(
            f"onnxruntime {onnxruntime.__version__} as installed has no TensorRT; install the "
            f"build that has, in an environment of its own: {REQUIREMENTS['tensorrt'].command}"
        )
    plain = onnx.create_session(path, str(path), options, [onnx.CPU])
    signature = onnx.signature_of(path, plain, options)
    del plain
    ranges = ranges_of(signature, options)
    settings = settings_of(options, ranges, number)
    _load_libraries()
    cache = EngineCache(cache_folder(), key_of([path, *external_files(path)], _about(settings)))

    def build(folder: Path) -> TensorRtModel:
        told = settings | {"trt_engine_cache_path": str(folder)}
        providers = [(_TENSORRT, told), (onnx.CUDA, {"device_id": number}), onnx.CPU]

        def session(model: str | bytes) -> tuple[Any, str]:
            return _create(path, model, options, providers), f"cuda:{number}"

        return TensorRtModel(onnx.opened(path, options, session), ranges)

    return cache.use(build)


def devices() -> tuple[str, ...]:
    """Return the kinds of device that this onnxruntime was built for with TensorRT."""
    return ("cuda",) if _TENSORRT in onnxruntime.get_available_providers() else ()


def ranges_of(signature: Signature, options: RuntimeOptions) -> Ranges:
    """Return the lengths of dimensions to build for, of the inputs that have dynamic ones.

    Raises:
        ConfigurationError: nothing says how long a dimension may be.
    """
    ranges = {}
    for spec in signature.inputs:
        if spec.shape is None:
            raise ConfigurationError(
                f"TensorRT needs the number of dimensions of {spec.name!r}: declare it in "
                "signature.inputs of model.yaml"
            )
        if any(not isinstance(dimension, int) for dimension in spec.shape):
            places = range(len(spec.shape))
            ranges[spec.name] = [_range(spec, place, options) for place in places]
    return ranges


def settings_of(options: RuntimeOptions, ranges: Ranges, number: str) -> dict[str, str]:
    """Return the options of the provider, but for where it caches engines."""
    config = options.config
    settings = {
        "device_id": number,
        "trt_engine_cache_enable": "1",
        "trt_fp16_enable": "1" if config.precision == "fp16" else "0",
        "trt_bf16_enable": "1" if config.precision == "bf16" else "0",
    }
    if config.tensorrt.workspace is not None:
        settings["trt_max_workspace_size"] = str(config.tensorrt.workspace)
    if ranges:
        # Without a range, the first request of each new length would wait for another engine.
        for name, end in (("min", 0), ("opt", 1), ("max", 1)):
            settings[f"trt_profile_{name}_shapes"] = ",".join(
                f"{input_}:{'x'.join(str(each[end]) for each in found)}"
                for input_, found in ranges.items()
            )
    return settings


def _range(spec: TensorSpec, place: int, options: RuntimeOptions) -> tuple[int, int]:
    assert spec.shape is not None
    dimension = spec.shape[place]
    if isinstance(dimension, int):
        return dimension, dimension
    given = options.config.tensorrt.dimensions.get(dimension or "")
    if given is not None:
        return given
    if place == 0:
        return 1, options.config.batching.max_batch_size
    name = dimension or "length"
    hint = "" if dimension else ", after signature.inputs has given it a name"
    raise ConfigurationError(
        f"TensorRT builds for a range of lengths, but dimension {place} of {spec.name!r} has "
        f"none: write tensorrt: {{dimensions: {{{name}: [1, 512]}}}}{hint}"
    )


def _gpu(device: str) -> str:
    kind, _, number = device.partition(":")
    if kind == "cpu":
        raise ConfigurationError(
            "device: cpu is not for the runtime tensorrt, which needs a GPU: remove the key, or "
            "use runtime: onnx"
        )
    return number or "0"


def _load_libraries() -> None:
    """Load what pip installed: onnxruntime finds by itself only what the system has."""
    onnx.load_cuda_libraries()
    with contextlib.suppress(ImportError):
        importlib.import_module("tensorrt")


def _create(path: Path, model: str | bytes, options: RuntimeOptions, providers: list[Any]) -> Any:
    try:
        session = onnx.create_session(path, model, options, providers)
    except InvalidModel as error:
        if _LIBRARIES not in str(error):
            raise
    else:
        if _TENSORRT in session.get_providers():
            return session
    raise ConfigurationError(
        f"onnxruntime {onnxruntime.__version__} has TensorRT, but cannot use it: there is no GPU "
        "and driver here, or no libnvinfer of the version that it was built with; see "
        "'nvidia-smi' and 'pip show tensorrt-cu13'"
    )


def _about(settings: Mapping[str, str]) -> dict[str, str]:
    """Return what an engine is built for and by."""
    about = dict(settings)
    for name in _DISTRIBUTIONS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            about[name] = importlib.metadata.version(name)
    about["gpus"] = _gpus()
    return about


def _gpus() -> str:
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=_ANSWER_TIMEOUT, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
