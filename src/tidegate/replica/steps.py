"""The steps of ``model.yaml``, in the place of functions that ``hooks.py`` has not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tidegate.config.model import ModelConfig
from tidegate.errors import ConfigurationError
from tidegate.hooks import Request
from tidegate.replica.hook_file import FILE
from tidegate.replica.hooks import Functions
from tidegate.replica.image_step import image_preprocess
from tidegate.replica.label_step import label_postprocess
from tidegate.replica.public import Side
from tidegate.replica.text_step import text_preprocess
from tidegate.runtimes.folder_code import FolderCode
from tidegate.types import Signature


def has_steps(config: ModelConfig) -> bool:
    """Whether ``model.yaml`` says what to do before or after the model."""
    before = config.preprocess
    return before.image is not None or before.text is not None or config.postprocess.wanted


def with_steps(
    functions: Functions | None, config: ModelConfig, signature: Signature, code: FolderCode | None
) -> Functions | None:
    """Return the hooks of a model with the steps that ``model.yaml`` names.

    Raises:
        ConfigurationError: they are there twice, or do not go with the model's signature.
        InvalidModel: a file that they need is missing or damaged.
        RuntimeMissing: a package that they need is not installed.
    """
    if not has_steps(config):
        return functions
    functions = functions or Functions()

    def find(name: str) -> Path | None:
        return None if code is None else code.path(name)

    image, text, most = (
        config.preprocess.image,
        config.preprocess.text,
        config.batching.max_batch_size,
    )
    before: Callable[[Request], Any]
    if image is not None or text is not None:
        if functions.preprocess is not None:
            raise _twice("preprocess")
        if image is not None:
            before, side = (
                image_preprocess(image, signature.inputs, most),
                Side("image", many=True),
            )
        else:
            assert text is not None
            path = find(text.tokenizer)
            before = text_preprocess(text, path, signature.inputs, most)
            side = Side("text", many=True)
        functions = replace(functions, preprocess=before, incoming=side)
    if config.postprocess.wanted:
        if functions.postprocess is not None:
            raise _twice("postprocess")
        after = label_postprocess(config.postprocess, signature.outputs, find)
        functions = replace(functions, postprocess=after, outgoing=Side(specs=after.outputs))
    return functions


def _twice(name: str) -> ConfigurationError:
    return ConfigurationError(f"{name} is in model.yaml and in {FILE}: remove one of them")
