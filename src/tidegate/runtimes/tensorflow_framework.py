"""TensorFlow without its chatter, and what a replica sets up before it computes.

API: https://www.tensorflow.org/api_docs/python/tf/config.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from pathlib import Path
from typing import Any, NoReturn

from tidegate.errors import ConfigurationError, InsufficientMemory
from tidegate.runtimes.interface import RuntimeOptions
from tidegate.telemetry.rotation import errors_without
from tidegate.types import DType

__all__ = ["DTYPES", "devices", "prepare", "reraise", "said", "tf"]

# No setting keeps its native code from saying this.
_SAID_AT_IMPORT = re.compile(rb"^(WARNING: All log messages before absl|I0000 ).*\n?", re.M)


# Its errors are raised as well; logged, each bad request would fill the log.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
with errors_without(_SAID_AT_IMPORT):
    import tensorflow as tf
for _name in ("tensorflow", "absl"):
    logging.getLogger(_name).setLevel(logging.ERROR)

DTYPES: dict[Any, DType] = {
    tf.bool: DType.BOOL,
    tf.uint8: DType.UINT8,
    tf.uint16: DType.UINT16,
    tf.uint32: DType.UINT32,
    tf.uint64: DType.UINT64,
    tf.int8: DType.INT8,
    tf.int16: DType.INT16,
    tf.int32: DType.INT32,
    tf.int64: DType.INT64,
    tf.float16: DType.FP16,
    tf.bfloat16: DType.BF16,
    tf.float32: DType.FP32,
    tf.float64: DType.FP64,
    tf.string: DType.BYTES,
}

# The nodes that an error came through, hints for programmers, and places in Python files.
_TRACE = re.compile(r"\s*(\n\t \[\[|\nHint: |\nOriginal stack trace).*", re.S)
_PREAMBLE = re.compile(r"^(Graph execution error:\s*|Detected at node.*?\n(?=\S)(?!File ))", re.S)
_NO_MEMORY = re.compile(
    r"OOM when allocating|out of memory|failed to allocate|bad_alloc|RESOURCE_EXHAUSTED",
    re.IGNORECASE,
)
_LONGEST = 1000


def devices() -> tuple[str, ...]:
    """Return the kinds of device that this TensorFlow can use here."""
    return ("cpu", "cuda") if tf.config.list_physical_devices("GPU") else ("cpu",)


def prepare(options: RuntimeOptions) -> str:
    """Choose the device, its precision and the threads of the process; return the device.

    TensorFlow takes them before it first computes: what a process loads later is served alike.

    Raises:
        ConfigurationError: a GPU is asked for that TensorFlow cannot use, or a precision that
            the device does not have.
    """
    gpus = tf.config.list_physical_devices("GPU")
    index = _gpu(options.device, len(gpus))
    visible = [] if index is None else [gpus[index]]
    settings = options.config.tensorflow
    with contextlib.suppress(RuntimeError):
        tf.config.set_visible_devices(visible, "GPU")
        for gpu in visible:
            # Otherwise it takes all of a GPU's memory, whatever the model needs.
            tf.config.experimental.set_memory_growth(gpu, True)
    with contextlib.suppress(RuntimeError):
        tf.config.threading.set_intra_op_parallelism_threads(options.threads)
        tf.config.threading.set_inter_op_parallelism_threads(settings.inter_op_threads)
    device = "cpu" if index is None else f"cuda:{index}"
    _set_precision(options.config.precision, device)
    return device


def _gpu(wanted: str, count: int) -> int | None:
    """Return the index of the GPU to use; ``None``: the CPU."""
    kind, _, number = wanted.partition(":")
    if kind == "cpu" or (kind == "auto" and not count):
        return None
    if not count:
        found = "finds no GPU" if tf.test.is_built_with_cuda() else "is built without CUDA"
        raise ConfigurationError(
            f"device: {wanted} needs a GPU, but TensorFlow {tf.__version__} {found}; replace "
            "tensorflow-cpu by a build with CUDA (pip uninstall tensorflow-cpu, then pip install "
            "'tensorflow[and-cuda]'), or use device: cpu"
        )
    index = int(number or 0)
    if index >= count:
        raise ConfigurationError(
            f"device: {wanted} is not here: TensorFlow sees {count} GPU"
            f"{'s' if count > 1 else ''}, cuda:0 to cuda:{count - 1}"
        )
    return index


_REWRITERS = {
    ("cpu", "bf16"): "auto_mixed_precision_onednn_bfloat16",
    ("cuda", "fp16"): "auto_mixed_precision",
}
"""What makes matrix products and convolutions of FP32 run in another type."""
_BF16 = {"avx512f", "avx_ne_convert"}
"""Features with one of which TensorFlow's library for CPUs has BF16."""


def _set_precision(precision: str | None, device: str) -> None:
    kind = device.partition(":")[0]
    rewriter = _REWRITERS.get((kind, precision or ""))
    if precision in ("bf16", "fp16") and rewriter is None:
        possible = ", ".join(p for k, p in _REWRITERS if k == kind)
        raise ConfigurationError(
            f"precision: {precision} is not what TensorFlow can compute in on {device}: use "
            f"{possible} or fp32, or convert the model"
        )
    if (kind, precision) == ("cpu", "bf16") and not _BF16 & _cpu_features():
        raise ConfigurationError(
            "precision: bf16 needs a CPU with AVX-512 or AVX-NE-CONVERT, which this one has not: "
            "use fp32, or leave the key out"
        )
    tf.config.optimizer.set_experimental_options(
        {name: name == rewriter for name in _REWRITERS.values()}
    )
    # TF32, which a GPU uses for FP32 unless it is told otherwise, has ten bits.
    tf.config.experimental.enable_tensor_float_32_execution(precision != "fp32")


def _cpu_features() -> frozenset[str]:
    """Return what Linux says of the CPU; nothing elsewhere."""
    try:
        content = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    flags = re.search(r"^flags\s*: (.*)$", content, re.M)
    return frozenset() if flags is None else frozenset(flags[1].split())


def reraise(error: Exception, kind: type[Exception], prefix: str = "") -> NoReturn:
    """Raise ``kind`` with the words of TensorFlow's ``error``, or InsufficientMemory.

    Raises:
        InsufficientMemory: the error is that there is no memory, on the CPU or a GPU.
    """
    words = said(error)
    exhausted = isinstance(error, MemoryError | tf.errors.ResourceExhaustedError)
    if exhausted or _NO_MEMORY.search(str(error)):
        raise InsufficientMemory(words or "TensorFlow could not allocate memory") from error
    raise kind(prefix + words) from error


def said(error: Exception) -> str:
    """Return the words of an error in one line, without the traces of code and nodes."""
    text = _TRACE.sub("", str(getattr(error, "message", "") or error))
    text = " ".join(_PREAMBLE.sub("", _PREAMBLE.sub("", text)).split())
    kind = type(error).__name__
    words = text if kind in ("ValueError", "RuntimeError", "OSError") else f"{kind}: {text}"
    return words if len(words) <= _LONGEST else words[:_LONGEST] + " …"
