"""Caffe models on OpenCV's DNN module.

OpenCV 5 has no Caffe importer any more; 4 is maintained beside it.
API: https://docs.opencv.org/4.x/d6/d0f/group__dnn.html.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from tidegate.config.model import DeclaredTensor
from tidegate.errors import (
    ConfigurationError,
    InferenceFailed,
    InsufficientMemory,
    InvalidInput,
    InvalidModel,
)
from tidegate.repository.caffe_files import find_prototxt
from tidegate.runtimes.caffe_net import Net, check_weights, read_net
from tidegate.runtimes.caffe_trial import (
    Place,
    Seen,
    Task,
    is_memory,
    open_net,
    run_net,
    try_out,
    words,
)
from tidegate.runtimes.declared import refined
from tidegate.runtimes.interface import OneSignature, RuntimeOptions
from tidegate.types import Array, Dimension, DType, Signature, TensorSpec

_BATCH = "batch"


class CaffeModel(OneSignature):
    """A net of OpenCV; meets :class:`~tidegate.runtimes.interface.Model`."""

    platform = "opencv_caffe"
    most_rows: int | None = None

    def __init__(
        self, net: Any, signature: Signature, places: Mapping[str, Place], device: str
    ) -> None:
        self._net = net
        self.native = net
        """The ``cv2.dnn.Net``."""
        self._inputs = tuple(spec.name for spec in signature.inputs)
        # Always all of them: with others, OpenCV sets the whole net up anew.
        self._names = tuple(places)
        self._places = tuple(places.values())
        self.signature = signature
        self.device = device

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """Run once; see :meth:`tidegate.runtimes.interface.Model.run`.

        Raises:
            InvalidInput: there are no rows, which OpenCV cannot take.
            InsufficientMemory: the run needed more memory than there is.
            InferenceFailed: OpenCV raised; the message is its own.
        """
        arrays = [np.require(inputs[name], requirements=["C", "A"]) for name in self._inputs]
        for name, array in zip(self._inputs, arrays):
            if not array.size:
                raise InvalidInput(f"the input {name!r} is empty: Caffe models take 1 row or more")
        try:
            found = run_net(self._net, self._inputs, arrays, self._places)
        except (cv2.error, MemoryError) as error:
            kind = InsufficientMemory if is_memory(error) else InferenceFailed
            raise kind(words(error)) from error
        by_name = dict(zip(self._names, found))
        return {name: by_name[name] for name in outputs}

    def attach(self) -> None:
        """Nothing: OpenCV's threads serve whoever calls."""

    def close(self) -> None:
        """Free the net."""
        del self._net, self.native


def load(path: Path, options: RuntimeOptions) -> CaffeModel:
    """Load the ``.caffemodel`` at ``path`` with its prototxt.

    It is loaded and run in another process first, since OpenCV may die of a damaged one.

    Raises:
        InvalidModel: there is no prototxt, the two do not belong together, or OpenCV refuses them.
        InsufficientMemory: it does not fit.
        ConfigurationError: a device or a precision is asked for that OpenCV has not, or
            ``signature`` in model.yaml contradicts the net.
    """
    device = _device(options.device)
    if options.config.precision in ("bf16", "fp16"):
        raise ConfigurationError(
            f"precision: {options.config.precision} is not for the runtime caffe, which computes "
            "in FP32: remove it"
        )
    prototxt = find_prototxt(path, options.folder)
    net = read_net(prototxt)
    check_weights(net, prototxt.name, path)
    inputs = _declared_inputs(net, options.config.signature.inputs)
    names = [tensor.name for tensor in options.config.signature.outputs] or list(net.outputs)
    places = {name: net.place(name) for name in names}
    runs = _trial_runs(net, inputs, options.config.warmup.dimensions)
    task = Task(
        str(prototxt), str(path), list(net.inputs), list(places.values()), runs, options.threads
    )
    inputs, outputs = _seen(inputs, names, runs, try_out(task))
    signature = refined(Signature(inputs, outputs), options.config.signature)
    cv2.setNumThreads(options.threads)
    try:
        opened = open_net(str(prototxt), str(path))
    except cv2.error as error:
        raise InvalidModel(f"OpenCV refuses {path.name}: {words(error)}") from error
    if device != "cpu":
        opened.setPreferableBackend(cv2.dnn.DNN_BACKEND_CUDA)
        opened.setPreferableTarget(cv2.dnn.DNN_TARGET_CUDA)
    return CaffeModel(opened, signature, places, device)


def devices() -> tuple[str, ...]:
    """Return the kinds of device that this OpenCV can use here."""
    cuda = cv2.dnn.DNN_TARGET_CUDA in cv2.dnn.getAvailableTargets(cv2.dnn.DNN_BACKEND_CUDA)
    return ("cpu", "cuda") if cuda else ("cpu",)


def _device(wanted: str) -> str:
    kind, _, number = wanted.partition(":")
    if kind == "cpu" or (kind == "auto" and "cuda" not in devices()):
        return "cpu"
    if "cuda" not in devices():
        raise ConfigurationError(
            f"device: {wanted} needs an OpenCV that is built with CUDA, which no package on PyPI "
            f"is ({cv2.__version__} here): build it yourself, or use device: cpu"
        )
    cv2.cuda.setDevice(int(number or 0))
    return f"cuda:{number or 0}"


def _declared_inputs(net: Net, declared: Sequence[DeclaredTensor]) -> tuple[TensorSpec, ...]:
    """Return the inputs: as the prototxt has them, but for dimensions that model.yaml names.

    The first dimension is the batch; a net takes any number of rows unless a run shows otherwise.
    """
    wanted = {tensor.name: tensor.shape for tensor in declared}
    specs = []
    for name, own in net.inputs.items():
        shape: tuple[Dimension, ...] = (_BATCH, *own[1:])
        named = wanted.get(name)
        if named is not None and len(named) == len(own):
            # A number must be the net's own, which is checked when the two are joined.
            shape = tuple(
                have if isinstance(want, int) else want for have, want in zip(own, named)
            )
        specs.append(TensorSpec(name, DType.FP32, shape))
    return tuple(specs)


def _trial_runs(
    net: Net, inputs: Sequence[TensorSpec], sizes: Mapping[str, int]
) -> list[tuple[tuple[int, ...], ...]]:
    """Return the shapes to try: the prototxt's, a row more, and other open dimensions longer."""
    first: list[tuple[int, ...]] = []
    for spec in inputs:
        own = net.inputs[spec.name]
        dims = zip(spec.shape or (), own)
        first.append(tuple(d if isinstance(d, int) else sizes.get(d or "", n) for d, n in dims))
    more = [_longer(spec, shape, rows=1) for spec, shape in zip(inputs, first)]
    longer = [_longer(spec, shape, rows=0) for spec, shape in zip(inputs, first)]
    runs = [tuple(first), tuple(more), tuple(longer)]
    return runs if longer != first else runs[:2]


def _longer(spec: TensorSpec, shape: tuple[int, ...], *, rows: int) -> tuple[int, ...]:
    dims = spec.shape or ()
    if rows:
        return (shape[0] + (not isinstance(dims[0], int)), *shape[1:])
    rest = zip(dims[1:], shape[1:])
    return (shape[0], *(n if isinstance(d, int) else 2 * n for d, n in rest))


def _seen(
    inputs: tuple[TensorSpec, ...],
    names: Sequence[str],
    runs: Sequence[tuple[tuple[int, ...], ...]],
    seen: Sequence[list[Seen] | None],
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Return inputs and outputs as the trial runs show them."""
    first, more = seen[:2]
    assert first is not None
    longer = seen[2] if len(seen) > 2 else first
    if more is None or any(len(a.shape) != len(b.shape) for a, b in zip(first, more)):
        # It takes the prototxt's number of rows and no other.
        inputs = tuple(
            replace(spec, shape=(shape[0], *(spec.shape or ())[1:]))
            for spec, shape in zip(inputs, runs[0])
        )
        more = first
    rows = next((s.shape[0] for s in inputs if s.shape and not isinstance(s.shape[0], int)), None)
    outputs = []
    for place, name in enumerate(names):
        one, two = first[place], more[place]
        other = None if longer is None else longer[place].shape
        shape: list[Dimension] = []
        for at, (a, b) in enumerate(zip(one.shape, two.shape)):
            fixed = a == b and other is not None and other[at : at + 1] == (a,)
            shape.append(a if fixed else rows if b == a + 1 else None)
        outputs.append(TensorSpec(name, DType.of(np.dtype(one.dtype)), tuple(shape)))
    return inputs, tuple(outputs)
