"""Keras models, from ``.keras`` and HDF5 files, as SavedModels.

What Keras exports is run by a session like any other SavedModel: three times as fast as Keras
calls a ResNet-50. API: https://keras.io/api/models/.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tidegate.errors import ConfigurationError, InsufficientMemory, InvalidModel
from tidegate.runtimes.tensorflow_framework import reraise, tf
from tidegate.types import DEFAULT_SIGNATURE

_SUFFIXES = {"keras": (".keras",), "hdf5": (".h5", ".hdf5")}
_OTHERWISE = (
    "where it was made, write it as a SavedModel, with model.export(path), which needs none of "
    "its Python code"
)


_MISSING = re.compile(r"Could not locate \w+ '([^']+)'|Unknown \w+: '?([\w>]+)")


@contextlib.contextmanager
def exported(path: Path, kind: str, *, trusted: bool) -> Iterator[Path]:
    """Export the Keras model at ``path`` to a SavedModel, which is there within the context.

    ``kind`` is its format, ``keras`` or ``hdf5``. Code that the file holds (of Lambda layers) is
    run only if it is ``trusted``.

    Raises:
        InvalidModel: Keras refuses it, or it needs code that is not in the file.
        InsufficientMemory: it does not fit.
        ConfigurationError: there is no folder for temporary files.
    """
    # A setting of the user's may name another backend.
    os.environ["KERAS_BACKEND"] = "tensorflow"
    import keras

    try:
        temporary = tempfile.TemporaryDirectory(prefix="tidegate-keras-")
    except OSError as error:
        raise ConfigurationError(
            f"Keras models are exported to a temporary folder, and there is none: {error}; set "
            f"TMPDIR to a folder that can be written to, or, {_OTHERWISE}"
        ) from error
    with temporary as folder:
        target = Path(folder, "model")
        try:
            model = _load(keras, path, kind, Path(folder), trusted=trusted)
            _export(keras, model, path, target)
        except (InvalidModel, InsufficientMemory):
            raise
        except Exception as error:
            reraise(error, InvalidModel, f"Keras {keras.__version__} refuses {path.name}: ")
        del model
        keras.backend.clear_session()
        yield target


def _load(keras: Any, path: Path, kind: str, folder: Path, *, trusted: bool) -> Any:
    if path.suffix not in _SUFFIXES[kind]:
        # Keras goes by the name, the repository by the content.
        link = folder / f"file{_SUFFIXES[kind][0]}"
        link.symlink_to(path.resolve())
        path = link
    try:
        return keras.models.load_model(path, compile=False, safe_mode=not trusted)
    except Exception as error:
        words = str(error)
        if "safe_mode" in words:
            raise InvalidModel(
                f"{path.name} holds Python code (a Lambda layer): loading it would run it, with "
                f"all that this user may do; {_OTHERWISE}, or, only if you made the file "
                "yourself, write trust: pickle into the model.yaml of its folder"
            ) from error
        if "No model config" in words or "config.json" in words:
            raise InvalidModel(
                f"{path.name} holds weights without a model: save the whole model with "
                "model.save('model.keras')"
            ) from error
        missing = _MISSING.search(words)
        if missing is not None:
            name = missing[1] or missing[2]
            raise InvalidModel(
                f"{path.name} needs Python code that is not in the file, of {name}: {_OTHERWISE}"
            ) from error
        raise


def _export(keras: Any, model: Any, path: Path, target: Path) -> None:
    inputs = _inputs(keras, model, path)
    names = _unique(getattr(model, "output_names", ()) or ())

    def call(*tensors: Any) -> Any:
        given = keras.tree.pack_sequence_as(model.input, list(tensors))
        found = keras.tree.flatten(model(given, training=False))
        return dict(zip(names if len(names) == len(found) else _numbered(len(found)), found))

    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint(DEFAULT_SIGNATURE, call, input_signature=inputs)
    archive.write_out(str(target), verbose=False)


def _inputs(keras: Any, model: Any, path: Path) -> list[Any]:
    try:
        tensors = model.inputs
        packed = model.input
    except (AttributeError, ValueError):
        tensors = packed = None
    if not tensors:
        raise InvalidModel(
            f"{path.name} does not say what it takes (a {type(model).__name__} that was never "
            f"called): {_OTHERWISE}"
        )
    flat = isinstance(packed, dict) and not any(map(keras.tree.is_nested, packed.values()))
    names = sorted(packed) if flat else [tensor.name for tensor in tensors]
    return [
        tf.TensorSpec(tensor.shape, tensor.dtype, name=name)
        for name, tensor in zip(_unique(names), tensors)
    ]


def _unique(names: Sequence[str]) -> list[str]:
    found: list[str] = []
    for name in names:
        found.append(name if name not in found else f"{name}_{len(found)}")
    return found


def _numbered(count: int) -> list[str]:
    return [f"output_{index}" for index in range(count)]
