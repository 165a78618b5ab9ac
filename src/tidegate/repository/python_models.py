"""The code in models' folders: which are models in Python, and what versions share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tidegate.config.model import ModelConfig
from tidegate.errors import InvalidModel
from tidegate.repository import formats

CODE = "model.py"
"""A class of the operator's, or what makes the module that weights belong to."""
_SHARED = frozenset({".py", ".npz", ".npy", ".json", ".prototxt"})
"""Code, samples, the nets of Caffe."""
_HOOKS = ("hooks.py", "processor.py")
_PICKLES = frozenset({".pkl", ".pickle", ".joblib"})
"""What no runtime reads, but the code beside it may."""


def is_python_model(
    config: ModelConfig, folder: Path, shared: Path | None, children: Sequence[Path]
) -> bool:
    """Whether a version is served by its ``model.py``, or by the one that all versions share.

    It is where ``model.yaml`` says so, and where nothing else beside it is a model that could be
    served: weights of PyTorch have a ``model.py``, too.

    Args:
        config: The model's ``model.yaml``.
        folder: The version's folder.
        shared: The model's folder.
        children: What lies in the version's folder.

    Raises:
        InvalidModel: ``model.yaml`` says so, but there is no ``model.py``.
    """
    there = any((f / CODE).is_file() for f in (folder, shared) if f is not None)
    if config.runtime == "python":
        if not there:
            raise InvalidModel(f"has no {CODE}, which runtime: python in model.yaml asks for")
        return True
    if not there or config.runtime is not None:
        return False
    return not any(_is_other_model(child) for child in children)


def has_hooks(folder: Path, shared: Path | None) -> bool:
    """Whether there is code around the model, which may read whatever lies beside it."""
    return any((f / name).is_file() for f in (folder, shared) if f is not None for name in _HOOKS)


def files_of_steps(config: ModelConfig) -> list[str]:
    """Return the names of the files that steps without code read."""
    text, labels = config.preprocess.text, config.postprocess.labels
    return [
        name for name in (None if text is None else text.tokenizer, labels) if name is not None
    ]


def is_shared(path: Path, near: bool) -> bool:
    """Whether a file beside the folders of versions belongs to all of them.

    Code does wherever it lies, samples only ``near``, in the model's folder itself. To a model in
    Python belongs everything, because its code may read it.
    """
    return path.suffix == ".py" or (near and path.suffix in _SHARED and path.is_file())


def _is_other_model(path: Path) -> bool:
    if path.name in formats.FOLDER_MARKS:
        return True
    if path.is_dir():
        return False
    if path.suffix in formats.EXTENSIONS - _PICKLES:
        return True  # a damaged one is to be told of
    try:
        return formats.detect(path).runtime is not None
    except (InvalidModel, OSError):
        return False
