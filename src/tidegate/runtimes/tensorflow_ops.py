"""Operators that TensorFlow has not, from libraries in the model's folder.

A library is native code that runs when it is loaded. ``model.yaml`` names each, which is the
operator's word, as ``model.py`` is for PyTorch: who may write into the repository may run code
as the user that serves it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tidegate.errors import ConfigurationError, InvalidModel
from tidegate.runtimes.tensorflow_framework import said, tf


def load_libraries(folder: Path | None, names: Sequence[str]) -> None:
    """Load each library once in this process.

    Raises:
        ConfigurationError: it is not in the model's folder.
        InvalidModel: TensorFlow refuses it.
    """
    if not names:
        return
    if folder is None:
        raise ConfigurationError("tensorflow.libraries needs a model in a folder of its own")
    for name in names:
        path = (folder / name).resolve()
        if not path.is_relative_to(folder.resolve()):
            raise ConfigurationError(
                f"tensorflow.libraries names {name!r}, a link that leads out of the model's "
                "folder: copy the library into it"
            )
        if not path.is_file():
            raise ConfigurationError(
                f"tensorflow.libraries names {name!r}, which is not in the model's folder {folder}"
            )
        try:
            tf.load_op_library(str(path))
        except Exception as error:
            words = said(error).replace(str(path), name)
            raise InvalidModel(
                f"TensorFlow {tf.__version__} refuses the library {name}: {words}; build it "
                "against this version, with the flags of tf.sysconfig"
            ) from error
