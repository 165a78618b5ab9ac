"""``preprocess: {text: …}``: from texts to the ids of their tokens, without code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tidegate.config.steps import TextStep
from tidegate.errors import ConfigurationError, InvalidInput, InvalidModel, RuntimeMissing
from tidegate.hooks import Request
from tidegate.types import Array, TensorSpec

_USUAL = 512
_LARGEST_FILE = 2**28
_NAMES = {
    "ids": ("input_ids", "ids", "tokens", "input"),
    "mask": ("attention_mask", "input_mask", "mask"),
    "types": ("token_type_ids", "segment_ids", "type_ids"),
}
"""How inputs are usually called, by what they get."""
_PADDING = ("direction", "pad_id", "pad_type_id", "pad_token")
_PARTS = {"ids": "ids", "mask": "attention_mask", "types": "type_ids"}
"""The attributes of an encoding of ``tokenizers``."""


class TextPreprocess:
    """Makes tokens of the texts of a request; each is a row, all as long as the longest."""

    def __init__(
        self, step: TextStep, path: Path, inputs: tuple[TensorSpec, ...], most: int
    ) -> None:
        self._step = step
        self._most = most
        self._inputs = _parts(step, inputs)
        length = _fixed_length(inputs)
        self._tokenizer = _tokenizer(path, step, length)
        own = self._tokenizer.padding or {}
        self._padding = {key: own[key] for key in _PADDING if key in own}
        # As long as the longest is enough; some tokenizers say a length of their own.
        self._tokenizer.no_padding()
        self._length = length

    def __call__(self, request: Request) -> dict[str, Array]:
        """Return the tokens of a request's texts.

        Raises:
            InvalidInput: one is no text in UTF-8, or too long, or there are too many.
        """
        texts = self._texts(request)
        found = [self._tokenizer.encode(text) for text in texts]
        length = self._length
        if length is None:
            multiple = self._step.pad_to
            length = -(-max(len(each.ids) for each in found) // multiple) * multiple
        for each in found:
            each.pad(length, **self._padding)
        return {
            spec.name: np.array([getattr(each, part) for each in found], spec.dtype.numpy)
            for spec, part in self._inputs
        }

    def _texts(self, request: Request) -> list[str]:
        if not request.tensors:
            texts = [request.text]
        else:
            try:
                (elements,) = request.tensors.values()
                texts = [element.decode() for element in elements.tolist()]
            except UnicodeDecodeError as error:
                raise InvalidInput(f"the model takes a text in UTF-8: {error}") from None
        if not 1 <= len(texts) <= self._most:
            raise InvalidInput(f"send 1 to {self._most} texts in one request, not {len(texts)}")
        for text in texts:
            if len(text) > self._step.max_characters:
                raise InvalidInput(
                    f"the text has {len(text)} characters, more than {self._step.max_characters}: "
                    "send a shorter one"
                )
        return texts


def text_preprocess(
    step: TextStep, path: Path | None, inputs: tuple[TensorSpec, ...], most: int
) -> Callable[[Request], dict[str, Array]]:
    """Return the step for a model of these inputs; ``path`` is the tokenizer's file.

    Raises:
        ConfigurationError: an input is none of tokens.
        InvalidModel: there is no such file, or it is no tokenizer.
        RuntimeMissing: the package ``tokenizers`` is not installed.
    """
    if path is None:
        raise InvalidModel(
            f"there is no {step.tokenizer} in the model's folder, which preprocess.text needs; "
            "tokenizers write one with save()"
        )
    return TextPreprocess(step, path, inputs, most)


def _parts(step: TextStep, inputs: tuple[TensorSpec, ...]) -> list[tuple[TensorSpec, str]]:
    """Return what each input gets."""
    found = []
    for spec in inputs:
        part: str | None
        if step.inputs is not None:
            part = step.inputs.get(spec.name)
        else:
            part = next((part for part, names in _NAMES.items() if spec.name in names), None)
        if part is None or spec.dtype.numpy.kind not in "iuf" or len(spec.shape or (1, 1)) != 2:
            raise ConfigurationError(
                f"preprocess.text does not know what the input {spec.name!r} {spec.dtype.value} "
                f"{list(spec.wire_shape)} gets: write inputs: {{{spec.name}: ids}} (or mask, or "
                "types) for numbers of [batch, length]"
            )
        found.append((spec, _PARTS[part]))
    unknown = set(step.inputs or ()) - {spec.name for spec in inputs}
    if unknown:
        raise ConfigurationError(
            f"preprocess.text.inputs has {', '.join(map(repr, sorted(unknown)))}, but the model "
            f"takes {', '.join(repr(spec.name) for spec in inputs)}"
        )
    return found


def _fixed_length(inputs: tuple[TensorSpec, ...]) -> int | None:
    lengths = {spec.shape[1] for spec in inputs if spec.shape is not None}
    numbers = {length for length in lengths if isinstance(length, int)}
    if len(numbers) > 1:
        raise ConfigurationError(f"preprocess.text: the inputs have the lengths {sorted(numbers)}")
    return next(iter(numbers), None)


def _tokenizer(path: Path, step: TextStep, length: int | None) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise RuntimeMissing(
            "preprocess.text needs the package tokenizers, which is not installed: "
            "pip install 'tidegate[text]'"
        ) from error
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise InvalidModel(f"{path.name} is larger than 256 MiB: it is no tokenizer")
        tokenizer = Tokenizer.from_file(str(path))
    except InvalidModel:
        raise
    except Exception as error:  # it raises nothing more specific
        raise InvalidModel(f"{path.name} is no tokenizer: {error}") from error
    if step.max_length is not None and length is not None and step.max_length > length:
        raise ConfigurationError(
            f"preprocess.text.max_length is {step.max_length}, but the model takes {length} tokens"
        )
    own = (tokenizer.truncation or {}).get("max_length", _USUAL)
    tokenizer.enable_truncation(step.max_length or length or own)
    return tokenizer
