"""Inputs for the runs before a model gets traffic: the operator's own, or made-up ones."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tidegate.errors import ConfigurationError
from tidegate.runtimes.interface import RuntimeOptions
from tidegate.types import Array, DType, TensorSpec

_LARGEST = 2**30
"""Bytes of a sample, unpacked."""
_SEED = 0
_DAMAGED = (ValueError, TypeError, KeyError, EOFError, RecursionError, zipfile.BadZipFile)


@dataclass(frozen=True, slots=True)
class Samples:
    """Makes inputs that fit a signature."""

    given: Mapping[str, Array] | None = None
    """The operator's sample, by input; by the empty name when it is one without a name."""
    sizes: Mapping[str, int] = field(default_factory=dict)
    """The lengths of dynamic dimensions in made-up inputs."""

    def make(self, specs: Sequence[TensorSpec], rows: int | None) -> tuple[Array, ...] | None:
        """Make one array for each of ``specs``, the same at each call.

        ``rows`` is the length of the first dimension where that is dynamic; ``None``: as the
        operator's sample has it, else 1. Other dynamic dimensions are those of the sample, or
        of ``sizes``, or 1. Returns ``None`` when a rank is unknown and there is no sample.

        Raises:
            ConfigurationError: the sample does not fit the signature.
        """
        if self.given is not None:
            return tuple(_rows(self._given(spec), spec, rows).copy() for spec in specs)
        random = np.random.default_rng(_SEED)
        arrays = []
        for spec in specs:
            if spec.shape is None:
                return None
            shape = [d if isinstance(d, int) else self.sizes.get(d or "", 1) for d in spec.shape]
            if shape and not isinstance(spec.shape[0], int):
                shape[0] = rows or 1
            arrays.append(_fill(spec.dtype, tuple(shape), random))
        return tuple(arrays)

    def _given(self, spec: TensorSpec) -> Array:
        assert self.given is not None
        array = self.given.get("" if "" in self.given else spec.name)
        if array is None:
            raise ConfigurationError(
                f"the sample of warmup has no input {spec.name!r}: it has "
                + ", ".join(map(repr, self.given))
            )
        if DType.of(array.dtype) is not spec.dtype:
            array = _converted(array, spec)
        fits = spec.shape is None or (
            len(spec.shape) == array.ndim
            and all(not isinstance(w, int) or w == h for w, h in zip(spec.shape, array.shape))
        )
        if not fits:
            raise ConfigurationError(
                f"the input {spec.name!r} in the sample of warmup has the shape "
                f"{list(array.shape)}, but the model takes {list(spec.shape or ())}"
            )
        return array


def samples_of(options: RuntimeOptions) -> Samples:
    """Read what ``warmup`` in ``model.yaml`` says.

    Raises:
        ConfigurationError: the sample is not there, or is not what its name says.
    """
    warmup = options.config.warmup
    if warmup.sample is None:
        return Samples(None, warmup.dimensions)
    if options.folder is None:
        raise ConfigurationError("warmup.sample needs a model in a folder of its own")
    return Samples(read_sample(options.folder / warmup.sample), warmup.dimensions)


def read_sample(path: Path) -> dict[str, Array]:
    """Read a sample: ``.npz`` or ``.json`` (by name), or ``.npy`` (one array without a name).

    JSON is a mapping of names to nested lists, or a request of the Open Inference Protocol.
    Numbers without a type of their own are FP32 and INT64: never FP64 by accident.

    Raises:
        ConfigurationError: it cannot be read, or is not what its name says.
    """
    try:
        if path.stat().st_size > _LARGEST:
            raise ConfigurationError(f"warmup.sample: {path.name} is larger than 1 GiB")
        if path.suffix == ".json":
            return _from_json(json.loads(path.read_bytes()))
        if path.suffix == ".npy":
            return {"": _plain(np.load(path, allow_pickle=False))}
        if path.suffix == ".npz":
            return _from_archive(path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigurationError(f"warmup.sample: {path} cannot be read: {reason}") from error
    except _DAMAGED as error:
        raise ConfigurationError(
            f"warmup.sample: {path.name} is no {path.suffix} file of numbers: {error}"
        ) from error
    raise ConfigurationError(
        f"warmup.sample: {path.name} must be an .npz, .npy or .json file; numpy.savez writes one"
    )


def _from_archive(path: Path) -> dict[str, Array]:
    with zipfile.ZipFile(path) as archive:
        if sum(member.file_size for member in archive.infolist()) > _LARGEST:
            raise ValueError("it unpacks to more than 1 GiB")
    with np.load(path, allow_pickle=False) as arrays:
        return {name: _plain(arrays[name]) for name in arrays.files}


def _from_json(content: Any) -> dict[str, Array]:
    if not isinstance(content, dict) or not content:
        raise ValueError("it must be a mapping of inputs to nested lists")
    if isinstance(content.get("inputs"), list):
        return {
            tensor["name"]: np.array(tensor["data"], DType(tensor["datatype"]).numpy).reshape(
                tensor["shape"]
            )
            for tensor in content["inputs"]
        }
    return {name: _plain(np.array(values)) for name, values in content.items()}


def _plain(array: Array) -> Array:
    if array.dtype.kind == "U":
        array = np.char.encode(array, "utf-8").astype(np.object_)
    # Python's numbers and most arrays are of 64 bits without anybody's wish.
    array = array.astype(np.float32) if array.dtype == np.float64 else array
    DType.of(array.dtype)
    return np.require(array, array.dtype.newbyteorder("="), "C")


def _converted(array: Array, spec: TensorSpec) -> Array:
    floats = (DType.FP16, DType.BF16, DType.FP32, DType.FP64)
    if spec.dtype in floats or (spec.dtype is not DType.BYTES and array.dtype.kind in "biu"):
        return array.astype(spec.dtype.numpy)
    raise ConfigurationError(
        f"the input {spec.name!r} in the sample of warmup is {DType.of(array.dtype).value}, "
        f"but the model takes {spec.dtype.value}"
    )


def _rows(array: Array, spec: TensorSpec, rows: int | None) -> Array:
    """Give ``array`` so many rows, if its first dimension is dynamic.

    Rows beyond those of the sample are its rows with their values in reverse order: of the
    kind that the model takes, and different from it.
    """
    fixed = spec.shape is not None and (not spec.shape or isinstance(spec.shape[0], int))
    if rows is None or fixed or array.ndim == 0 or not len(array):
        return array
    parts = [array]
    while sum(map(len, parts)) < rows:
        parts.append(np.flip(parts[-1], axis=tuple(range(1, array.ndim))))
    return np.ascontiguousarray(np.concatenate(parts)[:rows])


def _fill(dtype: DType, shape: tuple[int, ...], random: np.random.Generator) -> Array:
    if dtype is DType.BYTES:
        array = np.empty(shape, dtype=np.object_)
        array.fill(b"")
        return array
    if dtype in (DType.FP16, DType.BF16, DType.FP32, DType.FP64):
        return random.random(shape).astype(dtype.numpy)
    # Integers are often indices: 0 and 1 are valid ones almost everywhere.
    return random.integers(0, 2, shape).astype(dtype.numpy)
